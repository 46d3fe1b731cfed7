"""Audio-visual segmentation: frames with sound to masks of what sounds.

images, pre_masks -> Swin each, res_i + gate(mask res_i) * mask res_i -> pixel decoder
log_mel -> VGGish -> MLP -> audio tokens;  audio, motion -> AMA -> map
mask features, res2 -> BRM -> edges, mask features
mask features [, map] -> PPQG -> queries -> decoder over (audio, stride 32, 16, 8) -> masks, classes

VCT (Huang et al., CVPR 2025; repository spyflying/VCT_AVS), AMA and BRM on top of it. Frames meet
nowhere: everything is per frame, and clips and frames are one folded axis N inside.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.backbones.pvt_v2 import PVTv2
from avs_jax.models.backbones.resnet import ResNet
from avs_jax.models.backbones.stages import LEVELS
from avs_jax.models.backbones.swin import Swin
from avs_jax.models.backbones.vggish import VGGish
from avs_jax.models.decoders.boundary import AuxiliaryBoundary, BoundaryRefinement
from avs_jax.models.decoders.pixel_decoder import PixelDecoder
from avs_jax.models.decoders.vct_decoder import VCTDecoder
from avs_jax.models.fusion.ama import AMA
from avs_jax.models.fusion.gates import ChannelGate
from avs_jax.models.layers import MLP
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import (
    PIXEL_MEAN,
    PIXEL_STD,
    SIZE_DIVISOR,
    InputError,
    check_shape,
    frame_ids,
    nearest,
)

# A part is a row: name in the configuration -> module. None = the part is absent.
BACKBONES = {"swin": Swin, "pvt_v2": PVTv2, "resnet50": ResNet}
AUDIO_BACKBONES = {"vggish": VGGish}
FUSIONS = {"none": None, "ama": AMA}
REFINERS = {"none": None, "auxiliary": AuxiliaryBoundary, "refine": BoundaryRefinement}


def part_class(what: str, table: Mapping[str, type | None], config: Mapping[str, Any]) -> Any:
    """The row of a table of parts that config["name"] names.

    Raises:
      ValueError: naming the key, its value and the choices.
    """
    name = config.get("name")
    if name not in table:
        raise InputError(f"model.{what}.name = {name!r}: choose one of {sorted(table)}")
    return table[name]


def make_part(what: str, module: type, config: Mapping[str, Any], **fields: Any) -> nn.Module:
    """A module whose fields are the keys of its section of the configuration, `name` apart.

    Raises:
      ValueError: naming a key that the module does not have, and the nearest it has.
    """
    known = {field.name for field in dataclasses.fields(module)} - {"parent", "name"} - set(fields)
    given = {key: value for key, value in config.items() if key != "name"}
    for key in given:
        if key not in known:
            raise InputError(
                f"model.{what}.{key}: {module.__name__} has no such field; "
                f"nearest: {nearest(key, sorted(known)) or sorted(known)}"
            )
    return module(**given, **fields)


def gumbel(key: jax.Array, ids: jax.Array, num_queries: int, num_pixels: int) -> jax.Array:
    """Gumbel(0, 1) noise float32 [N, num_queries, num_pixels]; a frame's follows key and id."""

    def draw(frame):
        return jax.random.gumbel(jax.random.fold_in(key, frame), (num_queries, num_pixels))

    return jax.vmap(draw)(ids)


