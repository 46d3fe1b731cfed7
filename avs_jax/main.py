"""The main program: trains a configuration, evaluates a run, or plans what a run will take.

  python -m avs_jax.main --config=configs/s4_ama.py --workdir=DIR [--config.train.batch_size=4 ...]
  python -m avs_jax.main --workdir=DIR --mode=eval [--config=...]
  python -m avs_jax.main --config=configs/s4_ama.py --mode=plan [--memory=24GiB] [--devices=8]
      [--gpu=rtx_4090]

For several processes, on one host or many, run the same command in each, with the same --workdir
and --coordinator=HOST:PORT --num_processes=N --process_id=I, or with --coordinator=auto under
Slurm, Open MPI, TPU or Kubernetes.
"""

import sys
from collections.abc import Sequence

import jax
from absl import flags

from avs_jax.evaluate import evaluate_checkpoint
from avs_jax.plan import plan
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.command_line import UsageError, checkpoint_config, parse
from avs_jax.runtime.gpus import GPUS
from avs_jax.runtime.interruption import NotFiniteError
from avs_jax.runtime.processes import distributed_job
from avs_jax.spec import InputError
from avs_jax.train import train

PLAN_FLAGS = ("memory", "devices", "gpu")
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
            if values.gpu is not None:  # JAX cannot cache programs compiled without the device
                jax.config.update("jax_enable_compilation_cache", False)
            elif values.devices is not None:
                jax.config.update("jax_platforms", "cpu")
                jax.config.update("jax_num_cpu_devices", values.devices)
            plan(config, values.memory, values.gpu, values.devices or 1)
            return
        for name in PLAN_FLAGS:
            if values[name].value is not None:
                raise UsageError(f"--{name} belongs to --mode=plan, not to --mode={values.mode}")
        if values.workdir is None:
            raise UsageError("--workdir is missing; --help lists the flags")
        job = (values.coordinator, values.num_processes, values.process_id)
        with distributed_job(*job, expected=EXPECTED):
            if values.mode == "train":
                train(config, values.workdir, values.coordinator)
                return
            checkpoint = Checkpoint.find(values.workdir)
            config, notes = checkpoint_config(line, checkpoint)
            evaluate_checkpoint(config, checkpoint, config.evaluate.split, notes=notes)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except EXPECTED as error:
        raise SystemExit(f"error: {error}") from error


def _define_flags(values: flags.FlagValues) -> None:
    def define(kind, name, default, *rest, **options):
        kind(name, default, *rest, flag_values=values, **options)

    define(flags.DEFINE_string, "workdir", None, "directory of the run: checkpoints and logs")
    define(flags.DEFINE_enum, "mode", "train", ["train", "eval", "plan"], "what to do")
    define(flags.DEFINE_string, "memory", None, "plan: memory of a device, such as 24GiB")
    text = "plan: number of simulated devices"
    define(flags.DEFINE_integer, "devices", None, text, lower_bound=1)
    define(flags.DEFINE_enum, "gpu", None, list(GPUS), "plan: for GPUs of this kind, not CPUs")
    define(flags.DEFINE_string, "coordinator", None, "HOST:PORT of process 0, or auto")
    define(flags.DEFINE_integer, "num_processes", None, "number of processes")
    define(flags.DEFINE_integer, "process_id", None, "index of this process, from 0")


if __name__ == "__main__":
    main(sys.argv)
