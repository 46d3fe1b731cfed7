"""The random points of the stored criterion runs, from call order to (layer, frame, target).

The original draws, layer after layer (last, then auxiliary 0, 1, ...): one [1, P, 2] per target
image for the matcher, then [pairs, 3P, 2] candidates and [pairs, R, 2] uniform points, a row per
matched pair (images ascending; queries ascending within an image).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from avs_jax.losses.criterion import PointSamples


def golden_assignment(
    archive: Mapping[str, np.ndarray], prefix: str, num_images: int, layer: int
) -> list[np.ndarray]:
    """[2, n] (query, target) per target image of one layer, queries ascending."""
    first = layer * num_images
    return [archive[f"{prefix}/assign/{first + i:03d}"] for i in range(num_images)]


def golden_draws(
    archive: Mapping[str, np.ndarray],
    prefix: str,
    target_frames: Sequence[int],
    num_frames: int,
    num_targets: int,
    num_layers: int,
) -> PointSamples:
    """float32 draws with a leading layer axis, zero where the original drew nothing.

    Args:
      archive: golden_losses.npz or golden_train_step.npz.
      prefix: of the run, such as "s4/mixed" or "zero".
      target_frames: the index among the N frames of each target image.
      num_frames: N.
      num_targets: M.
      num_layers: decoder predictions.
    """
    per_layer = len(target_frames) + 2
    layers = []
    for layer in range(num_layers):
        first = layer * per_layer
        rand = [archive[f"{prefix}/rand/{first + i:03d}"] for i in range(per_layer)]
        *matcher, candidates, random = rand
        draws = PointSamples(
            matcher=np.zeros((num_frames, *matcher[0].shape[1:]), np.float32),
            candidates=np.zeros((num_frames, num_targets, *candidates.shape[1:]), np.float32),
            random=np.zeros((num_frames, num_targets, *random.shape[1:]), np.float32),
        )
        assignment = golden_assignment(archive, prefix, len(target_frames), layer)
        pair = 0
        for frame, points, (_, targets) in zip(target_frames, matcher, assignment, strict=True):
            draws.matcher[frame] = points[0]
            for target in targets:
                draws.candidates[frame, target] = candidates[pair]
                draws.random[frame, target] = random[pair]
                pair += 1
        assert pair == len(candidates) == len(random)
        layers.append(draws)
    return PointSamples(*(np.stack(field) for field in zip(*layers, strict=True)))
