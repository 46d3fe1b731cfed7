"""SAM2 for Python programs: masks of an image, and of objects through a video.

    sam2 = Sam2.load("checkpoints/sam2_tiny")

    found = sam2.predict_image(image, Prompt(points=[(500, 375)]))
    found.masks[found.ious.argmax()]                     # bool [H, W], the most likely of three

    prompts = {0: {"dog": Prompt(box=(40, 60, 310, 290))}, 12: {"cat": Prompt(points=[(80, 90)])}}
    for frame in sam2.track(frames, prompts):            # frames: uint8 RGB [H, W, 3] each
        frame.masks["dog"]                               # bool [H, W]

Memory does not grow with the length of a video: the bank has fixed slots.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from avs_jax.data.prompts import Prompt, resize_frame, stack_language, stack_prompts
from avs_jax.models import build_model
from avs_jax.models.sam2.bank import LONG_VIDEO, Bank, remember, remember_prompted
from avs_jax.models.sam2.model import SAM2
from avs_jax.models.sam2.prompts import MoreTokens
from avs_jax.models.sam2.tracking import NO_OBJECT, Segments, hide, spread
from avs_jax.ops.rows import where_rows
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.spec import NOT_A_POINT, InputError

Prompts = Mapping[int, Mapping[Any, Prompt]]  # number of a frame -> object -> its prompt

MAX_LOGIT = 32.0  # of low-resolution masks that are returned
FILLED = 0.1  # logit of a filled hole


@dataclasses.dataclass(frozen=True)
class ImageMasks:
    """Masks of one prompt on an image.

    Attributes:
      masks: bool [K, H, W]: K = 3 for an ambiguous prompt, else 1.
      logits: float32 [K, H, W].
      ious: float32 [K], predicted.
      low_res_masks: float32 logits [K, h, w] at stride 4, clamped; a later prompt may start there.
    """

    masks: np.ndarray
    logits: np.ndarray
    ious: np.ndarray
    low_res_masks: np.ndarray


@dataclasses.dataclass(frozen=True)
class TrackedFrame:
    """Objects on one frame; each mapping is by the object's name.

    Attributes:
      number: of the frame.
      masks: bool [H, W].
      logits: float32 [H, W]; -1024 where the object is not visible, with `model.hides_absent`.
      ious: predicted.
      object_scores: logits, above 0 if the object is visible.
    """

    number: int
    masks: dict[Any, np.ndarray]
    logits: dict[Any, np.ndarray]
    ious: dict[Any, float]
    object_scores: dict[Any, float]


class Sam2:
    """SAM2 with its weights on the device."""

    def __init__(self, config: ConfigDict, params: Mapping[str, Any]):
        """config: the whole configuration, of task `track`."""
        self.config = config
        self._model = build_model(config.model, SAM2)
        self._params = jax.device_put(params)
        self._jitted: dict[str, Callable] = {}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Sam2":
        """From the folder of converted weights.

        Raises:
          InputError: no such weights, or those of another task.
        """
        checkpoint = Checkpoint.find(os.fspath(path))
        config = checkpoint.config
        if "memory_dim" not in config.get("model", {}):
            raise InputError(f"{path}: not the weights of SAM2")
        return cls(config, checkpoint.variables(config.evaluate.weights)[0])

    def predict_image(
        self,
        image: np.ndarray,
        prompt: Prompt | None = None,
        low_res_mask: np.ndarray | None = None,
        multimask: bool | None = None,
    ) -> ImageMasks:
        """Masks of one prompt.

        Args:
          image: uint8 RGB [H, W, 3].
          prompt: points and box; None: nothing but `low_res_mask`.
          low_res_mask: logits [h, w] of an earlier answer to correct.
          multimask: three masks; None: for at most one point.
        """
        side = self.config.data.image_size
        if prompt is not None and prompt.mask is not None:
            raise InputError("predict_image corrects masks given as low_res_mask")
        if prompt is not None and prompt.language is not None:
            raise InputError("predict_image reads no language; track does")
        stacked = stack_prompts([prompt], image.shape[:2], side)
        points, labels = stacked["points"], stacked["point_labels"]
        if prompt is not None:
            points = np.pad(points, ((0, 0), (0, 1), (0, 0)))
            labels = np.pad(labels, ((0, 0), (0, 1)), constant_values=NOT_A_POINT)
        low = np.zeros((1, side // 4, side // 4), np.float32)
        if low_res_mask is not None:
            if np.shape(low_res_mask) != low.shape[1:] or not np.isfinite(low_res_mask).all():
                raise InputError(
                    f"low_res_mask of {np.shape(low_res_mask)}: expected finite numbers "
                    f"{low.shape[1:]}"
                )
            low[0] = low_res_mask
        if multimask is None:
            multimask = (labels >= 0).sum() <= 1
        features = self._features(image, self.config.data.image_resize)
        given = np.array([low_res_mask is not None])
        decoded = self._call("decode_image", features, points, labels, low, given)
        if multimask:
            masks, ious = decoded.masks[0, ..., 1:], decoded.ious[0, 1:]
        else:
            chosen = self._call("choose_single", decoded)
            masks, ious = chosen.mask[0, ..., None], chosen.iou
        logits = np.moveaxis(np.asarray(resize_bilinear(masks, image.shape[:2])), -1, 0)
        low = np.clip(np.moveaxis(np.asarray(masks), -1, 0), -MAX_LOGIT, MAX_LOGIT)
        return ImageMasks(logits > 0, logits, np.asarray(ious), low)

    def track(
        self, frames: Iterable[np.ndarray], prompts: Prompts, num_frames: int | None = None
    ) -> Iterator[TrackedFrame]:
        """Follows objects through a video.

        Args:
          frames: uint8 RGB [H, W, 3], all of one size. A list, or another iterable that can be read
            twice, is read twice: prompted frames first, so that earlier frames can look at them. An
            iterator is read once; a prompt then acts from its frame on.
          prompts: number of a frame -> object -> its prompt. Objects are any hashable names; one
            object may have prompts on several frames.
          num_frames: of an iterator, if known; short videos (below 16) depend on it.

        Yields:
          every frame. Objects are not visible before the first prompted frame and, on an iterator,
          before their own first prompt.

        Raises:
          InputError: no prompts, or one that does not fit its frame, or whose frame does not exist.
        """
        names = sorted({name for found in prompts.values() for name in found}, key=str)
        if not names:
            raise InputError("no prompts: nothing to track")
        for number in prompts:
            if not isinstance(number, int | np.integer) or number < 0:
                raise InputError(f"frame {number!r} of a prompt: expected a whole number from 0 up")
        tracker = _Tracker(self, names, prompts)
        if iter(frames) is not frames:
            num_frames = 0
            for number, frame in enumerate(frames):
                num_frames += 1
                if number in prompts:
                    tracker.start(number, frame)
            _check_all_started(prompts, tracker, num_frames)
        count = 0
        for number, frame in enumerate(frames):
            if number in prompts and number not in tracker.started:
                tracker.start(number, frame)
            yield tracker.follow(number, frame, num_frames or LONG_VIDEO)
            count += 1
        _check_all_started(prompts, tracker, count)

    def _features(self, image: np.ndarray, resize: str):
        pixels = resize_frame(image, self.config.data.image_size, resize)
        return self._call("encode_images", pixels[None])

    def _call(self, method: str, *args: Any) -> Any:
        """A method of the model, compiled once per shape."""
        if method not in self._jitted:

            def call(params, *args):
                return self._model.apply({"params": params}, *args, method=method)

            self._jitted[method] = jax.jit(call)
        return self._jitted[method](self._params, *args)


class _Tracker:
    """The state of one video: a bank, and the results of prompted frames."""

    def __init__(self, sam2: Sam2, names: list, prompts: Prompts):
        self._sam2, self._names, self._prompts = sam2, names, prompts
        self._bank: Bank | None = None
        self._first = min(prompts)
        self._begun = np.zeros(len(names), bool)  # have had a prompt; on a stream, not all have
        self.started: dict[int, tuple[Segments, np.ndarray]] = {}

    def start(self, number: int, frame: np.ndarray) -> None:
        """Decodes the prompts of a frame and remembers it."""
        sam2 = self._sam2
        found = [self._prompts[number].get(name) for name in self._names]
        side = sam2.config.data.image_size
        for name, prompt in zip(self._names, found, strict=True):
            try:
                if prompt is not None:
                    prompt.check_fits(frame.shape[:2])
                    stack_language([prompt], self._language_width)
            except InputError as error:
                raise InputError(f"object {name!r}, frame {number}: {error}") from error
        stacked = stack_prompts(found, frame.shape[:2], side)
        features = spread(sam2._features(frame, sam2.config.data.frame_resize), len(found))
        more = self._read_language(found)
        segments, memory = sam2._call("start", features, *stacked.values(), more)
        if self._bank is None:
            slots = 1 << (len(self._prompts) - 1).bit_length()  # few sizes, few programs
            self._bank = sam2._model.apply(
                {"params": sam2._params}, memory, slots, method="new_bank"
            )
        given = np.array([prompt is not None for prompt in found])
        self._bank = _remember_prompted(self._bank, memory, np.int32(number), given)
        self.started[number] = segments, given
        self._begun |= given

    def _read_language(self, prompts: list[Prompt | None]) -> MoreTokens | None:
        """Tokens of the objects that language describes."""
        language = stack_language(prompts, self._language_width)
        if language is None:
            return None
        tokens, exists = language
        if self._sam2.config.model.get("language_dim", 0):
            tokens = self._sam2._call("project_language", tokens)
        return MoreTokens(tokens, exists)

    @property
    def _language_width(self) -> int:
        """Numbers per token, or per hidden state where the model projects them to tokens."""
        model = self._sam2.config.model
        return model.get("language_dim", 0) or model.width

    def follow(self, number: int, frame: np.ndarray, num_frames: int) -> TrackedFrame:
        """Segments a frame and stores it in the bank."""
        sam2, count = self._sam2, len(self._names)
        given, known = np.zeros(count, bool), None
        if number in self.started:
            known, given = self.started[number]
        if self._bank is None or number < self._first:
            low = np.full((count, 1, 1), NO_OBJECT, np.float32)
            return self._frame(number, frame, low, np.zeros(count), np.full(count, NO_OBJECT))
        followed = self._begun & ~given
        if not followed.any():
            segments = known
        else:
            features = spread(sam2._features(frame, sam2.config.data.frame_resize), count)
            numbers = np.int32(number), np.int32(num_frames)
            segments, memory = sam2._call("follow", features, self._bank, *numbers)
            self._bank = _remember(self._bank, memory, numbers[0], followed)
            if known is not None:
                segments = jax.tree.map(functools.partial(where_rows, given), known, segments)
        if not self._begun.all():
            segments = hide(segments, self._begun)
            segments = segments._replace(iou=np.where(self._begun, segments.iou, 0))
        low = fill_holes(np.asarray(segments.low_res_mask), sam2.config.data.max_hole_area)
        scores = np.asarray(segments.object_score_logits)[:, 0]
        return self._frame(number, frame, low, np.asarray(segments.iou), scores)

    def _frame(self, number, frame, low, ious, scores) -> TrackedFrame:
        resized = np.asarray(resize_bilinear(jnp.asarray(low)[..., None], frame.shape[:2]))
        logits = dict(zip(self._names, resized[..., 0], strict=True))
        return TrackedFrame(
            number,
            {name: found > 0 for name, found in logits.items()},
            logits,
            dict(zip(self._names, map(float, ious), strict=True)),
            dict(zip(self._names, map(float, scores), strict=True)),
        )


def _check_all_started(prompts: Prompts, tracker: _Tracker, num_frames: int) -> None:
    unused = sorted(set(prompts) - set(tracker.started))
    if unused:
        raise InputError(
            f"a prompt on frame {unused[0]}: the video has {num_frames} frames, numbered from 0"
        )


def fill_holes(logits: np.ndarray, max_area: int) -> np.ndarray:
    """Fills small background regions of masks: logits [M, h, w] of at most max_area cells.

    Regions are 8-connected, as in the original, which needs a CUDA extension for them.
    """
    if max_area <= 0:
        return logits
    filled, touching = logits.copy(), np.ones((3, 3))
    for mask in filled:
        if not (mask > 0).any():
            continue
        labels, count = ndimage.label(mask <= 0, touching)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        mask[(labels > 0) & (areas[labels] <= max_area)] = FILLED
    return filled


_remember, _remember_prompted = jax.jit(remember), jax.jit(remember_prompted)
