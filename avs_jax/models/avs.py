"""Audio-visual segmentation: frames and their sound to masks of the sounding objects.

images, pre_masks -> Swin each, res_i + gate(mask res_i) * mask res_i [-> temporal] -> pixel decoder
log_mel -> VGGish -> MLP -> audio tokens;  audio, motion -> AMA -> map
motion_track, sound_track -> synchrony -> map, mask features
mask features, res2 -> BRM -> edges, mask features
ids of an expression -> text encoder -> tokens;  levels, tokens -> CMA -> levels
tokens, audio, level at stride 8 -> localizer -> map
mask features [, map] -> PPQG -> queries [, audio -> fusion -> queries] -> decoder over (audio,
stride 32, 16, 8) -> masks, classes

Source: VCT (Huang et al., CVPR 2025; repository spyflying/VCT_AVS), with AMA and BRM on top. Frames
are only mixed by `temporal`: elsewhere, clips and frames are one folded axis N.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.core import FrozenDict

from avs_jax.models.avs_encoders import Encoded, encode, encode_text
from avs_jax.models.decoders.vct_decoder import PROMPTS, VCTDecoder
from avs_jax.models.fusion.gated import pool_tokens
from avs_jax.models.inputs import ASKED_FIELDS, INPUTS, TEXT_FIELDS, prepare_field
from avs_jax.models.parts import (
    MAP_AUDIO_BACKBONES,
    MAP_BACKBONES,
    TOKEN_ENCODERS,
    find_part,
    find_rows,
    make_part,
)
from avs_jax.models.rules import at_least, divides, one_of, within
from avs_jax.models.stage import PLACES, Stage, StageInputs, StageResult
from avs_jax.ops.frames import fold_frames, repeat_clips, unfold_frames
from avs_jax.spec import MASK_STRIDE, SIZE_DIVISOR, InputError, check_shape

ABSENT = FrozenDict({"name": "none"})
STAGES = ("refiner", "fusion")  # sections of the configuration, in execution order
REMAT_POLICIES = ("none", "backbone", "all")  # what the backward pass recomputes
DTYPES = ("float32", "bfloat16")
GROUPS = 32  # channel groups of every GroupNorm
RNG_STREAMS = ("gumbel", "drop_path", "pre_mask_dropout")  # of training; stages add their own


def gumbel(key: jax.Array, ids: jax.Array, num_queries: int, num_pixels: int) -> jax.Array:
    """Gumbel(0, 1) noise float32 [N, num_queries, num_pixels], per frame from (key, id)."""

    def draw(frame):
        return jax.random.gumbel(jax.random.fold_in(key, frame), (num_queries, num_pixels))

    return jax.vmap(draw)(ids)


class AVS(nn.Module):
    """The whole model. Its fields are the keys of config.model, explained in configs/segment.py.

    Images are padded at the bottom and right to sides that are multiples of 32, and pred_masks
    cover the padded image. The output `intermediates` holds, with frames folded ([N, ...]),
    backbone, pre_sam_backbone, scale_factor, fused, audio_backbone, audio_features, pixel_decoder,
    ppqg, decoder and each stage by its parameter name.
    """

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
    text: Mapping[str, Any] = ABSENT
    head: Mapping[str, Any] = ABSENT
    temporal: Mapping[str, Any] = ABSENT
    localizer: Mapping[str, Any] = ABSENT

    HAS_PARTS = True  # its sections choose rows of models/parts.py
    RULES = (
        *at_least(2, "num_classes"),
        *at_least(0, "num_prototypes"),
        *at_least(1, "num_queries", "audio_hidden_dim"),
        within("hidden_dim", lambda x: x > 0 and x % GROUPS == 0, f"a multiple of {GROUPS}"),
        within("pre_mask_dropout", lambda x: 0 <= x <= 1, "a share, 0..1"),
        within("audio_std", lambda x: x > 0, "above 0"),
        *at_least(1, *(f"pixel_decoder.{key}" for key in ("num_layers", "ffn_dim", "num_points"))),
        divides("pixel_decoder.num_heads", "hidden_dim"),
        *at_least(1, "decoder.num_layers", "decoder.ffn_dim"),
        divides("decoder.num_heads", "hidden_dim"),
        one_of("decoder.prompt", PROMPTS),
        one_of("remat", REMAT_POLICIES),
        one_of("dtype", DTYPES),
        one_of("backbone.name", list(MAP_BACKBONES)),
        one_of("text.name", ["none", *TOKEN_ENCODERS]),
        one_of("audio_backbone.name", list(MAP_AUDIO_BACKBONES)),
    )

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        train: bool = False,
        progress: jax.Array | float = 1.0,
        gumbel_noise: jax.Array | None = None,
    ) -> dict[str, Any]:
        """Segments clips.

        Training draws from the rng streams `gumbel`, `drop_path`, `pre_mask_dropout` and those of
        the stages, and updates `batch_stats` if a stage has BatchNorms.

        Args:
          batch: images and log_mel; pre_masks if `pre_masks`; the fields the stages read; valid
            (default: all) and frame_index (default: 0 .. T-1). See the table in data/clip.py.
          train: training behavior.
          progress: [], fraction of the training that is done.
          gumbel_noise: float32 [B*T, Q, h*w] added to the assignment scores, h*w the pixels at
            stride 4. None: drawn in training, absent in evaluation.

        Returns:
          Outputs as described in avs_jax.spec, and `intermediates`. Clips with several expressions
          have a row for each, in the order of text_ids.

        Raises:
          ValueError: a missing field or a wrong shape.
          InputError: an unknown part.
        """
        batch = _ask_several(batch)
        sizes = self._check_batch(batch)
        num_texts = sizes.get("X", sizes["B"]) // sizes["B"]
        encoded, clip_sound, intermediates = encode(self, batch, sizes, train)
        text, phrases = encode_text(self, batch, sizes["T"])
        location, locations = self._locate(
            encoded, text, phrases, clip_sound, sizes["T"], num_texts
        )
        compared = encoded.levels[-1]  # with the phrases of its clip, or with the row's expression
        if num_texts != 1:
            batch, encoded = _repeat_for_expressions(batch, encoded, sizes["T"], num_texts)
            compared = encoded.levels[-1] if phrases is None else compared
        predictor = self._make_predictor()
        stage_inputs = StageInputs(
            **encoded._asdict(),
            # In a fixed order: the program, and so its place in the cache, depends on it.
            fields={name: prepare_field(batch[name]) for name in sorted(self.stage_fields())},
            valid=fold_frames(batch["valid"]) if "valid" in batch else None,
            train=train,
            progress=progress,
            num_frames=sizes["T"],
            text=text,
            image_size=batch["images"].shape[2:4],
            mask_prior=lambda: mask_prior(predictor, encoded),
            location=location,
        )
        stage_inputs, pixel_weights, updates, named = self._run_stages(stage_inputs, intermediates)
        if train and gumbel_noise is None:
            gumbel_noise = self._draw_gumbel(encoded)
        decoded, steps = predictor(
            stage_inputs.levels,
            stage_inputs.mask_features,
            stage_inputs.audio,
            pixel_weights,
            gumbel_noise,
            text,
            updates,
            stage_inputs.location,
        )
        outputs = self._unfold(decoded, named, sizes["T"])
        if self.head["name"] != "none":
            queries = steps["decoder"]["ffn"][-1]
            outputs |= self._refer(queries, compared, text, phrases, stage_inputs)
        if locations is not None:
            outputs["location_logits"] = unfold_frames(locations, sizes["T"])
        return outputs | {"intermediates": intermediates | steps}

    def stages(self) -> dict[str, Stage]:
        """Dotted section of the configuration -> row of the stages that are on, in order."""
        return {section: row for section, (row, _) in self._rows().items()}

    def _rows(self) -> dict[str, tuple[Stage, Mapping[str, Any]]]:
        """The same, with the keys of each row."""
        rows = {}
        for section in STAGES:
            rows |= find_rows(section, getattr(self, section))
        return rows

    def stage_fields(self) -> set[str]:
        """Fields of the batch that the stages read."""
        return {name for stage in self.stages().values() for name in stage.reads}

    def reads(self) -> set[str]:
        """Fields of the batch without which the model cannot run."""
        always = ("images", "log_mel", "pre_masks") if self.pre_masks else ("images", "log_mel")
        words = () if self.text["name"] == "none" else TEXT_FIELDS
        return {*always, *words, *self.stage_fields()}

    def _run_stages(
        self, stage_inputs: StageInputs, intermediates: dict[str, Any]
    ) -> tuple[StageInputs, jax.Array | None, list[Callable], dict[str, jax.Array]]:
        """What the stages make of the inputs, and their results; adds to `intermediates`.

        Returns:
          the inputs; the sum of the pixel weights; functions of the queries, in order; outputs.
        """
        pixel_weights, updates, named = None, [], {}
        for section, (stage, config) in self._rows().items():
            result = self._run_stage(section, stage, config, stage_inputs)
            named |= result.outputs
            intermediates[stage.parameter] = result.intermediates
            if result.pixel_weights is not None:
                added = result.pixel_weights
                pixel_weights = added if pixel_weights is None else pixel_weights + added
            if result.update_queries is not None:
                updates.append(result.update_queries)
            if result.features is not None:
                stage_inputs = dataclasses.replace(stage_inputs, mask_features=result.features)
            if result.levels is not None:
                stage_inputs = dataclasses.replace(stage_inputs, levels=result.levels)
        return stage_inputs, pixel_weights, updates, named

    def _run_stage(self, section, stage, config, inputs) -> StageResult:
        fields = {"dtype": jnp.dtype(self.dtype)} if hasattr(stage.module, "dtype") else {}
        module = make_part(section, stage.module, config, name=stage.parameter, **fields)
        result = stage.apply(module, inputs)
        for place in set(PLACES) - set(stage.acts_on):
            if getattr(result, place) is not None:
                raise ValueError(f"stage {stage.parameter!r} changes {place}: not in its acts_on")
        return result

    def _check_batch(self, batch):
        """Axis sizes of a batch; raises if a field is missing or has the wrong shape."""
        missing = sorted(self.reads() - set(batch))
        if missing:
            raise ValueError(
                f"the batch has no {', '.join(missing)}, which this model reads "
                f"(pre_masks = {self.pre_masks}, fusion = {self.fusion['name']!r}); "
                f"it has {sorted(batch)}"
            )
        sizes: dict[str, int] = {}
        for name, pattern in INPUTS.items():
            if name in batch:
                sizes = check_shape(name, batch[name], pattern, **sizes)
        expressions = sizes.get("X", sizes["B"])
        if expressions != sizes["B"] and expressions % sizes["B"]:
            raise ValueError(
                f"text_ids: {expressions} expressions for {sizes['B']} clips: expected the same "
                "number for each clip"
            )
        if sizes.get("C", 1) not in (1, 2):
            raise ValueError(f"motion: {sizes['C']} channels, expected 1 (strength) or 2 (u, v)")
        return sizes

    def _make_predictor(self) -> VCTDecoder:
        return make_part(
            "decoder",
            VCTDecoder,
            self.decoder,
            num_classes=self.num_classes,
            num_prototypes=self.num_prototypes,
            num_queries=self.num_queries,
            remat=self.remat == "all",
            dtype=jnp.dtype(self.dtype),
            name="predictor",
        )

    def _locate(self, encoded, text, phrases, clip_sound, num_frames, num_texts):
        """Logits of where expressions mean: of the rows [N, h, w], and of all [N, P, h, w].

        Frames are read once for the expressions of their clip; of its phrases, the rows' are the
        first.
        """
        module = find_part("localizer", self.localizer)
        if module is None:
            return None, None
        if text is None:
            raise InputError(
                f"localizer.name = {self.localizer['name']!r} reads text, but text is none"
            )
        locate = make_part("localizer", module, self.localizer, name="localizer")
        words = pool_tokens(*text) if phrases is None else phrases
        if phrases is None and num_texts != 1:
            order = "(b e t) p d -> (b t) (e p) d"
            words = rearrange(words, order, e=num_texts, t=num_frames)
        heard = (jnp.repeat(x, num_frames, axis=0) for x in clip_sound)
        found = locate(encoded.levels[-1], encoded.audio, words, *heard)
        if num_texts == 1:
            return found[:, 0], found
        own = rearrange(found[:, :num_texts], "(b t) e h w -> (b e t) h w", t=num_frames)
        return own, own[:, None] if phrases is None else found

    def _draw_gumbel(self, encoded):
        """Noise for the queries, [N, Q, h*w]."""
        num_pixels = math.prod(encoded.mask_features.shape[1:3])
        return gumbel(self.make_rng("gumbel"), encoded.ids, self.num_queries, num_pixels)

    def _refer(self, queries, features, text, phrases, stage_inputs):
        """What the head makes of an expression, with axes B and T; those of texts have B alone."""
        if text is None:
            raise InputError(f"head.name = {self.head['name']!r} reads text, but text is none")
        head = make_part("head", find_part("head", self.head), self.head, name="head")
        per_frame, scalars = head(
            queries,
            stage_inputs.audio,
            *text,
            features,
            stage_inputs.progress,
            stage_inputs.location,
            phrases,
        )
        outputs = {name: unfold_frames(x, stage_inputs.num_frames) for name, x in per_frame.items()}
        texts = {n: outputs[n][:, 0] for n in ("align_text", "align_phrases") if n in outputs}
        return outputs | texts | scalars

    def _unfold(self, decoded, named, num_frames):
        """The outputs with axes B and T."""

        def unfold(x):
            return unfold_frames(x, num_frames)

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
        return outputs | {name: unfold(x) for name, x in named.items()}


def mask_prior(predictor: VCTDecoder, encoded: Encoded) -> jax.Array:
    """The greatest mask logit of the initial queries, [N, h, w]: where something may be."""
    decoded, _ = predictor(encoded.levels, encoded.mask_features, encoded.audio)
    return decoded["predictions"][0]["pred_masks"].max(-1)


def _ask_several(batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """The batch with the expressions that training asks of every clip as the rows' texts."""
    if not set(ASKED_FIELDS.values()) <= set(batch):
        return batch
    asked = {name: fold_frames(batch[field]) for name, field in ASKED_FIELDS.items()}
    return {**batch, **asked}


