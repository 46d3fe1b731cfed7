"""`avs-jax clips`: avs_jax/programs/make_clips.py."""

import sys

from avs_jax.programs.make_clips import main

if __name__ == "__main__":
    sys.exit(main())
