"""`avs-jax data`: avs_jax/programs/prepare_avsbench.py."""

import sys

from avs_jax.programs.prepare_avsbench import main

if __name__ == "__main__":
    sys.exit(main())
