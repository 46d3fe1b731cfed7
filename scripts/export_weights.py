"""`avs-jax export`: avs_jax/programs/export_weights.py."""

import sys

from avs_jax.programs.export_weights import main

if __name__ == "__main__":
    sys.exit(main())
