"""A trained model as one file that runs with JAX alone: StableHLO and its weights.

The file is an .npz:

  program     uint8, what `jax.export` serialises: the forward pass and the postprocess
  weights/*   float32, the parameters and running statistics, by path
  about       JSON text: inputs and outputs with dtypes and axes, the configuration, versions

The program takes (weights, arrays) and returns arrays, those of `predict --arrays`. Weights stay
beside the program instead of being constants of it, which keeps the program small and lets every
platform share them. The numbers of clips and frames are free where they are symbols; the image size
is the query mixer's.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from avs_jax.convert.writer import write_state_dict
from avs_jax.data.motion import num_channels
from avs_jax.runtime.optim import flatten, unflatten
from avs_jax.runtime.predictor import Predictor, make_forward, score_frames
from avs_jax.runtime.stored_config import plain_config
from avs_jax.spec import MEL_BANDS, MEL_FRAMES

PLATFORMS = ("cpu", "cuda", "tpu", "rocm")
WEIGHTS = "weights/"
COLLECTIONS = ("params", "batch_stats")


def input_shapes(config, num_clips: Any, num_frames: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What the program of a configuration reads.

    Args:
      config: the whole configuration; reads model, data.image_size and data.motion.
      num_clips, num_frames: B and T, numbers or symbols.
    """
    side, clips = config.data.image_size, (num_clips, num_frames)
    picture = jax.ShapeDtypeStruct((*clips, side, side, 3), np.uint8)
    inputs = {
        "images": picture,
        "log_mel": jax.ShapeDtypeStruct((*clips, MEL_FRAMES, MEL_BANDS), np.float32),
        "valid": jax.ShapeDtypeStruct(clips, np.bool_),
    }
    if config.model.pre_masks:
        inputs["pre_masks"] = picture
    if config.model.fusion.name != "none":
        channels = num_channels(config.data.motion)
        shape = (*clips, side, side) if channels == 1 else (*clips, side, side, channels)
        inputs["motion"] = jax.ShapeDtypeStruct(shape, np.float32)
    return inputs


def make_program(predictor: Predictor):
    """(weights, arrays) -> results, as the file's text describes them; pure and traceable."""
    config, forward = predictor.config, make_forward(predictor.model)
    image_size = (config.data.image_size,) * 2
    score_size = (config.evaluate.score_size,) * 2
    has_channel_axis = num_channels(config.data.motion) > 1

    def program(weights: Mapping[str, jax.Array], arrays: Mapping[str, jax.Array]):
        batch = dict(arrays)
        if "motion" in batch and not has_channel_axis:
            batch["motion"] = batch["motion"][..., None]
        variables = (_collection(weights, name) for name in COLLECTIONS)
        outputs = forward(*variables, batch)
        scores = score_frames(outputs, batch["valid"], image_size, score_size)
        return outputs | {"sem_seg": scores}

    return program


def export_program(
    predictor: Predictor, platforms: Sequence[str] = ("cpu", "cuda")
) -> export.Exported:
    """Lowers the program of a predictor for all platforms at once, B and T as symbols."""
    num_clips, num_frames = export.symbolic_shape("B, T")
    weights = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in flat_weights(predictor).items()
    }
    inputs = input_shapes(predictor.config, num_clips, num_frames)
    program = jax.jit(make_program(predictor))
    return export.export(program, platforms=tuple(platforms))(weights, inputs)


def flat_weights(predictor: Predictor) -> dict[str, jax.Array]:
    """Name in the file -> array."""
    return {
        f"{WEIGHTS}{collection}/{path}": x
        for collection, tree in zip(COLLECTIONS, predictor.variables, strict=True)
        for path, x in flatten(tree).items()
    }


def write_program(
    path: str | os.PathLike, predictor: Predictor, platforms: Sequence[str] = ("cpu", "cuda")
) -> dict[str, Any]:
    """Writes the file.

    Args:
      path: of the .npz.
      predictor: model, weights and configuration.
      platforms: of PLATFORMS.

    Returns:
      `about`, and the number of bytes of "program".

    Raises:
      InputError: the checkpoint does not fit the configuration.
      OSError: the file cannot be written.
    """
    example = input_shapes(predictor.config, 1, 1)
    if "motion" in example and len(example["motion"].shape) == 4:
        motion = example["motion"]
        example["motion"] = jax.ShapeDtypeStruct((*motion.shape, 1), motion.dtype)
    predictor.check(example)
    exported = export_program(predictor, platforms)
    program = np.frombuffer(exported.serialize(), np.uint8)
    inputs = input_shapes(predictor.config, "B", "T")
    about = {
        "inputs": {name: [x.dtype.name, *x.shape] for name, x in inputs.items()},
        "outputs": {
            name: [x.dtype.name, *map(str, x.shape)]
            for name, x in jax.tree.unflatten(exported.out_tree, exported.out_avals).items()
        },
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax_version": jax.__version__,
        "config": plain_config(predictor.config),
    }
    arrays = {"program": program, "about": np.array(json.dumps(about))}
    arrays |= jax.device_get(flat_weights(predictor))
    write_state_dict(path, arrays, "npz")
    return about | {"program_bytes": program.size}


def _collection(weights: Mapping[str, jax.Array], name: str) -> dict:
    prefix = f"{WEIGHTS}{name}/"
    flat = {path.removeprefix(prefix): x for path, x in weights.items() if path.startswith(prefix)}
    return unflatten(flat)
