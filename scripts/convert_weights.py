"""`avs-jax convert`: avs_jax/programs/convert_weights.py."""

import sys

from avs_jax.programs.convert_weights import main

if __name__ == "__main__":
    sys.exit(main())
