"""The keys that all tasks share, with their meaning: location of data, optimizer, run, reports.

A task adds its own (configs/segment.py), and so do the chosen parts of a model (configs/parts.py).
On the command line: `--config=configs/s4_ama.py --config.train.batch_size=4`; an unknown key is an
error.
"""

from collections.abc import Callable

from ml_collections import ConfigDict


def base_config() -> ConfigDict:
    """A run without a task."""
    config = ConfigDict()
    config.name = ""  # of the recipe
    config.task = ""  # a page of avs_jax/tasks
    config.seed = 8434882  # VCT's
    config.profile_steps = 0  # steps to trace after the warm-up, for TensorBoard; 0: none

    # ---- data: where the records are and how they are read ----
    data = config.data = ConfigDict()
    data.dataset = ""  # TFDS builder
    data.data_dir = "~/tensorflow_datasets"  # where `avs-jax data build` put the records
    data.num_workers = 2  # loader processes; 0 = in the training process
    data.prefetch = 4  # batches each worker keeps ready

    # ---- optimizer ----
    optim = config.optim = ConfigDict()
    optim.learning_rate = 0.0  # 0: 1e-4 * sqrt(batch_size / 2)
    optim.weight_decay = 0.05
    optim.clip_norm = 0.01  # of the whole gradient
    optim.warmup_steps = 0
    optim.power = 0.9  # of the polynomial decay to 0
    # storage of Adam's first moment: "float32" | "bfloat16" (half the bytes; optim.py)
    optim.moment_dtype = "float32"
    # (path regex, learning-rate factor, weight-decay factor); the first match counts
    optim.groups = ((r".*", 1.0, 1.0),)
    optim.frozen = ()  # path regexes of parameters that are not trained

    # ---- training ----
    train = config.train = ConfigDict()
    train.steps = 45_000
    train.batch_size = 2  # rows, over all devices
    train.accumulate = 1  # micro-batches per step
    # of an average of the parameters, evaluated too and preferred (runtime/ema.py); 0: none
    train.ema_decay = 0.0
    train.mesh = ConfigDict()
    train.mesh.data = -1  # devices along the batch axis; -1: all remaining
    train.mesh.fsdp = 1  # devices that share parameters and optimizer state
    train.log_every = 20
    train.eval_every = 1000
    train.checkpoint_every = 500
    train.keep_latest = 2
    train.patience = 0  # stop after this many evaluations without a better score; 0: never
    train.final_splits = ("val", "test")  # for the best checkpoint, at the end
    train.num_pictures = 4  # validation rows drawn at every evaluation
    train.compilation_cache = True  # keep compiled programs in ~/.cache/avs_jax
    train.init_from = ""  # checkpoint or converted weights to start from; "": random
    train.init_fresh = ()  # path regexes that keep their random values under init_from
    train.init_dropped = ()  # path regexes of init_from's tensors that this model does not have

    # ---- pretrained components: path prefix of the parameters -> folder of converted weights;
    # they override train.init_from ----
    config.init = ConfigDict()

    # ---- evaluation ----
    evaluate = config.evaluate = ConfigDict()
    evaluate.batch_size = 2  # rows read at once; each device computes one at a time
    evaluate.split = "test"  # of --mode=eval
    # "raw": the parameters; "ema": their average; "auto": if a checkpoint has both, prediction uses
    # the average and evaluation scores both
    evaluate.weights = "auto"
    evaluate.num_pictures = 8  # figures drawn per condition
    return config


def check_variant(variant: str, *choices: str) -> None:
    """Raises if --config=FILE.py:VARIANT names an unknown variant."""
    if variant and variant not in choices:
        raise ValueError(f"variant {variant!r}: choose nothing or one of {', '.join(choices)}")


def vary(
    config: ConfigDict,
    variant: str,
    shrink_for_demo: Callable[[ConfigDict], None],
    shrink_to_tiny: Callable[[ConfigDict], None],
) -> ConfigDict:
    """The recipe, or its variant: `:demo` is shrunk once, `:tiny` twice."""
    check_variant(variant, "demo", "tiny")
    if variant:
        shrink_for_demo(config)
    if variant == "tiny":
        shrink_to_tiny(config)
    return config


def shrink_run_to_tiny(config: ConfigDict) -> None:
    """What all `:tiny` variants share: four steps, started quickly."""
    config.name = config.name.replace("_demo", "_tiny")
    config.data.num_workers = 0
    config.train.update(steps=4, batch_size=8, log_every=1, eval_every=4, checkpoint_every=2)
    config.train.compilation_cache = False