class AVS(nn.Module):
    """The whole model. The fields are the keys of config.model, explained in configs/base.py."""

    num_classes: int
    num_prototypes: int
    num_queries: int
    hidden_dim: int
    backbone: Mapping[str, Any]
    pre_masks: bool
    pre_mask_dropout: float
    audio_backbone: Mapping[str, Any]
    audio_mean: float
    audio_std: float
    audio_hidden_dim: int
    pixel_decoder: Mapping[str, Any]
    decoder: Mapping[str, Any]
    fusion: Mapping[str, Any]
    refiner: Mapping[str, Any]
    remat: str
    dtype: str

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        train: bool = False,
        gumbel_noise: jax.Array | None = None,
    ) -> dict[str, Any]:
        """Segments clips.

        Training draws from the rng streams `gumbel` (unless noise is given), `drop_path` (where
        the backbone has a rate), `pre_mask_dropout` and `ama_dropout` (where they are on), and
        updates `batch_stats` (where the fusion or the refiner has BatchNorms).

        Args:
          batch: INPUT_FIELDS of avs_jax.spec: images and log_mel; pre_masks if `pre_masks`; motion
            if the fusion reads it; valid (absent: all) and frame_index (absent: 0 .. T-1). From the
            training step also progress (absent: 1).
          train: training behaviour.
          gumbel_noise: float32 [B*T, Q, h*w] added to the assignment's scores, h*w the pixels at
            stride 4. None: drawn in training, none in evaluation.

        Returns:
          Outputs, as avs_jax.spec describes them. Images whose sides are not multiples of 32 are
          padded at the bottom and right; pred_masks cover the padded image. `intermediates`
          holds, with frames folded ([N, ...]), backbone, pre_sam_backbone, scale_factor, fused,
          audio_backbone, audio_features, pixel_decoder, ama, ppqg and decoder.

        Raises:
          ValueError: a missing field, a wrong shape, an unknown part.
        """
        sizes = self._check_batch(batch)
        num_clips, num_frames = sizes["B"], sizes["T"]
        frame_index = batch.get("frame_index")
        if frame_index is None:
            frame_index = jnp.broadcast_to(jnp.arange(num_frames), (num_clips, num_frames))
        ids = frame_ids(frame_index) if train else None  # of random draws
        features, seen = self._encode_images(batch, train, ids)
        audio, seen["audio_backbone"] = self._encode_audio(batch["log_mel"])
        seen["audio_features"] = audio

        pixel_decoder = make_part(
            "pixel_decoder",
            PixelDecoder,
            self.pixel_decoder,
            hidden_dim=self.hidden_dim,
            remat=self.remat == "all",
            name="pixel_decoder",
        )
        multi_scale, mask_features, seen["pixel_decoder"] = pixel_decoder(features)
        seen["pixel_decoder"] |= {"multi_scale": multi_scale, "mask_features": mask_features}
        edges = None
        if part_class("refiner", REFINERS, self.refiner) is not None:
            mask_features, edges = self._refine(batch, mask_features, features["res2"], train)
        motion_weight, upsampled = None, None
        if part_class("fusion", FUSIONS, self.fusion) is not None:
            motion_weight, upsampled, seen["ama"] = self._align(
                batch, audio, mask_features.shape[1:3], train, ids
            )
        if train and gumbel_noise is None:
            num_pixels = mask_features.shape[1] * mask_features.shape[2]
            gumbel_noise = gumbel(self.make_rng("gumbel"), ids, self.num_queries, num_pixels)

        predictor = make_part(
            "decoder",
            VCTDecoder,
            self.decoder,
            num_classes=self.num_classes,
            num_prototypes=self.num_prototypes,
            num_queries=self.num_queries,
            lambda_init=self.fusion["lambda_init"],
            remat=self.remat == "all",
            dtype=jnp.dtype(self.dtype),
            name="predictor",
        )
        decoded, stages = predictor(multi_scale, mask_features, audio, upsampled, gumbel_noise)
        outputs = self._unfold(decoded, motion_weight, edges, (num_clips, num_frames))
        return outputs | {"intermediates": seen | stages}

    def _check_batch(self, batch):
        """Sizes of B, T, H, W of a batch that has what this model reads."""
        needed = {"images": "B T H W 3", "log_mel": "B T 96 64"}
        if self.pre_masks:
            needed["pre_masks"] = "B T H W 3"
        if part_class("fusion", FUSIONS, self.fusion) is not None:
            needed["motion"] = "B T H W C"
        missing = sorted(set(needed) - set(batch))
        if missing:
            raise ValueError(
                f"the batch has no {', '.join(missing)}, which this model reads "
                f"(pre_masks = {self.pre_masks}, fusion = {self.fusion['name']!r}); "
                f"it has {sorted(batch)}"
            )
        needed |= {name: "B T" for name in ("valid", "frame_index") if name in batch}
        sizes: dict[str, int] = {}
        for name, pattern in needed.items():
            sizes = check_shape(name, batch[name], pattern, **sizes)
        if sizes.get("C", 1) not in (1, 2):
            raise ValueError(f"motion: {sizes['C']} channels, expected 1 (strength) or 2 (u, v)")
        return sizes

    def _encode_images(self, batch, train, ids):
        """Feature maps res2..res5 of all frames, the second branch gated in."""
        module = part_class("backbone", BACKBONES, self.backbone)

        def encode(field, name):
            backbone = make_part(
                "backbone",
                module,
                self.backbone,
                remat=self.remat in ("backbone", "all"),
                dtype=self.dtype,
                name=name,
            )
            return backbone(prepare_images(batch[field]), train, ids)

        features = encode("images", "backbone")
        seen = {"backbone": features}
        if self.pre_masks:
            second = encode("pre_masks", "pre_sam_backbone")
            gates = [
                ChannelGate(name=f"scale_factor_module_{i}")(second[level])
                for i, level in enumerate(LEVELS)
            ]
            kept = self._keep_second_branch(batch["images"].shape[:2], train)
            features = {
                level: features[level] + (gate * kept).astype(self.dtype) * second[level]
                for level, gate in zip(LEVELS, gates, strict=True)
            }
            seen |= {"pre_sam_backbone": second, "scale_factor": gates}
        return features, seen | {"fused": features}

    def _keep_second_branch(self, shape, train):
        """1 or 0 per clip, for each of its frames: [N, 1, 1, 1]."""
        num_clips, num_frames = shape
        kept = jnp.ones(num_clips, bool)
        if train and self.pre_mask_dropout > 0:
            key = self.make_rng("pre_mask_dropout")
            kept = jax.random.bernoulli(key, 1 - self.pre_mask_dropout, (num_clips,))
        kept = jnp.broadcast_to(kept[:, None], (num_clips, num_frames))
        return kept.reshape(-1)[:, None, None, None]

    def _encode_audio(self, log_mel):
        """Audio tokens [N, 6, 4, D] and the backbone's map [N, 6, 4, C]."""
        module = part_class("audio_backbone", AUDIO_BACKBONES, self.audio_backbone)
        backbone = make_part(
            "audio_backbone", module, self.audio_backbone, dtype=self.dtype, name="audio_backbone"
        )
        x = fold(log_mel)
        encoded = backbone((x - self.audio_mean) / self.audio_std)
        widths = (self.audio_hidden_dim, self.audio_hidden_dim, self.hidden_dim)
        transform = MLP(
            widths,
            jnp.dtype(self.dtype),
            prefix="embeddings",
            stride=2,
            name="audio_transformation",
        )
        return transform(encoded), encoded

    def _refine(self, batch, mask_features, res2, train):
        """Mask features [N, h, w, D] with what the refiner adds, and its edges."""
        module = part_class("refiner", REFINERS, self.refiner)
        refiner = make_part("refiner", module, self.refiner, name="brm")
        valid = fold(batch["valid"]) if "valid" in batch else None
        progress = batch.get("progress", 1.0)
        return refiner(mask_features, res2, progress=progress, train=train, valid=valid)

    def _align(self, batch, audio, size, train, ids):
        """The fusion's map [N, g, g], the same at `size`, and its intermediates."""
        module = part_class("fusion", FUSIONS, self.fusion)
        config = {key: value for key, value in self.fusion.items() if key != "lambda_init"}
        fusion = make_part("fusion", module, config, dtype=jnp.dtype(self.dtype), name="ama")
        valid = fold(batch["valid"]) if "valid" in batch else None
        motion = pad_to_divisor(fold(batch["motion"]))
        weight, seen = fusion(audio.mean((1, 2)), motion, train=train, valid=valid, ids=ids)
        return weight, resize_bilinear(weight[..., None], size)[..., 0], seen

    def _unfold(self, decoded, motion_weight, edges, clips_frames):
        """Outputs with the axes B and T, but for the intermediates."""

        def unfold(x):
            return x.reshape(*clips_frames, *x.shape[1:])

        *earlier, last = jax.tree.map(unfold, decoded["predictions"])
        outputs = last | {"aux_outputs": earlier}
        if self.num_prototypes:
            outputs |= {
                "audio_embed": unfold(decoded["audio_embed"]),
                "proto_embed": decoded["proto_embed"],
                "logit_scale": self.param(
                    "logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ()
                ),
            }
        if motion_weight is not None:
            outputs["motion_weight"] = unfold(motion_weight)
        if edges is not None:
            outputs["edge_logits"] = unfold(edges["edge_logits"])
            outputs["boundary_ramp"] = edges["ramp"]
        return outputs


def fold(x: jax.Array) -> jax.Array:
    """[B, T, ...] to [B * T, ...]."""
    return x.reshape(-1, *x.shape[2:])


def pad_to_divisor(x: jax.Array) -> jax.Array:
    """[N, H, W, C] with zeros at the bottom and right up to multiples of SIZE_DIVISOR."""
    bottom, right = (-x.shape[1]) % SIZE_DIVISOR, (-x.shape[2]) % SIZE_DIVISOR
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def prepare_images(images: jax.Array) -> jax.Array:
    """RGB 0..255 [B, T, H, W, 3] to normalised float32 [N, H', W', 3], padded with zeros."""
    mean, std = (np.array(c, np.float32)[None, None, None] for c in (PIXEL_MEAN, PIXEL_STD))
    return pad_to_divisor((fold(images).astype(jnp.float32) - mean) / std)
