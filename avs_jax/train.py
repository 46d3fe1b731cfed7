"""Training: `run_steps`, and then the best checkpoint's reports.

What a run leaves in its directory: checkpoints/ (runtime/run_checkpoints.py), metrics.jsonl and
tensorboard/ (runtime/log.py), evaluation/ (evaluate.py), compilation_cache/. The same call on the
same directory goes on where the last complete checkpoint stands, with the same numbers as if it had
never stopped.
"""

import contextlib
import dataclasses
import functools
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from avs_jax.data import pipeline
from avs_jax.evaluate import evaluate_config, find_report
from avs_jax.results.metrics import validation_protocols
from avs_jax.runtime import optim, sharding
from avs_jax.runtime.blueprint import Blueprint, make_blueprint
from avs_jax.runtime.checkpoint import stored_weights
from avs_jax.runtime.compilation_cache import enable_compilation_cache
from avs_jax.runtime.ema import ema_variables
from avs_jax.runtime.log import Log
from avs_jax.runtime.memory import StepBytes
from avs_jax.runtime.pretrained import init_from_checkpoint, load_parts
from avs_jax.runtime.profile import StepProfiler, StepSpeed, WaitClock
from avs_jax.runtime.run_checkpoints import Checkpoints
from avs_jax.runtime.scoring import Evaluation, eval_batch_size, evaluate, make_score_step
from avs_jax.runtime.step import TrainState

VALIDATION_SPLIT = "val"
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
    num_clips = _count_clips(config)
    mesh = sharding.make_mesh(config)
    sharding.check_batch_size(
        "config.train.batch_size", config.train.batch_size, mesh, config.train.accumulate
    )
    if config.train.compilation_cache:
        enable_compilation_cache(workdir / "compilation_cache")
    blueprint = make_blueprint(config, mesh)

    checkpoints = Checkpoints(workdir, config)
    restored = checkpoints.restore(blueprint.state)
    state, start_step = (_first_state(blueprint), 0) if restored is None else restored

    total_steps, is_first = config.train.steps, jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        log = Log(workdir, total_steps, config.train.batch_size, start_step, enabled=is_first)
        stack.callback(log.close)
        log.say(_describe(blueprint, num_clips))
        if restored is not None:
            log.say(f"{workdir}: going on from step {start_step}")
        if start_step >= total_steps:
            log.say("all steps are done")
            return True

        train_loader, val_loader = _open_loaders(config, mesh, start_step, stack)
        batches = iter(train_loader)
        validation = functools.partial(
            evaluate,
            make_score_step(blueprint.model, config, mesh),
            loader=val_loader,
            config=config,
            mesh=mesh,
            num_pictures=config.train.num_pictures,
        )
        stop_requested = stack.enter_context(_sigterm_as_request())
        profiler = StepProfiler(
            workdir, config.profile_steps, start_step, total_steps, enabled=is_first
        )
        stack.callback(profiler.close)
        run = _Run(config, mesh, checkpoints, log, validation, profiler, stop_requested)

        if (
            start_step
            and run.must_evaluate(start_step)
            and not checkpoints.is_evaluated(start_step)
        ):
            # A stop left this evaluation out.
            checkpoints.save(state, start_step, run.validate(state, start_step))
        if run.is_out_of_patience():
            return True

        log.say("compiling the training step")  # ahead: what it takes is known before it runs
        train_step, used = compile_ahead(
            blueprint.make_train_step(), blueprint.state, blueprint.batch_shapes()
        )
        log.say(str(used))
        log.scalars(start_step, used.as_scalars())

        is_over = run.take_steps(train_step, state, start_step, batches)
        if is_over:
            checkpoints.wait()
            log.say(f"done: {workdir}")
    return is_over


def _count_clips(config: ConfigDict) -> dict[str, int]:
    """Clips of every split that the run reads.

    Raises:
      FileNotFoundError: the dataset is not there; tells how to get it.
    """
    splits = ("train", VALIDATION_SPLIT, *config.train.final_splits)
    try:
        return {split: pipeline.num_clips(config, split) for split in splits}
    except FileNotFoundError as error:
        text = NO_DATA.format(
            error=error, dataset=config.data.dataset, data_dir=config.data.data_dir
        )
        raise FileNotFoundError(text) from None


