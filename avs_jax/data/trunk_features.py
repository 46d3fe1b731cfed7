"""Maps of a frozen image encoder, computed once per clip: training then costs only what is trained.

  DIR/features.json   what made them: digest of the weights, image size, shapes of the three maps
  DIR/NAME.npy        float16 [T, n], a row per frame: its maps, flat, one after another; NAME is a
                      hash of the clip's frames, since clips of other datasets may have its id

scripts/cache_features.py writes them. A clip's maps are those of its frames as evaluated, so
training must not augment images. Expressions of one clip share its maps.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.data.clip import ClipRows
from avs_jax.data.decode import decode_text
from avs_jax.data.expressions import ExpressionRows
from avs_jax.data.input_files import read_json
from avs_jax.files import atomic_file, write_atomically
from avs_jax.spec import TRUNK_MAPS, Field, InputError
from avs_jax.task import Record, Row

FACTS = "features.json"
NAMED_BY = "frames"  # of the files; earlier ones had the clips' ids
DTYPE = np.float16
UNAUGMENTED = {"crop": False, "color": False, "flip": 0.0}


class TrunkFeatures:
    """The folder, for reading.

    Attributes:
      key: digest of the weights that made the maps.
      shapes: name -> (h, w, C), in the order of the files.
    """

    def __init__(self, directory: str | os.PathLike, image_size: int):
        self._folder = pathlib.Path(directory).expanduser()
        if not (self._folder / FACTS).is_file():
            raise InputError(
                f"config.data.trunk_features = {str(directory)!r}: no {FACTS} there; "
                "scripts/cache_features.py writes it"
            )
        facts = read_facts(self._folder)
        if facts["image_size"] != image_size:
            raise InputError(
                f"{self._folder} holds features of images of {facts['image_size']} px, "
                f"config.data.image_size is {image_size}"
            )
        self.key: str = facts["weights"]
        self.shapes = {name: tuple(facts["shapes"][name]) for name in TRUNK_MAPS}

    def read(self, name: str, frames: Sequence[int]) -> dict[str, np.ndarray]:
        """{map: float16 [len(frames), h, w, C]} of the clip with this `file_name`."""
        path = self._folder / name
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputError(
                f"no cached features of its frames in {self._folder}: run "
                "scripts/cache_features.py for this dataset and split, or compute them with "
                "--config.data.trunk_features="
            ) from None
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        if stored.dtype != DTYPE or stored.ndim != 2 or stored.shape[1] != sum(sizes):
            raise InputError(f"{path}: {stored.dtype} {stored.shape}, expected [T, {sum(sizes)}]")
        if max(frames, default=0) >= len(stored):
            raise InputError(f"{path}: {len(stored)} frames, the clip has more")
        parts = np.split(stored[list(frames)], np.cumsum(sizes)[:-1], axis=1)
        return {
            name: part.reshape(len(frames), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


class FeatureRows(ClipRows):
    """Rows of clips with their cached maps; those of frames that pad a clip are zero."""

    def __init__(self, config: Any):
        super().__init__(config)
        data = config.data
        augment = {key: data.augment[key] for key in UNAUGMENTED}
        if augment != UNAUGMENTED or set(data.augment.min_sizes) != {data.image_size}:
            raise InputError(
                "config.data.trunk_features: cached features are those of whole images, so "
                f"config.data.augment must have min_sizes = ({data.image_size},), {UNAUGMENTED}"
            )
        self._features = TrunkFeatures(data.trunk_features, data.image_size)
        if data.trunk_key not in ("", self._features.key):
            raise InputError(
                f"config.data.trunk_features = {data.trunk_features!r}: made by other weights "
                "than the model's"
            )
        self.fields = {
            **self.fields,
            **{
                name: Field(
                    "float16",
                    " ".join(["B T", *map(str, shape)]),
                    "input",
                    "map of the frozen image encoder",
                    given="never",
                )
                for name, shape in self._features.shapes.items()
            },
        }

    def prepare(self, record: Record, rng: np.random.Generator | None = None) -> Row:
        """As `ClipRows.prepare`, with the maps of its frames."""
        row = super().prepare(record, rng)
        name, valid = file_name(record["frames"]), row["valid"]
        try:
            found = self._features.read(name, row["frame_index"][valid])
        except InputError as error:
            raise InputError(f"clip {decode_text(record['clip_id'])}: {error}") from error
        for name, maps in found.items():
            row[name][valid] = maps
        return row


class ExpressionFeatureRows(FeatureRows, ExpressionRows):
    """Rows of expressions with the cached maps of their clips."""


def clip_rows(config: Any) -> ClipRows:
    """Rows of clips, with cached maps where the configuration names a folder of them."""
    return FeatureRows(config) if config.data.get("trunk_features") else ClipRows(config)


def expression_rows(config: Any) -> ExpressionRows:
    """Rows of expressions, likewise."""
    has_maps = config.data.get("trunk_features")
    return ExpressionFeatureRows(config) if has_maps else ExpressionRows(config)


def map_shapes(image_size: int, width: int) -> dict[str, tuple[int, int, int]]:
    """(h, w, C) of the maps of an image encoder of `width` channels."""
    sizes = zip(TRUNK_MAPS, (4, 8, 16), (width // 8, width // 4, width), strict=True)
    return {name: (image_size // s, image_size // s, c) for name, s, c in sizes}


def write_facts(directory: pathlib.Path, key: str, image_size: int, shapes: Mapping) -> None:
    """Stores what made the maps; see the module."""
    facts = {"weights": key, "image_size": image_size, "shapes": shapes, "named_by": NAMED_BY}
    write_atomically(directory / FACTS, json.dumps(facts, indent=2) + "\n")


def read_facts(directory: pathlib.Path) -> dict[str, Any]:
    """What made the maps; InputError where they may be those of other clips."""
    facts = read_json(directory / FACTS)
    if facts.get("named_by") != NAMED_BY:
        raise InputError(
            f"{directory} names its features by clip ids, which may be those of another dataset: "
            "run scripts/cache_features.py again, with another folder"
        )
    return facts


def file_name(frames: Sequence[bytes | np.ndarray]) -> str:
    """The file of a clip, by its frames as the record has them."""
    contents = (x.tobytes() if isinstance(x, np.ndarray) else bytes(x) for x in frames)
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    return hashlib.sha256(digests).hexdigest()[:32] + ".npy"


def write_features(directory: pathlib.Path, name: str, maps: Mapping[str, np.ndarray]) -> None:
    """Stores the maps [T, h, w, C] of the clip with this `file_name`."""
    flat = [np.asarray(maps[name], DTYPE).reshape(len(maps[name]), -1) for name in TRUNK_MAPS]
    with atomic_file(directory / name) as file:
        np.save(file, np.concatenate(flat, axis=1))
