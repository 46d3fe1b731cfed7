"""SAM2 (Ravi et al., 2024): segments what points, boxes or masks mark, in images and videos.

    image features = neck(Hiera(image))
    first frame of an object:  masks = decoder(features + no-memory embedding, prompt)
    other frames:              masks = decoder(memory attention(features, bank), no points)
    memory = encoder(features, mask), pointer = MLP(mask token)                      -> bank

SAM2.1 differs from 2.0 in two switches. `codes_occlusion` adds an embedding to the memory of a
frame without the object; `codes_pointer_times` gives pointers their distance in time. Sa2VA's SAM2
(2.0) reads hidden states of a language model (`language_dim` numbers each) through a projection to
prompt tokens, and shows the masks of absent objects too (`hides_absent` off).

The methods work on N objects; `images` are the frames they are on, one per object. Sides are
multiples of 32; the published models are trained with squares of 1024. Source:
facebookresearch/sam2 (2b90b9f), sam2/modeling/sam2_base.py.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.layers import MLP, Linear, sine_position_encoding
from avs_jax.models.parts import find_part, make_part
from avs_jax.models.rules import at_least, one_of, within
from avs_jax.models.sam2.bank import Bank, Memory, Recalled, empty_bank, recall
from avs_jax.models.sam2.mask_decoder import ChosenMask, DecodedMasks, MaskDecoder, choose
from avs_jax.models.sam2.memory_attention import MemoryAttention
from avs_jax.models.sam2.memory_encoder import MemoryEncoder
from avs_jax.models.sam2.neck import ImageFeatures, Neck
from avs_jax.models.sam2.prompts import (
    STRIDE,
    MoreTokens,
    PromptEncoder,
    append_tokens,
)
from avs_jax.models.sam2.tracking import NO_OBJECT, Segments, track_clip
from avs_jax.ops.rows import where_rows
from avs_jax.ops.sampling import resize_antialiased, resize_bilinear
from avs_jax.spec import ABSENT_POINT, NOT_A_POINT

MASK_SCALE, MASK_SHIFT = 20.0, -10.0  # of masks on their way to the memory
DTYPES = ("float32", "bfloat16")

Array = jax.Array

embedding = nn.initializers.truncated_normal(0.02)


class SAM2(nn.Module):
    """The whole model. Its fields are the keys of config.model, explained in configs/sam2.py."""

    backbone: Mapping[str, Any]
    width: int
    memory_dim: int
    num_memory_layers: int
    ffn_dim: int
    num_maps: int
    num_pointers: int
    map_stride: int
    max_prompted: int
    codes_occlusion: bool
    codes_pointer_times: bool
    stability_threshold: float
    hard_prompts: bool
    prompt_slots: int
    memory_dtype: str
    dtype: str
    language_dim: int = 0
    hides_absent: bool = True

    HAS_PARTS = True  # its backbone is a row of models/parts.py
    RULES = (
        within("width", lambda x: x > 0 and x % 16 == 0, "a multiple of 16"),
        within("memory_dim", lambda x: x > 0 and x % 4 == 0, "a multiple of 4"),
        *at_least(1, "num_memory_layers", "ffn_dim", "map_stride", "prompt_slots"),
        *at_least(2, "num_maps", "num_pointers"),
        *at_least(0, "language_dim"),
        within("max_prompted", lambda x: x == 0 or x >= 2, "0 (all), or at least 2"),
        within("stability_threshold", lambda x: 0 <= x <= 1, "a share, 0..1"),
        one_of("dtype", DTYPES),
        one_of("memory_dtype", DTYPES),
        one_of("hides_absent", (True, False)),
    )

    def setup(self):
        dtype, width = jnp.dtype(self.dtype), self.width
        row = find_part("backbone", self.backbone)
        self.trunk = make_part("backbone", row, self.backbone, dtype=self.dtype)
        self.neck = Neck(width, dtype)
        self.conv_s0 = Linear(width // 8, dtype=dtype)
        self.conv_s1 = Linear(width // 4, dtype=dtype)
        self.prompt_encoder = PromptEncoder(width, dtype)
        self.mask_decoder = MaskDecoder(dtype)
        self.memory_encoder = MemoryEncoder(self.memory_dim, dtype)
        self.memory_attention = MemoryAttention(self.num_memory_layers, self.ffn_dim, dtype)
        self.obj_ptr_proj = MLP((width, width, width), dtype)
        self.mask_downsample = nn.Conv(1, (4, 4), 4, "VALID", dtype=dtype)
        self.no_mem_embed = self.param("no_mem_embed", embedding, (1, 1, width))
        # Published files have it; nothing reads it.
        self.no_mem_pos_enc = self.param("no_mem_pos_enc", embedding, (1, 1, width))
        self.no_obj_ptr = self.param("no_obj_ptr", embedding, (1, width))
        table = (self.num_maps, 1, 1, self.memory_dim)
        self.maskmem_tpos_enc = self.param("maskmem_tpos_enc", embedding, table)
        if self.codes_occlusion:
            shape = (1, self.memory_dim)
            self.no_obj_embed_spatial = self.param("no_obj_embed_spatial", embedding, shape)
        if self.codes_pointer_times:
            self.obj_ptr_tpos_proj = Linear(self.memory_dim, dtype=dtype)
        if self.language_dim:
            # Sa2VA numbers the ReLU between its layers too.
            self.text_hidden_fcs = MLP((self.language_dim, width), dtype, stride=2)

    def encode_images(self, images: Array) -> ImageFeatures:
        """Normalized images [N, H, W, 3] to maps."""
        levels = self.neck(self.trunk(images))
        fine, middle = self.conv_s0(levels["res2"]), self.conv_s1(levels["res3"])
        return ImageFeatures(fine, middle, levels["res4"])

    def without_memory(self, features: ImageFeatures) -> ImageFeatures:
        """The features of an image, or of the first frame of an object."""
        return features._replace(coarse=features.coarse + self.no_mem_embed[None])

    def project_language(self, states: Array) -> Array:
        """Hidden states of a language model [N, L, language_dim] to prompt tokens [N, L, D]."""
        return self.text_hidden_fcs(states)

    def decode(
        self,
        features: ImageFeatures,
        points: Array,
        labels: Array,
        mask_logits: Array,
        has_mask: Array,
        more: MoreTokens | None = None,
    ) -> DecodedMasks:
        """All masks of N objects; features from `without_memory` or `with_memory`.

        Args:
          points, labels, mask_logits, has_mask: see `PromptEncoder`.
          more: tokens behind those of the points.
        """
        height, width = (STRIDE * side for side in features.coarse.shape[1:3])
        prompts = self.prompt_encoder(points, labels, mask_logits, has_mask, (height, width))
        if more is not None:
            prompts = append_tokens(prompts, more)
        return self.mask_decoder(features, prompts)

    def decode_image(self, features: ImageFeatures, *prompt: Array) -> DecodedMasks:
        """`decode` of images, which have no memory."""
        return self.decode(self.without_memory(features), *prompt)

    def choose_single(self, decoded: DecodedMasks) -> ChosenMask:
        """The mask of an unambiguous prompt."""
        never = jnp.zeros(decoded.ious.shape[0], bool)
        return choose(decoded, never, stability_threshold=self.stability_threshold)

    def segment(
        self,
        features: ImageFeatures,
        points: Array,
        labels: Array,
        mask_logits: Array,
        has_mask: Array,
        is_ambiguous: Array | None = None,
        more: MoreTokens | None = None,
    ) -> Segments:
        """One mask of each of N objects, as tracking sees them.

        Args as `decode_tracked`; is_ambiguous: bool [N], None: by the number of points, 0 or 1.
        """
        if is_ambiguous is None:
            is_ambiguous = (labels != ABSENT_POINT).sum(1) <= 1
        decoded = self.decode_tracked(features, points, labels, mask_logits, has_mask, more)
        return self.as_segments(decoded, is_ambiguous)

    def decode_tracked(
        self,
        features: ImageFeatures,
        points: Array,
        labels: Array,
        mask_logits: Array,
        has_mask: Array,
        more: MoreTokens | None = None,
    ) -> DecodedMasks:
        """`decode` with the tokens NOT_A_POINT of tracking: one; without any point, two."""
        count = (labels != ABSENT_POINT).sum(1)
        first = jnp.where(count == 0, NOT_A_POINT, ABSENT_POINT)
        ends = jnp.stack([first, jnp.full_like(count, NOT_A_POINT)], 1)
        labels = jnp.concatenate([labels, ends], axis=1)
        points = jnp.pad(points, ((0, 0), (0, 2), (0, 0)))
        return self.decode(features, points, labels, mask_logits, has_mask, more)

    def as_segments(self, decoded: DecodedMasks, is_ambiguous: Array) -> Segments:
        """One of the masks of each of N objects; with `hides_absent`, none if it is not visible."""
        chosen = choose(decoded, is_ambiguous, stability_threshold=self.stability_threshold)
        is_visible = decoded.object_score > 0
        pointer = self.point_at(self.obj_ptr_proj(chosen.token), is_visible)
        mask = chosen.mask
        if self.hides_absent:
            mask = jnp.where(is_visible[:, :, None], mask, NO_OBJECT)
        return Segments(mask, chosen.iou, decoded.object_score, pointer)

    def point_at(self, pointer: Array, is_visible: Array) -> Array:
        """The pointer [N, D], or that of "no object"; is_visible is bool [N, 1]."""
        nothing = jnp.broadcast_to(self.no_obj_ptr.astype(pointer.dtype), pointer.shape)
        return jnp.where(is_visible, pointer, nothing)

    def accept_masks(self, features: ImageFeatures, masks: Array) -> Segments:
        """Given masks as the result of a frame; only their pointers come from the decoder.

        Args:
          features: of the frame, without memory and its embedding.
          masks: bool [N, H, W].
        """
        num, height, width = masks.shape
        masks = masks.astype(jnp.float32)[..., None]
        prompt = self.mask_downsample(masks)[..., 0]
        points, labels, _, never = no_prompt(features)
        found = self.segment(features, points, labels, prompt, ~never, is_ambiguous=never)
        logits = MASK_SCALE * masks + MASK_SHIFT
        low = resize_antialiased(logits, (height // 4, width // 4))[..., 0]
        is_visible = masks.any((1, 2))
        score = jnp.where(is_visible, MASK_SCALE + MASK_SHIFT, MASK_SHIFT)
        pointer = self.point_at(found.obj_ptr, is_visible)
        return Segments(low, jnp.ones(num), score, pointer)

    def encode_memory(
        self,
        features: ImageFeatures,
        segments: Segments,
        masks: Array | None = None,
        is_prompted: bool = False,
    ) -> Memory:
        """What a frame leaves in the bank.

        Args:
          features: of the frame, without memory and its embedding.
          masks: logits [N, H, W]; None: the low-resolution mask, resized.
          is_prompted: of these frames, `hard_prompts` keeps the masks' outline alone.
        """
        if masks is None:
            size = tuple(STRIDE * side for side in features.coarse.shape[1:3])
            masks = resize_bilinear(segments.low_res_mask[..., None], size)[..., 0]
        is_hard = self.hard_prompts and is_prompted
        masks = (masks > 0).astype(jnp.float32) if is_hard else nn.sigmoid(masks)
        masks = MASK_SCALE * masks + MASK_SHIFT
        memory = self.memory_encoder(features.coarse, masks.astype(jnp.dtype(self.dtype)))
        if self.codes_occlusion:
            is_hidden = segments.object_score_logits <= 0
            extra = jnp.where(is_hidden, self.no_obj_embed_spatial, 0.0)[:, None, None]
            memory += extra.astype(memory.dtype)
        return Memory(memory, segments.obj_ptr)

    def new_bank(self, memory: Memory, num_prompted: int) -> Bank:
        """An empty bank with slots for `num_prompted` prompted frames."""
        return empty_bank(
            memory._replace(map=memory.map.astype(self.memory_dtype)),
            num_prompted,
            num_maps=self.num_maps,
            num_pointers=self.num_pointers,
            stride=self.map_stride,
        )

    def with_memory(
        self, features: ImageFeatures, bank: Bank, frame: Array, num_frames: Array
    ) -> ImageFeatures:
        """The features of a frame, conditioned on the bank.

        Args:
          features: of N images.
          bank: of N objects.
          frame: int32 [], number of the frame.
          num_frames: int32 [], of the video; pointers' positions depend on it up to num_pointers.
        """
        found = recall(
            bank,
            frame,
            num_frames,
            num_maps=self.num_maps,
            num_pointers=self.num_pointers,
            stride=self.map_stride,
            max_prompted=self.max_prompted,
        )
        memory, positions, masked = self.memory_tokens(found, num_frames)
        num_pointer_tokens = found.pointers.shape[1] * (self.width // self.memory_dim)
        coarse = self.memory_attention(
            features.coarse, memory, positions, masked, num_pointer_tokens
        )
        return features._replace(coarse=coarse)

    def memory_tokens(self, found: Recalled, num_frames: Array) -> tuple[Array, Array, Array]:
        """Keys and values of the memory attention: tokens and positions [N, S, Dm], masked [N, S].

        The tokens of the maps come first, then `width / memory_dim` tokens of each pointer.
        """
        dim, dtype = self.memory_dim, jnp.dtype(self.dtype)
        num, _, height, width, _ = found.maps.shape
        space = sine_position_encoding(height, width, dim)[None, None]
        ages = self.maskmem_tpos_enc[found.map_ages]  # [N, S, 1, 1, Dm]
        map_positions = jnp.broadcast_to(space, found.maps.shape) + ages

        split = self.width // dim
        pointer_positions = jnp.zeros((*found.pointers.shape[:2], dim))
        if self.codes_pointer_times:
            longest = jnp.maximum(jnp.minimum(num_frames, self.num_pointers) - 1, 1)
            code = time_code(found.pointer_steps / longest, self.width)
            pointer_positions = self.obj_ptr_tpos_proj(code)
        pointer_positions = jnp.repeat(pointer_positions, split, axis=1)

        def tokens(maps, pointers):
            parts = [x.astype(dtype).reshape(num, -1, dim) for x in (maps, pointers)]
            return jnp.concatenate(parts, axis=1)

        has_map = jnp.repeat(found.has_map, height * width, axis=1)
        has_pointer = jnp.repeat(found.has_pointer, split, axis=1)
        return (
            tokens(found.maps, found.pointers),
            tokens(map_positions, pointer_positions),
            ~jnp.concatenate([has_map, has_pointer], axis=1),
        )

    def start(
        self,
        features: ImageFeatures,
        points: Array,
        labels: Array,
        masks: Array,
        has_mask: Array,
        more: MoreTokens | None = None,
    ) -> tuple[Segments, Memory]:
        """A frame that is the first with a prompt for its N objects: no memory is read.

        Args:
          features: of the frame.
          points, labels: see `PromptEncoder`.
          masks: bool [N, H, W], the answer for the objects with has_mask, bool [N].
          more: tokens behind those of the points.
        """
        _, _, low, none = no_prompt(features)
        seen = self.without_memory(features)
        by_points = self.segment(seen, points, labels, low, none, more=more)
        by_mask = self.accept_masks(features, masks)

        pick = functools.partial(where_rows, has_mask)
        segments = jax.tree.map(pick, by_mask, by_points)
        return segments, self.encode_memory(features, segments, is_prompted=True)

    def follow(
        self, features: ImageFeatures, bank: Bank, frame: Array, num_frames: Array
    ) -> tuple[Segments, Memory]:
        """A frame without a prompt; args as `with_memory`."""
        seen = self.with_memory(features, bank, frame, num_frames)
        segments = self.segment(seen, *no_prompt(seen))
        return segments, self.encode_memory(features, segments)

    def initialize(self, images: Array) -> None:
        """Runs every part once, for `init`; images [N, H, W, 3]."""
        num, height, width, _ = images.shape
        features = self.encode_images(images)
        points, labels = jnp.zeros((num, 1, 2)), jnp.zeros((num, 1), jnp.int32)
        masks = jnp.ones((num, height, width), bool)
        _, memory = self.start(features, points, labels, masks, jnp.ones(num, bool))
        self.follow(features, self.new_bank(memory, 1), jnp.int32(0), jnp.int32(2))
        if self.language_dim:
            self.project_language(jnp.zeros((num, 1, self.language_dim)))

    def __call__(
        self,
        batch: Mapping[str, Array],
        train: bool = False,
        progress: Array | float = 1.0,
    ) -> dict[str, Array]:
        """Tracks objects through clips; see tracking.py.

        Args:
          batch: pixels, points, point_labels, masks, mask_given; see data/prompts.py.
          train: must be False.
          progress: not used.
        """
        if train:
            raise ValueError("SAM2 is not trained here")
        if self.is_initializing():
            self.initialize(batch["pixels"][:, 0])
            return {}
        module, variables = self.unbind()

        def apply(method, *args):
            return module.apply(variables, *args, method=method)

        return jax.lax.map(lambda row: track_clip(apply, row, self.prompt_slots), dict(batch))


def no_prompt(features: ImageFeatures) -> tuple[Array, Array, Array, Array]:
    """Points, labels, mask logits and has_mask of a prompt without any of them, for N images."""
    num = features.coarse.shape[0]
    low = jnp.zeros((num, *features.fine.shape[1:3]))
    return jnp.zeros((num, 0, 2)), jnp.zeros((num, 0), jnp.int32), low, jnp.zeros(num, bool)


def time_code(times: Array, dim: int) -> Array:
    """Sines, then cosines of times [...]: float32 [..., dim]."""
    half = dim // 2
    period = 10000.0 ** (2 * (np.arange(half) // 2) / half)
    angle = times.astype(jnp.float32)[..., None] / jnp.asarray(period, jnp.float32).reshape(
        (1,) * times.ndim + (half,)
    )
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
