"""Training: one function, read from top to bottom.

A run writes checkpoints/ (runtime/run_checkpoints.py), metrics.jsonl and tensorboard/
(runtime/log.py) and evaluation/ (evaluate.py) to its workdir. The same call on the same workdir
resumes from the last complete checkpoint, with the numbers of an uninterrupted run.
"""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from avs_jax.data.pipeline import EvalBatches, Loader, TrainBatches
from avs_jax.data.records import open_records
from avs_jax.evaluate import evaluate_split
from avs_jax.report_identity import has_report, report_folder
from avs_jax.runtime import optim, sharding
from avs_jax.runtime.checkpoint import FOLDER, Checkpoint, newest_config, step_directories
from avs_jax.runtime.compilation_cache import announce_compilation, use_compilation_cache
from avs_jax.runtime.ema import ema_variables
from avs_jax.runtime.evaluation import eval_batch_size, evaluate, make_eval_step
from avs_jax.runtime.interruption import FiniteCheck, sigterm_as_request
from avs_jax.runtime.lock import locked
from avs_jax.runtime.log import Log
from avs_jax.runtime.memory import compile_ahead
from avs_jax.runtime.pretrained import (
    check_sources,
    frozen_at_random,
    init_from_checkpoint,
    load_parts,
)
from avs_jax.runtime.process_memory import ProcessMemory, return_freed_memory
from avs_jax.runtime.profile import DataWaitTimer, StepProfiler, StepSpeed
from avs_jax.runtime.run_checkpoints import Checkpoints
from avs_jax.runtime.run_config import check_run_config
from avs_jax.runtime.setup import TrainSetup, make_train_setup
from avs_jax.runtime.step import TrainState
from avs_jax.stopping import sigterm_as_interrupt
from avs_jax.task import Record, select
from avs_jax.tasks import complete_config, make_task

VALIDATION_SPLIT = "val"
NO_DATA = """{error}

docs/data.md says where to get the dataset. With its folder on this machine, prepare it by
  avs-jax data build --dataset={dataset} --manual_dir=FOLDER --data_dir={data_dir}
To see everything work without it, run scripts/demo.sh, which generates clips."""


