"""`avs-jax data build`: avs_jax/programs/build_dataset.py."""

import sys

from avs_jax.programs.build_dataset import main

if __name__ == "__main__":
    sys.exit(main())
