"""A trained model on the device: batches of clips to the scores of their pixels.

Own videos, arrays and exported programs all go this way.
"""

import functools
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from avs_jax.models import build_model
from avs_jax.results.postprocess import object_probability, sem_seg
from avs_jax.runtime.checkpoint import load_variables
from avs_jax.runtime.optim import flatten
from avs_jax.runtime.step import init_variables, make_predict_step
from avs_jax.spec import InputError

MASK_STRIDE = 4  # pixels of the padded input per cell of pred_masks


class Predictor:
    """A configuration's model with the parameters of a checkpoint.

    Attributes:
      config: the whole configuration.
      model: Linen module.
      variables: (params, batch_stats), on the device.
    """

    def __init__(self, config: ConfigDict, checkpoint: str | os.PathLike):
        """Reads the parameters.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: the configuration's model has other parameters.
        """
        self.config = config
        self.model = build_model(config.model)
        params, batch_stats, self._trained = load_variables(checkpoint, config.evaluate.weights)
        self._checkpoint = checkpoint
        self.variables = jax.device_put((params, batch_stats))
        self._checked: set[tuple[int, int]] = set()
        self._forward = jax.jit(make_forward(self.model))

    @property
    def has_motion(self) -> bool:
        """Whether the model reads motion."""
        return self.config.model.fusion.name != "none"

    def scores(self, batch: Mapping[str, Any], score_size: tuple[int, int]) -> dict[str, Any]:
        """What the model and the postprocess say of a batch with INPUT_FIELDS.

        Args:
          batch: one image size; `valid` included.
          score_size: (h, w) of sem_seg.

        Returns:
          pred_logits, pred_masks, sem_seg [B, T, *score_size, K] and, where the model reads
          motion, motion_weight; on the device.
        """
        self.check(batch)
        outputs = self._forward(*self.variables, batch)
        size = batch["images"].shape[2:4]
        scores = score_frames(outputs, batch["valid"], image_size=size, score_size=score_size)
        return outputs | {"sem_seg": scores}

    def labels(
        self, batch: Mapping[str, Any], score_size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Class of each pixel, uint8 [B, T, *score_size], and its probability, float32.

        With two classes the probability is the object's, and a pixel is 1 where it exceeds 0.5.
        """
        scores = self.scores(batch, score_size)["sem_seg"]
        if scores.shape[-1] == 2:
            prob = object_probability(scores)
            labels = prob > 0.5
        else:
            prob = jax.nn.softmax(scores, axis=-1).max(-1)
            labels = scores.argmax(-1)
        return np.asarray(labels).astype(np.uint8), np.asarray(prob)

    def notes(self) -> list[str]:
        """Keys of config.model that differ from the checkpoint's though the parameters fit."""
        if "model" not in self._trained:
            return []
        now = flatten(json.loads(json.dumps(self.config.model.to_dict())))
        then = flatten(self._trained.model.to_dict())
        return [
            f"config.model.{key.replace('/', '.')} is {now[key]}, the checkpoint's was {then[key]}"
            for key in sorted(set(now) & set(then))
            if now[key] != then[key]
        ]

    def check(self, batch) -> None:
        """Checks that configuration, checkpoint and images belong together.

        Args:
          batch: as in `scores`; anything with shapes and dtypes.

        Raises:
          InputError: the checkpoint does not fit the configuration, or the images its mixer.
        """
        size = batch["images"].shape[2:4]
        if size in self._checked:
            return
        small = {
            name: np.broadcast_to(np.zeros((), value.dtype), (1, 1, *value.shape[2:]))
            for name, value in batch.items()
        }
        wanted = jax.eval_shape(lambda: init_variables(self.model, small, 0))
        problems = []
        for tree, stored in zip(wanted, self.variables, strict=True):
            tree, stored = flatten(tree), flatten(stored)
            for path in sorted(set(tree) | set(stored)):
                want, have = (x[path].shape if path in x else None for x in (tree, stored))
                if want != have and path.endswith("query_mixer/layers_0/kernel") and want and have:
                    problems.append(
                        f"its query mixer is made for {have[0]} pixels at stride {MASK_STRIDE}"
                        f"{_example(have[0])}, images of {size[0]} x {size[1]} px have {want[0]}"
                    )
                elif want != have:
                    here, there = want or "nothing", have or "nothing"
                    problems.append(f"{path} is {there}, the configuration's model wants {here}")
        if problems:
            more = f"; and {len(problems) - 2} more" if len(problems) > 2 else ""
            raise InputError(f"checkpoint {self._checkpoint}: {'; '.join(problems[:2])}{more}")
        self._checked.add(size)


def make_forward(model):
    """(params, batch_stats, batch) -> pred_logits, pred_masks and, where there is, motion_weight.

    Args:
      model: Linen module.
    """
    predict = make_predict_step(model)

    def forward(params, batch_stats, batch):
        outputs = predict(params, batch_stats, batch)
        names = ("pred_logits", "pred_masks", "motion_weight")  # XLA drops what leads elsewhere
        return {name: outputs[name] for name in names if name in outputs}

    return forward


@functools.partial(jax.jit, static_argnames=("image_size", "score_size"))
def score_frames(
    outputs: Mapping[str, jax.Array],
    valid: jax.Array,
    image_size: tuple[int, int],
    score_size: tuple[int, int],
) -> jax.Array:
    """Class scores of all frames.

    Args:
      outputs: pred_logits, pred_masks.
      valid: bool [B, T]; the scores of other frames are zero.
      image_size: (H, W) of the images.
      score_size: (h, w) of the result.

    Returns:
      float32 [B, T, h, w, K].
    """
    logits, masks = outputs["pred_logits"], outputs["pred_masks"]
    scores = sem_seg(
        logits.reshape(-1, *logits.shape[2:]),
        masks.reshape(-1, *masks.shape[2:]),
        tuple(MASK_STRIDE * n for n in masks.shape[2:4]),
        image_size,
        score_size,
        valid.reshape(-1),
    )
    return scores.reshape(*valid.shape, *scores.shape[1:])


def _example(pixels: int) -> str:
    side = round(pixels**0.5)
    square = side * side == pixels
    return f" (images of {side * MASK_STRIDE} x {side * MASK_STRIDE} px)" if square else ""