def train(config: ConfigDict, workdir: str | pathlib.Path, coordinator: str | None = None) -> bool:
    """Trains to `config.train.steps` steps, then evaluates the best checkpoint.

    Stops early after `config.train.patience` validations in a row without a better score. The best
    checkpoint is evaluated on config.train.final_splits; existing reports are kept.

    Args:
      config: see configs/base.py.
      workdir: the run's directory, created if missing.
      coordinator: address that the processes of the job share, named where a second job is refused.

    Returns:
      Whether training is finished; False if it was asked to stop.

    Raises:
      FileNotFoundError: the dataset is missing; says how to get it.
      InputError: the configuration does not fit the devices or the run, or another process is
        training in this workdir.
      interruption.NotFiniteError: the loss or its gradient is NaN or infinite.
    """
    with contextlib.ExitStack() as stack:
        # ---- devices ----
        check_run_config(config)
        workdir, is_first = pathlib.Path(workdir).expanduser().resolve(), jax.process_index() == 0
        total_steps, mesh = config.train.steps, sharding.make_mesh(config)
        batch_size, accumulate = config.train.batch_size, config.train.accumulate
        sharding.check_batch_size("config.train.batch_size", batch_size, mesh, accumulate)

        # ---- task and data ----
        records = _open_splits(config)
        config = complete_config(config, newest_config(workdir))
        task = make_task(config)
        if not step_directories(workdir / FOLDER):
            check_sources(config)
        stack.enter_context(locked(workdir, "training", coordinator))
        if config.train.compilation_cache:
            use_compilation_cache()

        # ---- setup: model, loss and optimizer meet in the step; shapes only ----
        if is_first:
            print(f"{config.name}: building the model", file=sys.stderr, flush=True)
        setup = make_train_setup(task.model, task.loss, optim.make_optimizer, task, config, mesh)
        train_step = setup.make_train_step()

        # ---- restore ----
        checkpoints = Checkpoints(workdir, config, task.measure)
        stack.callback(checkpoints.close)
        until_reports = stack.enter_context(contextlib.ExitStack())
        restored = checkpoints.restore(setup.state)
        state, start_step = (_first_state(setup), 0) if restored is None else restored
        log = Log(workdir, total_steps, batch_size, start_step, enabled=is_first)
        stack.callback(log.close)
        log.say(_describe(setup, records))
        if restored is not None:
            log.say(f"{workdir}: resuming from step {start_step}")
        is_over = start_step >= total_steps
        if is_over:
            log.say("all steps are done")

        # ---- validation ----
        eval_step, size = make_eval_step(task, mesh), eval_batch_size(config, mesh)
        val_records, figures = records[VALIDATION_SPLIT], config.train.num_pictures
        batches = EvalBatches(
            val_records, task.rows, size, jax.process_index(), jax.process_count()
        )
        val_loader = stack.enter_context(Loader(batches, prefetch=config.data.prefetch))
        score = functools.partial(evaluate, task, eval_step, loader=val_loader, mesh=mesh)

        def validate(state: TrainState, step: int) -> dict[str, float]:
            """Scores the parameters and their average, if there is one, and logs both.

            Returns the first protocol's measures for the checkpoint. With an average, they are the
            average's, and "raw_" measures are those of the parameters.
            """
            kinds = {"raw": (state.params, state.batch_stats)}
            if state.ema:
                kinds["ema"] = ema_variables(state.params, state.ema)
            kept: dict[str, float] = {}
            for weights, variables in kinds.items():
                name = VALIDATION_SPLIT + ("" if weights == "raw" else f"_{weights}")
                what = f"validation at step {step}, {weights} parameters"
                result = score(variables, title=what, num_figures=figures, records=val_records)
                protocols = (task.validation or task.protocols)(result.table)
                main, scores = next(iter(protocols.items()))
                flat = flatten_dict({name: protocols}, sep="/")
                log.scalars(step, {k: v for k, v in flat.items() if v is not None})
                log.pictures(step, {f"{name}/{k}": v for k, v in result.figures.items()})
                scores = {k: value for k, value in scores.items() if value is not None}
                log.say(f"{what}, {main}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
                kept = {f"raw_{measure}": value for measure, value in kept.items()} | scores
            return kept

        def must_validate(step: int) -> bool:
            return step == total_steps or step % config.train.eval_every == 0

        def is_out_of_patience() -> bool:
            history, patience = checkpoints.validation, config.train.patience
            if not patience or history.since_best < patience:
                return False
            log.say(
                f"stopped: {history.since_best} evaluations since step {history.best_step}, whose "
                f"score of {history.best:.4f} is the best"
            )
            return True

        if start_step and not is_over:
            if must_validate(start_step) and not checkpoints.is_evaluated(start_step):
                # A stop skipped this evaluation.
                checkpoints.save(state, start_step, validate(state, start_step))
            is_over = is_out_of_patience()

        # ---- loop ----
        asked = False
        if not is_over:
            if is_first:
                announce_compilation(
                    "the training step", "1 to 5 minutes on a CPU (XLA may warn that this is slow)"
                )
            train_step, used = compile_ahead(train_step, *setup.step_shapes())
            log.say(str(used))
            log.scalars(start_step, used.as_scalars())
            _return_compiler_memory(log, start_step)
            batches = TrainBatches(
                records["train"],
                task.rows,
                batch_size,
                config.seed,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                start_step=start_step,
                alter=task.alter(records["train"]),
            )
            workers, prefetch = config.data.num_workers, config.data.prefetch
            train_loader = stack.enter_context(Loader(batches, workers, prefetch))
            stop_requested = until_reports.enter_context(sigterm_as_request())
            profiler = StepProfiler(
                workdir, config.profile_steps, start_step, total_steps, enabled=is_first
            )
            stack.callback(profiler.close)
            seed = setup.seed()
            waits, finite = DataWaitTimer(iter(train_loader)), FiniteCheck(checkpoints)
            speed, metrics = StepSpeed(waits, batch_size), None

            for step in range(start_step + 1, total_steps + 1):
                batch = waits.next(metrics)
                profiler.before(step)
                batch = sharding.put_batch(select(batch, task.rows.fields, "input", "target"), mesh)
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, batch, seed)
                is_last = step == total_steps
                asked = stop_requested(step)
                stop = asked and not is_last
                must_log = is_last or step % config.train.log_every == 0
                validates = must_validate(step) and not stop  # the resumed run validates instead
                saves = validates or stop or step % config.train.checkpoint_every == 0
                traced = profiler.after(step, metrics)
                if traced is not None:
                    log.say(f"traced for TensorBoard's profiler, up to step {step}: {traced}")
                finite.check(step, metrics, at_once=must_log or saves)

                if must_log:
                    values = {k: v for k, v in jax.device_get(metrics).items() if k != "finite"}
                    measured, seconds = speed.at(step)
                    log.scalars(step, values | measured)
                    log.progress(step, values | measured, seconds)
                if must_log or not speed.is_measuring:
                    jax.block_until_ready(metrics)
                    speed.restart(step)
                scores = None
                if validates:
                    with speed.paused():
                        scores = validate(state, step)
                if saves:
                    checkpoints.save(state, step, scores)
                if stop:
                    checkpoints.wait()
                    log.say(f"asked to stop: saved step {step}; the same command resumes from it")
                    return False
                if validates and is_out_of_patience():
                    break

        # ---- reports ----
        checkpoints.wait()
        if asked:
            log.say("asked to stop: all steps are done; the same command scores the best one")
            return False
        log.say(f"done: {workdir}")
        until_reports.close()
        best = Checkpoint.find(workdir)
        with sigterm_as_interrupt():  # an evaluation keeps what it has finished
            for split in config.train.final_splits:
                for weights in best.choose_weights(config.evaluate.weights):
                    if not has_report(report_folder(config, best, split, weights), best):
                        evaluate_split(config, best, split, weights, records=records[split])
    return True