def _first_state(blueprint: Blueprint) -> TrainState:
    """The state of a new run: random values, and what config.train.init_from and .init replace."""
    config, say_it = blueprint.config, jax.process_index() == 0
    params, batch_stats = blueprint.init_variables()
    if config.train.init_from:
        params, batch_stats, aside = init_from_checkpoint(
            params,
            batch_stats,
            config.train.init_from,
            config.train.init_fresh,
            config.train.init_dropped,
        )
        if say_it:
            listed = "".join(f"\n  {path}" for path in aside) or " nothing"
            print(f"{config.train.init_from}: fresh or not taken:{listed}", file=sys.stderr)
    params, batch_stats, parts = load_parts(params, batch_stats, config)
    if say_it and parts:
        print("pretrained parts:", *parts, sep="\n  ", file=sys.stderr)
    return blueprint.init_state(params, batch_stats)


def _describe(blueprint: Blueprint, num_clips: Mapping[str, int]) -> str:
    """What is going to be trained, on what."""
    config, mesh = blueprint.config, blueprint.mesh
    return (
        f"{config.name}: {num_clips['train']} training clips, {num_clips[VALIDATION_SPLIT]} "
        f"for validation, {config.train.steps} steps of {config.train.batch_size} clips\n"
        f"{mesh.size} device(s) of kind {jax.devices()[0].device_kind}, mesh "
        f"{dict(mesh.shape)}, {jax.process_count()} process(es)\n"
        f"learning rate {optim.base_learning_rate(config):.3g}, groups:\n"
        f"{optim.describe_groups(blueprint.state.params, config)}"
    )


def _open_loaders(config: ConfigDict, mesh: Mesh, start_step: int, stack: contextlib.ExitStack):
    """The loaders of training, from `start_step` on, and of validation; `stack` closes them."""
    share = jax.process_index(), jax.process_count()
    train_loader = pipeline.make_train_loader(config, config.train.batch_size, *share, start_step)
    stack.enter_context(train_loader)
    val_loader = pipeline.make_eval_loader(
        config, VALIDATION_SPLIT, eval_batch_size(config, mesh), *share
    )
    stack.enter_context(val_loader)
    return train_loader, val_loader


class _Due(NamedTuple):
    """What comes after one step. An evaluation that a stop leaves out is made up for later."""

    log: bool
    evaluate: bool
    save: bool
    stop: bool


