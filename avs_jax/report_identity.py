"""A report's identity: the name of its folder, and the checkpoint or predictions that it is of.

  ROOT/evaluation/STEP_DATASET_SPLIT_WEIGHTS_DIGEST   of a checkpoint
  ROOT/evaluation/DATASET_SPLIT_DIGEST                of files of predictions

DIGEST covers the keys of the configuration that change a number, and paths by what they hold. The
facts in report.json say what was scored; a checkpoint's checksum, where it has one, tells it from
another at the same path.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from avs_jax.data.input_files import read_json
from avs_jax.data.tokens import tokenizer_files
from avs_jax.data.trunk_features import TrunkFeatures
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.stored_config import NUMBER_KEYS, digest
from avs_jax.spec import InputError

PREDICTION_KEYS = (  # of what the files are compared with, and how
    r"data\.(dataset|num_frames|num_classes|num_annotators|clip_seconds)",
    r"evaluate\.(score_size|protocol)",
)


def report_folder(
    config: ConfigDict,
    checkpoint: Checkpoint,
    split: str,
    weights: str,
    output: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """OUTPUT/evaluation/STEP_DATASET_SPLIT_WEIGHTS_DIGEST, the folder of `evaluate_split`.

    OUTPUT defaults to the checkpoint's workdir or the directory of converted weights.
    """
    root = checkpoint.run_directory if output is None else pathlib.Path(output).expanduser()
    dataset = config.data.dataset.replace("/", "-")
    name = f"{checkpoint.name}_{dataset}_{split}_{weights}_{number_digest(config)}"
    return root / "evaluation" / name


def predictions_folder(config: ConfigDict, root: str | pathlib.Path, split: str) -> pathlib.Path:
    """The folder of `evaluate_predictions`."""
    code = digest(config, PREDICTION_KEYS)[:8]
    name = f"{config.data.dataset.replace('/', '-')}_{split}_{code}"
    return pathlib.Path(root).expanduser() / "evaluation" / name


def number_digest(config: ConfigDict) -> str:
    """Eight hex digits that identify everything in the configuration that affects numbers."""
    code = digest(_with_contents(config), NUMBER_KEYS)
    if config.evaluate.get("manifest"):
        content = pathlib.Path(config.evaluate.manifest).expanduser().read_bytes()
        code = hashlib.sha256(code.encode() + content).hexdigest()
    return code[:8]


def has_report(folder: pathlib.Path, checkpoint: Checkpoint) -> bool:
    """Whether a `report_folder` holds the report of these parameters.

    Reports and checkpoints that are older than checksums count as each other's.
    """
    facts = _stored_facts(folder)
    if facts is None:
        return False
    found, wanted = facts.get("checksum"), checkpoint.checksum
    return found is None or wanted is None or found == wanted


def check_same_source(folder: pathlib.Path, kind: str, scored: Mapping[str, str]) -> None:
    """Raises InputError if a folder has the report of another checkpoint or other predictions.

    Args:
      kind: "checkpoint" or "predictions"; a key of the facts, whose value is a path.
      scored: the facts of what is to be scored. Checksums tell checkpoints apart, or paths where a
        checksum is missing.
    """
    facts = _stored_facts(folder)
    if facts is None:
        return
    key = "checksum" if "checksum" in facts and "checksum" in scored else kind
    if facts.get(key) != scored[key]:
        old, new = (
            " ".join(x for x in (f.get(kind), f.get("checksum")) if x) for f in (facts, scored)
        )
        raise InputError(
            f"{folder} is the report of the {kind} {old}, not of {new}; choose another "
            "--output, or remove that folder"
        )


def _with_contents(config: ConfigDict) -> ConfigDict:
    """The configuration with what its paths hold in place of the paths."""
    config = config.copy_and_resolve_references()
    data, text = config.data, config.data.get("text", {})
    if data.get("trunk_features"):
        folder = data.trunk_features
        data.trunk_features = data.get("trunk_key") or TrunkFeatures(folder, data.image_size).key
    for name in ("tokenizer", "path"):
        if not text.get(name):
            continue
        if text.source == "tiny" and text.get("words"):
            text[name] = ""  # not read: the words are in the configuration
        else:
            content = b"".join(file.read_bytes() for file in tokenizer_files(text[name]))
            text[name] = hashlib.sha256(content).hexdigest()
    return config


def _stored_facts(folder: pathlib.Path) -> dict[str, Any] | None:
    """The facts of a folder's report, None without a report."""
    file = folder / "report.json"
    return read_json(file).get("facts", {}) if file.is_file() else None
