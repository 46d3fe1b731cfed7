"""Training: one function, `run_steps`, read from top to bottom; then the best checkpoint's reports.

What a run leaves in its directory: checkpoints/ (runtime/run_checkpoints.py), metrics.jsonl and
tensorboard/ (runtime/log.py), evaluation/ (evaluate.py), compilation_cache/. The same call on the
same directory goes on where the last complete checkpoint stands, with the same numbers as if it had
never stopped.
"""

import contextlib
import functools
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from avs_jax.data import pipeline
from avs_jax.evaluate import evaluate_config, find_report
from avs_jax.losses.criterion import compute_losses
from avs_jax.models import build_model
from avs_jax.results.metrics import validation_protocols
from avs_jax.runtime import optim, sharding
from avs_jax.runtime.checkpoint import stored_weights
from avs_jax.runtime.compilation_cache import keep_compiled_in
from avs_jax.runtime.ema import ema_variables
from avs_jax.runtime.log import Log
from avs_jax.runtime.memory import StepBytes
from avs_jax.runtime.parts import fill_parts, fill_variables
from avs_jax.runtime.profile import StepProfiler, WaitClock
from avs_jax.runtime.run_checkpoints import Checkpoints
from avs_jax.runtime.scoring import Evaluation, eval_batch_size, evaluate, make_score_step
from avs_jax.runtime.step import TrainState, init_state, init_variables, make_train_step

VALIDATION_SPLIT = "val"
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}  # of what runs once
NO_DATA = """{error}

AVSBench is not part of this package. Its authors give it out on request, see
https://github.com/OpenNLPLab/AVSBench. With the dataset's folder on this machine, prepare it by
  python scripts/build_dataset.py --dataset={dataset} --manual_dir=FOLDER --data_dir={data_dir}
To see everything work without it, use the `:demo` variant of the configuration
(--config=configs/s4_ama.py:demo): it trains on generated clips, and scripts/demo.sh makes them."""


class NotFiniteError(FloatingPointError):
    """The loss or its gradient is NaN or infinite."""


