"""The main program: trains a configuration, evaluates a run, or plans what a run will take.

  avs-jax train --config=configs/s4_ama.py --workdir=DIR [--config.train.batch_size=4 ...]
  avs-jax train --workdir=DIR --mode=eval [--config=...]
  avs-jax train --config=configs/s4_ama.py --mode=plan [--memory=24GiB] [--devices=8]
      [--gpu=rtx_4090]

The same command resumes a run that was interrupted. A workdir takes one training at a time.

For several processes, on one host or many, run the same command in each, with the same --workdir
and --coordinator=HOST:PORT --num_processes=N --process_id=I, or with --coordinator=auto under
Slurm, Open MPI, TPU or Kubernetes.
"""

import sys
from collections.abc import Sequence

from absl import flags

from avs_jax import plan
from avs_jax.evaluate import evaluate_checkpoint
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.command_line import UsageError, checkpoint_config, parse
from avs_jax.runtime.compilation_cache import use_compilation_cache
from avs_jax.runtime.interruption import NotFiniteError
from avs_jax.runtime.processes import distributed_job
from avs_jax.spec import InputError
from avs_jax.stopping import run_as_program, stop_status
from avs_jax.train import train

EXPECTED = (InputError, OSError, NotFiniteError)  # their message is for the user


def main(argv: Sequence[str]) -> None:
    """Runs the program.

    Raises:
      SystemExit: with one message if the command line, configuration, data or checkpoint is
        invalid, the disk is full, or the loss is not finite.
    """
    try:
        line = parse(argv, _define_flags, __doc__, needs_config=False)
        config, values = line.config, line.values
        if config is None and values.mode != "eval":
            raise UsageError("--config is missing; --help lists the flags")
        if values.mode == "plan":
            plan.run(line)
            return
        for name in plan.FLAGS:
            if values[name].value is not None:
                raise UsageError(f"--{name} belongs to --mode=plan, not to --mode={values.mode}")
        if values.workdir is None:
            raise UsageError("--workdir is missing; --help lists the flags")
        with distributed_job(
            values.coordinator, values.num_processes, values.process_id, expected=EXPECTED
        ):
            if values.mode == "train":
                try:
                    train(config, values.workdir, values.coordinator)
                except KeyboardInterrupt:
                    print(f"{values.workdir}: the same command resumes it", file=sys.stderr)
                    raise
                return
            use_compilation_cache()
            checkpoint = Checkpoint.find(values.workdir)
            config, notes = checkpoint_config(line, checkpoint)
            evaluate_checkpoint(config, checkpoint, config.evaluate.split, notes=notes)
    except KeyboardInterrupt as error:
        text, status = stop_status(error)
        print(text, file=sys.stderr)
        raise SystemExit(status) from None
    except EXPECTED as error:
        raise SystemExit(f"error: {error}") from error


def _define_flags(values: flags.FlagValues) -> None:
    def define(kind, name, default, *rest, **options):
        kind(name, default, *rest, flag_values=values, **options)

    define(flags.DEFINE_string, "workdir", None, "directory of the run: checkpoints and logs")
    define(flags.DEFINE_enum, "mode", "train", ["train", "eval", "plan"], "what to do")
    plan.define_flags(values)
    define(flags.DEFINE_string, "coordinator", None, "HOST:PORT of process 0, or auto")
    define(flags.DEFINE_integer, "num_processes", None, "number of processes")
    define(flags.DEFINE_integer, "process_id", None, "index of this process, from 0")


if __name__ == "__main__":
    run_as_program(main, sys.argv)