@dataclasses.dataclass(frozen=True)
class _Run:
    """The steps of a run, and what comes after each: log line, validation, checkpoint, the end.

    Attributes:
      validation: `evaluate` of the validation split, but for its variables and title.
      stop_requested: step -> whether the run was asked to stop.
    """

    config: ConfigDict
    mesh: Mesh
    checkpoints: Checkpoints
    log: Log
    validation: Callable[..., Evaluation]
    profiler: StepProfiler
    stop_requested: Callable[[int], bool]

    def must_evaluate(self, step: int) -> bool:
        """Whether this step's parameters are scored on the validation split."""
        return step == self.config.train.steps or step % self.config.train.eval_every == 0

    def validate(self, state: TrainState, step: int) -> dict[str, float]:
        """Scores on the validation split: what the checkpoint keeps of them."""
        return _validate(self.validation, state, step, self.log)

    def is_out_of_patience(self) -> bool:
        """Whether enough evaluations in a row gave no better score; says so."""
        seen, patience = self.checkpoints.validation, self.config.train.patience
        if not patience or seen.since_best < patience:
            return False
        self.log.say(
            f"stopped: {seen.since_best} evaluations since step {seen.best_step}, whose score of "
            f"{seen.best:.4f} is the best"
        )
        return True

    def take_steps(
        self, train_step: Callable, state: TrainState, start_step: int, batches: Iterator
    ) -> bool:
        """Trains from `start_step` to the last step, or to where the run is asked or has to stop.

        Args:
          train_step: compiled.
          state: after `start_step` steps; donated.
          start_step: steps done before.
          batches: of the steps that follow, host arrays.

        Returns:
          Whether training is over; False where it was asked to stop before.

        Raises:
          NotFiniteError: names the step, the loss terms and the last good checkpoint.
        """
        waits = WaitClock(batches)
        speed = StepSpeed(waits, self.config.train.batch_size)
        finite = _FiniteCheck(self.checkpoints)
        metrics = None
        for step in range(start_step + 1, self.config.train.steps + 1):
            batch = waits.next(metrics)
            self.profiler.before(step)
            batch = sharding.put_batch(batch, self.mesh)
            with jax.transfer_guard("disallow"):  # nothing else enters or leaves the step
                state, metrics = train_step(state, batch)
            due = self._due_after(step)
            traced = self.profiler.after(step, metrics)
            if traced is not None:
                self.log.say(f"traced for TensorBoard's profiler, up to step {step}: {traced}")
            finite.check(step, metrics, at_once=due.log or due.save)

            if due.log:
                self._log_step(step, metrics, speed)
            if due.log or not speed.is_measuring:
                jax.block_until_ready(metrics)
                speed.restart(step)
            scores = None
            if due.evaluate:
                with speed.paused():
                    scores = self.validate(state, step)
            if due.save:
                self.checkpoints.save(state, step, scores)

            if due.stop:
                self.checkpoints.wait()
                self.log.say(
                    f"asked to stop: saved step {step}; the same command goes on from there"
                )
                return False
            if due.evaluate and self.is_out_of_patience():
                break
        return True

    def _due_after(self, step: int) -> _Due:
        train = self.config.train
        is_last = step == train.steps
        stop = self.stop_requested(step) and not is_last
        must_evaluate = self.must_evaluate(step) and not stop
        return _Due(
            log=is_last or step % train.log_every == 0,
            evaluate=must_evaluate,
            save=must_evaluate or stop or step % train.checkpoint_every == 0,
            stop=stop,
        )

    def _log_step(self, step: int, metrics: Mapping[str, jax.Array], speed: StepSpeed) -> None:
        values = {k: v for k, v in jax.device_get(metrics).items() if k != "finite"}
        measured, seconds = speed.at(step)
        values |= measured
        self.log.scalars(step, values)
        self.log.progress(step, values, seconds)


class _FiniteCheck:
    """Ends a run whose loss or gradient is NaN or infinite.

    One step late, so that the next one is under way while the host waits; at once where something
    is kept of the step.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._unchecked: tuple[int, Mapping[str, jax.Array]] | None = None

    def check(self, step: int, metrics: Mapping[str, jax.Array], at_once: bool) -> None:
        """Looks at the step before this one, and at this one if `at_once`.

        Raises:
          NotFiniteError: names the step, the loss terms and the last good checkpoint.
        """
        if self._unchecked is not None:
            self._raise_unless_finite(*self._unchecked)
        self._unchecked = (step, metrics)
        if at_once:
            self._raise_unless_finite(step, metrics)
            self._unchecked = None

    def _raise_unless_finite(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        if jax.device_get(metrics["finite"]):
            return
        self._checkpoints.wait()
        good = self._checkpoints.latest_step
        where = "there is none yet" if good is None else self._checkpoints.directory / str(good)
        terms = {k: float(v) for k, v in jax.device_get(metrics).items() if k != "finite"}
        raise NotFiniteError(
            f"step {step}: the loss or its gradient is not finite; last good checkpoint: {where}; "
            f"terms: {terms}"
        )


def compile_ahead(train_step, state, batch) -> tuple[jax.stages.Compiled, StepBytes]:
    """The compiled step, and what it takes.

    Args:
      train_step: jitted.
      state, batch: ShapeDtypeStructs with shardings.
    """
    compiled = train_step.lower(state, batch).compile()
    return compiled, StepBytes.of(compiled)


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
