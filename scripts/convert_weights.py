"""`avs-jax convert`: avs_jax/programs/convert_weights.py."""

from avs_jax.programs.convert_weights import main
from avs_jax.stopping import run_as_program

if __name__ == "__main__":
    run_as_program(main)
