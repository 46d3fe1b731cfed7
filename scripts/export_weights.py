"""`avs-jax export`: avs_jax/programs/export_weights.py."""

from avs_jax.programs.export_weights import main
from avs_jax.stopping import run_as_program

if __name__ == "__main__":
    run_as_program(main)
