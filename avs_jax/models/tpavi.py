"""TPAVI, the baseline of AVSBench: frames with sound to a logit per pixel and class.

    images -> backbone -> sums of dilated convolutions c_1 .. c_4 (strides 4 to 32)
    log_mel -> VGGish -> a 128-d embedding per frame
    c_i, embedding -> TPAVI block, where tpavi_stages has i -> top-down fusion -> head -> logits

Frames of a clip meet in the TPAVI blocks, in groups of `attention_frames`. Padded frames (not
`valid`) are zero after the normalization of images, after every stage and in the logits; in
evaluation they change nothing in other frames.

Source: Zhou et al., "Audio-Visual Segmentation", ECCV 2022, and "Audio-Visual Segmentation with
Semantics", IJCV 2024; OpenNLPLab/AVSBench, avs_{s4,ms3,avss}/model/{ResNet,PVT}_AVSModel.py. Where
it departs: padded frames are left out of the attention and, unless `padded_in_statistics`, of the
statistics of the batch (fusion/tpavi_block.py); clips need not have 5 or 10 frames, nor images
sides of multiples of 32.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.avs import DTYPES, REMAT_POLICIES
from avs_jax.models.backbones.stages import FEATURE_LEVELS
from avs_jax.models.decoders.dilated_fpn import DilatedSum, FusionBlock
from avs_jax.models.fusion.tpavi_block import MODES, TPAVIBlock
from avs_jax.models.inputs import INPUTS, prepare_images
from avs_jax.models.layers import Conv, Linear
from avs_jax.models.parts import (
    MAP_AUDIO_BACKBONES,
    MAP_BACKBONES,
    find_part,
    make_part,
)
from avs_jax.models.rules import Rule, at_least, one_of, within
from avs_jax.models.stage import Stage
from avs_jax.ops.frames import fold_frames, unfold_frames
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import InputError, check_shape, default_frame_index, frame_ids

RNG_STREAMS = ("drop_path",)  # of training
HEAD_SHARES = (2, 8)  # of hidden_dim: 128 and 32 channels of 256 in the original


def _are_stages(stages: Any, _: Mapping[str, Any]) -> bool:
    return len(set(stages)) == len(stages) and set(stages) <= set(range(len(FEATURE_LEVELS)))


def _some_call_is_on(stages: Any, config: Mapping[str, Any]) -> bool:
    return not stages or config["tpavi_va"] or config["tpavi_vv"]


class TPAVI(nn.Module):
    """The whole model.

    Attributes:
      num_classes: K; 2 makes one map of logits (the object's), more make K.
      hidden_dim: channels of every stage after the backbone.
      backbone: name and fields of a row of BACKBONES.
      audio_backbone: name and fields of a row of AUDIO_BACKBONES, with `embedding`.
      audio_mean, audio_std: log-mels enter as (x - mean) / std; 0 and 1 are the original's.
      tpavi_stages: stages with a TPAVI block, of 0 .. 3; () for none.
      tpavi_mode: of the blocks, one of `tpavi_block.MODES`.
      tpavi_va: pixels attend to the sounds. Off, the audio changes nothing.
      tpavi_vv: pixels attend to pixels. With both, the mean of two calls of the same block.
      tpavi_audio_bias: the audio projection of a block has a bias (S4, MS3) or none (AVSS).
      attention_frames: frames of a clip that attend to each other.
      padded_in_statistics: training treats padded frames of a clip as frames in attention and
        batch statistics, as the original does.
      remat: "none", "backbone" or "all": what the backward pass recomputes.
      dtype: of compute; parameters are float32.
    """

    HAS_PARTS = True  # its backbones are rows of models/parts.py

    num_classes: int
    hidden_dim: int
    backbone: Mapping[str, Any]
    audio_backbone: Mapping[str, Any]
    audio_mean: float
    audio_std: float
    tpavi_stages: tuple[int, ...]
    tpavi_mode: str
    tpavi_va: bool
    tpavi_vv: bool
    tpavi_audio_bias: bool
    attention_frames: int
    padded_in_statistics: bool
    remat: str
    dtype: str

    RULES = (
        *at_least(2, "num_classes"),
        *at_least(1, "hidden_dim", "attention_frames"),
        within("audio_std", lambda x: x > 0, "above 0"),
        one_of("tpavi_mode", MODES),
        Rule("tpavi_stages", _are_stages, lambda _: f"some of {tuple(range(len(FEATURE_LEVELS)))}"),
        Rule("tpavi_stages", _some_call_is_on, lambda _: "() where tpavi_va and tpavi_vv are off"),
        one_of("remat", REMAT_POLICIES),
        one_of("dtype", DTYPES),
        one_of("backbone.name", list(MAP_BACKBONES)),
        one_of("audio_backbone.name", list(MAP_AUDIO_BACKBONES)),
    )

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        train: bool = False,
        progress: jax.Array | float = 1.0,
    ) -> dict[str, Any]:
        """Segments clips.

        Training draws from the rng stream `drop_path`, where the backbone has a rate, and updates
        `batch_stats`, where it or a TPAVI block has batch norms.

        Args:
          batch: images, log_mel, valid (absent: all) and frame_index (absent: 0 .. T-1);
            data/clip.py has the table.
          train: training behavior.
          progress: changes nothing here.

        Returns:
          pred_masks float32 [B, T, h, w, K'], logits per pixel of the image, padded at the bottom
          and right to multiples of 32: K' = 1, of the object, for two classes, else K' = K. And
          intermediates, with the axes B and T: backbone, classifier (c_1 .. c_4), tpavi (by stage
          and call, tpavi_block.py), paths (p_1 .. p_4), and what the loss reads,
            feature_maps    four of [B, T, h, w, C], what the fusion read of each stage, after ReLU
            audio_features  {stage: [B, T, C]}, projected audio of stages with a call with audio

        Raises:
          InputError: an audio backbone that gives no embedding.
          ValueError: a missing field of the batch, a wrong shape.
        """
        sizes = self._check_batch(batch)
        unfold = functools.partial(unfold_frames, num_frames=sizes["T"])
        valid = batch.get("valid", jnp.ones((sizes["B"], sizes["T"]), bool))
        shown = fold_frames(valid)[:, None, None, None]  # other frames are zero throughout
        counted = jnp.ones_like(valid) if train and self.padded_in_statistics else valid
        features = self._encode_images(batch, shown, counted, train)
        audio = jnp.where(valid[:, :, None], self._encode_audio(batch), 0)
        neck, fusion = DilatedSum, FusionBlock
        if self.remat == "all":
            neck, fusion = nn.remat(neck), nn.remat(fusion)
        dtype, maps, calls = jnp.dtype(self.dtype), [], {}
        for stage, level in enumerate(FEATURE_LEVELS):
            summed = neck(self.hidden_dim, dtype, name=f"conv{stage + 1}")(features[level])
            maps.append(summed * shown)
        seen = {
            "backbone": jax.tree.map(unfold, features),
            "classifier": jax.tree.map(unfold, maps),
        }
        for stage in self.tpavi_stages:
            x, calls[stage] = self._interact(stage, unfold(maps[stage]), audio, counted, train)
            maps[stage] = fold_frames(x) * shown
        path, paths = None, []
        for stage in reversed(range(len(FEATURE_LEVELS))):
            path = fusion(dtype, name=f"path{stage + 1}")(maps[stage], path) * shown
            paths.insert(0, unfold(path))
        seen |= {
            "tpavi": calls,
            "paths": paths,
            "feature_maps": [unfold(nn.relu(x)) for x in maps],
            "audio_features": {i: c["va"]["audio"] for i, c in calls.items() if "va" in c},
        }
        return {"pred_masks": unfold(self._predict(path) * shown), "intermediates": seen}

    def stages(self) -> dict[str, Stage]:
        """Section of the configuration -> row of an optional stage: there is none here."""
        return {}

    def reads(self) -> set[str]:
        """Fields of the batch without which the model cannot run."""
        return {"images", "log_mel"}

    def _check_batch(self, batch):
        """Sizes of the letters of a batch that has what this model reads."""
        missing = sorted(self.reads() - set(batch))
        if missing:
            raise ValueError(f"the batch has no {', '.join(missing)}; it has {sorted(batch)}")
        sizes: dict[str, int] = {}
        for name in ("images", "log_mel", "valid", "frame_index"):
            if name in batch:
                sizes = check_shape(name, batch[name], INPUTS[name], **sizes)
        return sizes

    def _encode_images(self, batch, shown, counted, train):
        """Feature maps res2..res5 of all frames [N, h, w, C]; frames not shown come in as zeros."""
        images = prepare_images(batch["images"]) * shown
        ids, more = None, {}
        if train:
            ids = frame_ids(batch.get("frame_index", default_frame_index(*counted.shape)))
        if self.backbone.get("trained_norms"):
            more = {"valid": fold_frames(counted)}
        backbone = make_part(
            "backbone",
            find_part("backbone", self.backbone),
            self.backbone,
            remat=self.remat in ("backbone", "all"),
            dtype=self.dtype,
            name="backbone",
        )
        return backbone(images, train, ids, **more)

    def _encode_audio(self, batch):
        """The embedding of each frame's sound: [B, T, A]."""
        backbone = make_part(
            "audio_backbone",
            find_part("audio_backbone", self.audio_backbone),
            self.audio_backbone,
            dtype=self.dtype,
            name="audio_backbone",
        )
        log_mel = batch["log_mel"]
        embedding = backbone((fold_frames(log_mel) - self.audio_mean) / self.audio_std)
        if embedding.ndim != 2:
            raise InputError(
                "model.audio_backbone gives a map; TPAVI reads an embedding: set its `embedding`, "
                "(4096, 4096, 128) in the original"
            )
        return unfold_frames(embedding, log_mel.shape[1])

    def _interact(self, stage, x, audio, counted, train):
        """A stage's map [B, T, h, w, C] after its block, and what each call of the block shows."""
        block = TPAVIBlock(
            self.tpavi_mode,
            self.tpavi_audio_bias,
            jnp.dtype(self.dtype),
            name=f"tpavi_b{stage + 1}",
        )
        (clips, frames), length = counted.shape, self.attention_frames
        groups = -(-frames // length)
        places = jnp.arange(groups * length)
        # Whole groups need nothing; exported programs do not know the number of frames.
        is_whole = isinstance(frames, int) and frames % length == 0

        def group(a):
            a = a if is_whole else jnp.take(a, places, axis=1, mode="clip")
            return a.reshape(clips * groups, length, *a.shape[2:])

        def ungroup(a):
            a = a.reshape(clips, groups * length, *a.shape[2:])
            return a if is_whole else jnp.take(a, jnp.arange(frames), axis=1, mode="clip")

        exists = jnp.broadcast_to((places < frames)[None], (clips, groups * length))
        exists = exists.reshape(clips * groups, length)
        calls, inputs = {}, (group(x), group(audio), group(counted) & exists)
        # In this order the original updates the running statistics.
        for name, is_on in (("vv", self.tpavi_vv), ("va", self.tpavi_va)):
            if is_on:
                out, seen = block(*inputs, use_audio=name == "va", train=train)
                calls[name] = jax.tree.map(ungroup, seen | {"out": out})
        return sum(call["out"] for call in calls.values()) / len(calls), calls

    def _predict(self, path):
        """Logits float32 [N, H, W, K'] from the finest path [N, H / 2, W / 2, C]."""
        dtype = jnp.dtype(self.dtype)
        wide, narrow = (max(self.hidden_dim // share, 1) for share in HEAD_SHARES)
        x = Conv(wide, 3, dtype=dtype, name="output_conv_0")(path)
        x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
        x = nn.relu(Conv(narrow, 3, dtype=dtype, name="output_conv_2")(x))
        num_maps = 1 if self.num_classes == 2 else self.num_classes
        return Linear(num_maps, dtype=dtype, name="output_conv_4")(x).astype(jnp.float32)