def train(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Trains as `run_steps` does, then evaluates the best checkpoint on config.train.final_splits.

    The reports are those of --mode=eval, in WORKDIR/evaluation; one that is there stays.

    Args and Raises: of `run_steps`.
    """
    if not run_steps(config, workdir):
        return
    for split in config.train.final_splits:
        for weights in stored_weights(workdir, config.evaluate.weights):
            final = config.copy_and_resolve_references()
            final.evaluate.update(split=split, weights=weights)
            if not find_report(final, workdir).exists():
                evaluate_config(final, workdir)


def run_steps(config: ConfigDict, workdir: str | pathlib.Path) -> bool:
    """Trains `config.train.steps` steps, or the rest of them, with validations in between.

    Ends early where `config.train.patience` validations in a row gave no better score.

    Args:
      config: see configs/base.py.
      workdir: the run's directory; made if need be.

    Returns:
      Whether training is over; False where it was asked to stop before.

    Raises:
      FileNotFoundError: the dataset is not there; tells how to get it.
      ValueError: the configuration does not fit the devices or the checkpoint in `workdir`.
      NotFiniteError: names the step, the loss terms and the last good checkpoint.
    """
    workdir = pathlib.Path(workdir).expanduser().resolve()
    process, num_processes = jax.process_index(), jax.process_count()

    # ---- data: is it there? ----------------------------------------------------------------------
    try:
        splits = ("train", VALIDATION_SPLIT, *config.train.final_splits)
        num_clips = {split: pipeline.num_clips(config, split) for split in splits}
    except FileNotFoundError as error:
        text = NO_DATA.format(
            error=error, dataset=config.data.dataset, data_dir=config.data.data_dir
        )
        raise FileNotFoundError(text) from None

    # ---- devices ---------------------------------------------------------------------------------
    mesh = sharding.make_mesh(config)
    batch_size = config.train.batch_size
    sharding.check_batch_size("config.train.batch_size", batch_size, mesh, config.train.accumulate)
    if config.train.compilation_cache:
        keep_compiled_in(workdir / "compilation_cache")

    # ---- model, loss, optimiser: shapes only -----------------------------------------------------
    model = build_model(config.model)
    criterion = functools.partial(compute_losses, loss_config=config.loss)
    example = pipeline.stack_clips([pipeline.empty_clip(config, is_training=True)])
    init = functools.partial(init_variables, model, seed=config.seed)
    params, batch_stats = jax.eval_shape(init, example)
    optimizer, schedule = optim.make_optimizer(params, config)
    new_state = functools.partial(init_state, optimizer=optimizer, config=config)
    target = jax.eval_shape(new_state, params, batch_stats)
    shardings = sharding.tree_shardings(target, mesh)

    # ---- state: the last checkpoint's, or a new one ----------------------------------------------
    checkpoints = Checkpoints(workdir, config)
    restored = checkpoints.restore(jax.tree.map(_with_sharding, target, shardings))
    if restored is None:
        start_step = 0
        params, batch_stats = jax.jit(
            init,
            out_shardings=(shardings.params, shardings.batch_stats),
            compiler_options=QUICK_COMPILATION,
        )(example)
        if config.train.init_from:
            params, batch_stats, aside = fill_variables(
                params,
                batch_stats,
                config.train.init_from,
                config.train.init_fresh,
                config.train.init_dropped,
            )
            if process == 0:
                listed = "".join(f"\n  {path}" for path in aside) or " nothing"
                print(f"{config.train.init_from}: fresh or not taken:{listed}", file=sys.stderr)
        params, batch_stats, parts = fill_parts(params, batch_stats, config)
        if process == 0 and parts:
            print("pretrained parts:", *parts, sep="\n  ", file=sys.stderr)
        state = jax.jit(new_state, out_shardings=shardings)(params, batch_stats)
        del params, batch_stats
    else:
        state, start_step = restored
    total_steps = config.train.steps

    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        log = Log(workdir, total_steps, batch_size, start_step, enabled=process == 0)
        stack.callback(log.close)
        log.say(
            f"{config.name}: {num_clips['train']} training clips, {num_clips[VALIDATION_SPLIT]} "
            f"for validation, {total_steps} steps of {batch_size} clips\n"
            f"{mesh.size} device(s) of kind {jax.devices()[0].device_kind}, mesh "
            f"{dict(mesh.shape)}, {num_processes} process(es)\n"
            f"learning rate {optim.base_learning_rate(config):.3g}, groups:\n"
            f"{optim.describe_groups(target.params, config)}"
        )
        if restored is not None:
            log.say(f"{workdir}: going on from step {start_step}")
        if start_step >= total_steps:
            log.say("all steps are done")
            return True

        # ---- loaders and compiled functions ------------------------------------------------------
        train_loader = stack.enter_context(
            pipeline.make_train_loader(config, batch_size, process, num_processes, start_step)
        )
        val_loader = stack.enter_context(
            pipeline.make_eval_loader(
                config, VALIDATION_SPLIT, eval_batch_size(config, mesh), process, num_processes
            )
        )
        train_step = make_train_step(model, criterion, optimizer, schedule, config, shardings)
        validation = functools.partial(
            evaluate,
            make_score_step(model, config, mesh),
            loader=val_loader,
            config=config,
            mesh=mesh,
            num_pictures=config.train.num_pictures,
        )
        stop_requested = stack.enter_context(_sigterm_as_request())
        batches = WaitClock(iter(train_loader))
        profiler = StepProfiler(
            workdir, config.profile_steps, start_step, total_steps, enabled=process == 0
        )
        stack.callback(profiler.close)

        def must_evaluate(step):
            return step == total_steps or step % config.train.eval_every == 0

        def is_out_of_patience():
            seen, patience = checkpoints.validation, config.train.patience
            if patience and seen.since_best >= patience:
                log.say(
                    f"stopped: {seen.since_best} evaluations since step {seen.best_step}, whose "
                    f"score of {seen.best:.4f} is the best"
                )
            return bool(patience and seen.since_best >= patience)

        # ---- the evaluation that a stop left out -------------------------------------------------
        if start_step and must_evaluate(start_step) and not checkpoints.is_evaluated(start_step):
            checkpoints.save(state, start_step, _validate(validation, state, start_step, log))
        if is_out_of_patience():
            return True

        # ---- the step, compiled ahead: what it takes is known before it runs ---------------------
        log.say("compiling the training step")
        shapes = sharding.batch_shapes(example, batch_size, mesh)
        train_step, used = compile_ahead(
            train_step, sharding.with_shardings(target, shardings), shapes
        )
        log.say(str(used))
        log.scalars(start_step, used.as_scalars())

        # ---- the loop ----------------------------------------------------------------------------
        metrics, unchecked, clock, clocked_step = None, None, None, start_step
        for step in range(start_step + 1, total_steps + 1):
            batch = batches.next(metrics)
            profiler.before(step)
            batch = sharding.put_batch(batch, mesh)
            with jax.transfer_guard("disallow"):  # nothing else enters or leaves the step
                state, metrics = train_step(state, batch)
            is_last, must_stop = step == total_steps, stop_requested(step)
            is_due = must_evaluate(step) and (is_last or not must_stop)
            must_save = is_due or must_stop or step % config.train.checkpoint_every == 0
            must_log = is_last or step % config.train.log_every == 0
            traced = profiler.after(step, metrics)
            if traced is not None:
                log.say(f"traced for TensorBoard's profiler, up to step {step}: {traced}")

            # One step late, so that the next one is under way while the host waits; at once where
            # something is kept of this step.
            if unchecked is not None:
                _check_finite(*unchecked, checkpoints)
            unchecked = (step, metrics)
            if must_log or must_save:
                _check_finite(step, metrics, checkpoints)
                unchecked = None

            if must_log:
                values = {k: v for k, v in jax.device_get(metrics).items() if k != "finite"}
                seconds = None
                if clock is not None:
                    since_last = time.monotonic() - clock
                    seconds = since_last / (step - clocked_step)
                    values["clips_per_second"] = batch_size / seconds
                    values["data_wait"] = batches.take() / since_last
                log.scalars(step, values)
                log.progress(step, values, seconds)
            if must_log or clock is None:  # the clock starts when the first step is compiled
                jax.block_until_ready(metrics)
                clock, clocked_step = time.monotonic(), step
                batches.take()

            # ---- validation, then its checkpoint -------------------------------------------------
            scores = None
            if is_due:
                begun = time.monotonic()
                scores = _validate(validation, state, step, log)
                clock += time.monotonic() - begun
            if must_save:
                checkpoints.save(state, step, scores)
            if must_stop and not is_last:
                checkpoints.wait()
                log.say(f"asked to stop: saved step {step}; the same command goes on from there")
                return False
            if is_due and is_out_of_patience():
                break

        # ---- the end -----------------------------------------------------------------------------
        checkpoints.wait()
        log.say(f"done: {workdir}")
    return True


def compile_ahead(train_step, state, batch) -> tuple[jax.stages.Compiled, StepBytes]:
    """The compiled step, and what it takes.

    Args:
      train_step: jitted.
      state, batch: ShapeDtypeStructs with shardings.
    """
    compiled = train_step.lower(state, batch).compile()
    return compiled, StepBytes.of(compiled)


def _with_sharding(leaf, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _validate(
    validation: Callable[..., Evaluation], state: TrainState, step: int, log: Log
) -> dict[str, float]:
    """Scores the parameters and, where there is one, their average; logs both.

    Args:
      validation: `evaluate` of the validation split, but for its variables and title.

    Returns:
      What the checkpoint keeps of it: measure -> number by the first protocol, of the average if
      there is one, and then "raw_" measures, of the parameters.
    """
    kinds = {"raw": (state.params, state.batch_stats)}
    if state.ema:
        kinds["ema"] = ema_variables(state.params, state.ema)
    kept: dict[str, float] = {}
    for weights, variables in kinds.items():
        name = VALIDATION_SPLIT if weights == "raw" else f"{VALIDATION_SPLIT}_{weights}"
        what = f"validation at step {step}" + ("" if len(kinds) == 1 else f", {weights} parameters")
        result = validation(variables=variables, title=what)
        protocols = validation_protocols(result.counts)
        main, scores = next(iter(protocols.items()))
        log.scalars(
            step,
            {
                f"{name}/{protocol}/{measure}": value
                for protocol, measures in protocols.items()
                for measure, value in measures.items()
            },
        )
        log.pictures(step, {f"{name}/{k}": v for k, v in result.pictures.items()})
        numbers = ", ".join(f"{measure} {value:.4f}" for measure, value in scores.items())
        log.say(f"{what}, {main}: {numbers}")
        kept = {f"raw_{measure}": value for measure, value in kept.items()} | scores
    return kept


def _check_finite(step: int, metrics: Mapping[str, jax.Array], checkpoints: Checkpoints) -> None:
    if jax.device_get(metrics["finite"]):
        return
    checkpoints.wait()
    good = checkpoints.latest_step
    terms = {k: float(v) for k, v in jax.device_get(metrics).items() if k != "finite"}
    where = "there is none yet" if good is None else str(checkpoints.directory / str(good))
    raise NotFiniteError(
        f"step {step}: the loss or its gradient is not finite; last good checkpoint: {where}; "
        f"terms: {terms}"
    )


@contextlib.contextmanager
def _sigterm_as_request():
    """Yields a function of the step: has the process, or another one of the job, got SIGTERM?"""
    if jax.process_count() > 1:  # JAX's own service makes all processes stop at the same step
        yield multihost_utils.reached_preemption_sync_point
        return
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: requested.is_set()
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: requested.set())
    try:
        yield lambda step: requested.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)