def _open_splits(config: ConfigDict) -> dict[str, Sequence[Record]]:
    """The records of every split of the run; the error for missing data says how to get it."""
    splits = ("train", VALIDATION_SPLIT, *config.train.final_splits)
    try:
        return {split: open_records(config, split) for split in splits}
    except FileNotFoundError as error:
        text = NO_DATA.format(
            error=error, dataset=config.data.dataset, data_dir=config.data.data_dir
        )
        raise FileNotFoundError(text) from None


def _first_state(setup: TrainSetup) -> TrainState:
    """The state of a new run: random, config.train.init_from, then config.init."""
    config, is_first = setup.config, jax.process_index() == 0
    variables, source = setup.init_variables(), config.train.init_from
    if source:
        *variables, unused = init_from_checkpoint(
            *variables, source, fresh=config.train.init_fresh, dropped=config.train.init_dropped
        )
        if is_first:
            listed = "".join(f"\n  {path}" for path in unused) or " nothing"
            print(f"{source}: fresh or not taken:{listed}", file=sys.stderr)
    params, batch_stats, loaded = load_parts(*variables, config)
    if is_first and not source:
        loaded = loaded or ["none, all values are random"]
    if is_first and loaded:
        print("pretrained components:", *loaded, sep="\n  ", file=sys.stderr)
    if is_first:
        for line in frozen_at_random(params, config):
            print(f"warning: {line}", file=sys.stderr)
    return setup.init_state(params, batch_stats)


def _describe(setup: TrainSetup, records: Mapping[str, Sequence[Record]]) -> str:
    config, mesh = setup.config, setup.mesh
    return (
        f"{config.name}: {len(records['train'])} training clips, "
        f"{len(records[VALIDATION_SPLIT])} for validation, {config.train.steps} steps of "
        f"{config.train.batch_size} clips\n"
        f"{mesh.size} device(s) of kind {jax.devices()[0].device_kind}, mesh "
        f"{dict(mesh.shape)}, {jax.process_count()} process(es)\n"
        f"learning rate {optim.base_learning_rate(config):.3g}, groups:\n"
        f"{optim.describe_groups(setup.state.params, config)}"
    )


def _return_compiler_memory(log: Log, step: int) -> None:
    """Returns the memory that the compiler freed to the system, and logs that of the process."""
    before = ProcessMemory.now()
    return_freed_memory()
    after = ProcessMemory.now()
    if before is not None and after is not None:
        log.say(
            f"memory of the process: {before}; "
            f"after returning the compiler's memory to the system: {after}"
        )
        log.scalars(step, before.as_scalars("compiled") | after.as_scalars("returned"))