def _repeat_for_expressions(
    batch: Mapping[str, jax.Array], encoded: Encoded, num_frames: int, num_texts: int
) -> tuple[Mapping[str, jax.Array], Encoded]:
    """Both with every clip once per expression, in a row; so far, expressions shared a clip."""
    encoded = jax.tree.map(lambda x: repeat_clips(x, num_frames, num_texts), encoded)
    repeated = {
        name: x if name in TEXT_FIELDS else jnp.repeat(x, num_texts, axis=0)
        for name, x in batch.items()
    }
    return repeated, encoded


def check_inputs(params: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Checks that the query mixer, whose width is a pixel count, fits the images [B, T, H, W, 3].

    Raises:
      InputError: naming both sizes.
    """
    size = inputs["images"].shape[2:4]
    have = params["predictor"]["visual_query_block"]["query_mixer"]["layers_0"]["kernel"].shape[0]
    padded = [n + -n % SIZE_DIVISOR for n in size]
    want = math.prod(n // MASK_STRIDE for n in padded)
    if have == want:
        return
    side = round(have**0.5)
    square = f" (images of {side * MASK_STRIDE} x {side * MASK_STRIDE} px)"
    raise InputError(
        f"the checkpoint's query mixer is made for {have} pixels at stride {MASK_STRIDE}"
        f"{square if side * side == have else ''}, images of {size[0]} x {size[1]} px have {want}"
    )
