"""SAM2 prompted by sounds and words: the mask of what sounds in a frame, or of what is meant.

    features = SAM2's encoder(image) [, CMA with the words]              of every frame
    tokens = audio prompts(VGGish(log-mel)) [, W LN(text encoder(words))]
    masks 1 to 3, IoUs, object score = SAM2's decoder(features [| memory], prompt)
    prompt = [no point, no point, tokens]
    m = the mask of the greatest IoU, NO_OBJECT where the object score says that nothing sounds
    two classes: logit m;  more: log sigmoid(-m), log sigmoid(m) + log softmax(c)

c are the logits of the class head: products of the decoder's map with a vector per class.
With `memory`, the first frame of a clip is remembered as a prompted one and the others follow as in
tracking, each with its own sound. Pointers count frames as in a long video, so frames that pad a
clip change nothing. Memories are those of the features without words. Without audio tokens and
words, m is SAM2's answer to an empty prompt; CMA starts as the identity (fusion/cma.py).

Source: ours, of SAM2's parts (model.py). Sa2VA puts its language token in the same place, behind
two tokens of "no point".
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.avs import ABSENT
from avs_jax.models.backbones.hiera import Hiera
from avs_jax.models.inputs import INPUTS, TEXT_FIELDS, prepare_images
from avs_jax.models.layers import MLP, LayerNorm, Linear
from avs_jax.models.parts import MAP_AUDIO_BACKBONES, TOKEN_ENCODERS, find_part, make_part
from avs_jax.models.rules import at_least, divides, nested, one_of, within
from avs_jax.models.sam2.audio_prompts import AudioPrompts
from avs_jax.models.sam2.bank import LONG_VIDEO, remember, remember_prompted
from avs_jax.models.sam2.mask_decoder import DecodedMasks, choose
from avs_jax.models.sam2.model import SAM2, no_prompt
from avs_jax.models.sam2.neck import ImageFeatures
from avs_jax.models.sam2.prompts import MoreTokens
from avs_jax.models.stage import Stage
from avs_jax.ops.frames import fold_frames, repeat_clips, unfold_frames
from avs_jax.spec import TRUNK_MAPS, InputError, check_shape

RNG_STREAMS = ()  # nothing is drawn in training
TRUNK_LEVELS = ("res2", "res3", "res4")  # strides of the maps, as CMA names them
CERTAIN = 1e9  # logit

Array = jax.Array


class SAM2Host(nn.Module):
    """The whole model.

    Attributes:
      num_classes: K; 2 makes one map of logits, more make K.
      sam2: the fields of `SAM2`.
      audio_backbone: name and fields of a row of MAP_AUDIO_BACKBONES.
      audio_mean, audio_std: log-mels enter as (x - mean) / std.
      num_audio_tokens: per frame; 0: the sound changes nothing.
      audio_heads: of the attention that makes them.
      memory: frames of a clip see the ones before.
      text: name and fields of a row of TOKEN_ENCODERS; for task `refer`.
      text_prompt: words are tokens of the prompt.
      fusion: "cma" and its fields: words enter the maps.
    """

    num_classes: int
    sam2: Mapping[str, Any]
    audio_backbone: Mapping[str, Any]
    audio_mean: float
    audio_std: float
    num_audio_tokens: int
    audio_heads: int
    memory: bool
    text: Mapping[str, Any] = ABSENT
    text_prompt: bool = False
    fusion: Mapping[str, Any] = ABSENT

    HAS_PARTS = True
    RULES = (
        *at_least(2, "num_classes"),
        *at_least(0, "num_audio_tokens"),
        within("audio_std", lambda x: x > 0, "above 0"),
        divides("audio_heads", "sam2.width"),
        one_of("memory", (True, False)),
        one_of("text_prompt", (True, False)),
        one_of("text.name", ["none", *TOKEN_ENCODERS]),
        one_of("fusion.name", ["none", "cma"]),
        one_of("audio_backbone.name", list(MAP_AUDIO_BACKBONES)),
        one_of("sam2.backbone.name", ("hiera",)),
        *nested("sam2", (*SAM2.RULES, *Hiera.RULES)),
    )

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, Array],
        train: bool = False,
        progress: Array | float = 1.0,
    ) -> dict[str, Any]:
        """Segments clips.

        Args:
          batch: images, log_mel and valid (default: all), see the table in data/clip.py; text_ids
            and text_mask with `text`; and trunk_fine, trunk_middle and trunk_coarse, if the images'
            maps are cached.
          train: recompute a frame's decoding in the backward pass, with `memory`.
          progress: [], fraction of the training that is done.

        Returns:
          pred_masks           float32 [B, T, h, w, K'], stride 4 of the padded image: logits of m,
                               K' = 1, or scores of K' = K classes
          object_score_logits  float32 [B, T], above 0 where something sounds
          and what only the loss reads: candidate_masks [B, T, h, w, 3] and candidate_ious
          [B, T, 3], masks 1 to 3; class_logits [B, T, h, w, K - 1], c, of more than two classes.
          With `text`, the outputs are those of a single query that is certainly the object:
          pred_masks before anything is hidden, pred_logits [B, T, 1, 3], and the object score as
          presence_logits.

        Raises:
          ValueError: a missing field or a wrong shape.
        """
        sizes = self._check_batch(batch)
        images = prepare_images(batch["images"])
        sam2 = make_part("sam2", SAM2, self.sam2, name="sam2")
        if self.is_initializing():
            sam2.initialize(images[:1])
        features = encode(sam2, images, batch)
        num_texts = sizes.get("X", sizes["B"]) // sizes["B"]
        if num_texts > 1:  # the expressions of a clip share its images
            features = jax.tree.map(lambda x: repeat_clips(x, sizes["T"], num_texts), features)
            batch = {
                name: x if name in TEXT_FIELDS else jnp.repeat(x, num_texts, axis=0)
                for name, x in batch.items()
            }
        text = self._encode_text(batch, sizes["T"])
        fused = self._fuse_words(features, text, progress)
        more = self._make_tokens(batch["log_mel"], text)
        if self.memory and not self.is_initializing():
            valid = batch.get("valid", jnp.ones((sizes["B"] * num_texts, sizes["T"]), bool))
            decoded = decode_with_memory(sam2, features, fused, more, valid, train)
        else:
            seen = sam2.without_memory(fused)
            decoded = sam2.decode_tracked(seen, *no_prompt(seen), more)
        found = sam2.as_segments(decoded, _all(decoded))
        outputs = {
            "pred_masks": found.low_res_mask[..., None],
            "object_score_logits": found.object_score_logits[:, 0],
            "candidate_masks": decoded.masks[..., 1:],
            "candidate_ious": decoded.ious[:, 1:],
        }
        if self.num_classes > 2:
            outputs["class_logits"] = self._classify(decoded)
            outputs["pred_masks"] = class_scores(found.low_res_mask, outputs["class_logits"])
        if text is not None:
            outputs |= as_query(decoded)
        return {name: unfold_frames(x, sizes["T"]) for name, x in outputs.items()}

    def stages(self) -> dict[str, Stage]:
        """Section of the configuration -> row of an optional stage."""
        row = find_part("fusion", self.fusion)
        return {} if row is None else {"fusion": row}

    def reads(self) -> set[str]:
        """Fields of the batch without which the model cannot run."""
        words = () if self.text["name"] == "none" else TEXT_FIELDS
        return {"images", "log_mel", *words}

    def _check_batch(self, batch):
        missing = sorted(self.reads() - set(batch))
        if missing:
            raise ValueError(f"the batch has no {', '.join(missing)}; it has {sorted(batch)}")
        sizes: dict[str, int] = {}
        for name in ("images", "log_mel", "valid", *TEXT_FIELDS):
            if name in batch:
                sizes = check_shape(name, batch[name], INPUTS[name], **sizes)
        expressions = sizes.get("X", sizes["B"])
        if expressions % sizes["B"]:
            raise ValueError(
                f"text_ids: {expressions} expressions for {sizes['B']} clips: expected the same "
                "number for each clip"
            )
        return sizes

    def _encode_text(self, batch, num_frames):
        """Tokens [N, L, Dt] and which exist, once per frame; None without an encoder."""
        module = find_part("text", self.text)
        if module is None:
            return None
        dtype = jnp.dtype(self.sam2["dtype"])
        encode = make_part("text", module, self.text, dtype=dtype, name="text")
        mask = batch["text_mask"]
        tokens = encode(batch["text_ids"], mask)
        return tuple(jnp.repeat(x, num_frames, axis=0) for x in (tokens, mask))

    def _fuse_words(self, features, text, progress):
        """The features with the words in them, if CMA is on."""
        row = find_part("fusion", self.fusion)
        if row is None:
            return features
        if text is None:
            raise InputError("fusion.name = 'cma' reads text, but config.model.text is none")
        dtype = jnp.dtype(self.sam2["dtype"])
        cma = make_part("fusion", row.module, self.fusion, dtype=dtype, name=row.parameter)
        maps = dict(zip(TRUNK_LEVELS, features, strict=True))
        changed, _ = cma(maps, *text, None, progress)
        return ImageFeatures(*(changed[level] for level in TRUNK_LEVELS))

    def _make_tokens(self, log_mel, text):
        """Tokens of sound and words of all frames, or None."""
        found = []
        if self.num_audio_tokens:
            tokens = self._encode_audio(log_mel)
            found.append(MoreTokens(tokens, jnp.ones(tokens.shape[:2], bool)))
        if self.text_prompt and text is not None:
            dtype, (tokens, exists) = jnp.dtype(self.sam2["dtype"]), text
            tokens = LayerNorm(name="text_norm")(tokens)
            tokens = Linear(self.sam2["width"], dtype=dtype, name="text_proj")(tokens)
            found.append(MoreTokens(tokens, exists))
        join = functools.partial(jnp.concatenate, axis=1)
        return MoreTokens(*map(join, zip(*found, strict=True))) if found else None

    def _encode_audio(self, log_mel):
        """Tokens [N, P, D] of all frames."""
        dtype = self.sam2["dtype"]
        backbone = make_part(
            "audio_backbone",
            find_part("audio_backbone", self.audio_backbone),
            self.audio_backbone,
            dtype=dtype,
            name="audio_backbone",
        )
        cells = backbone((fold_frames(log_mel) - self.audio_mean) / self.audio_std)
        prompts = AudioPrompts(
            self.num_audio_tokens,
            self.sam2["width"],
            self.audio_heads,
            jnp.dtype(dtype),
            name="audio_prompts",
        )
        return prompts(cells)

    def _classify(self, decoded):
        """Logits float32 [N, h, w, K - 1] of the classes that are not background."""
        token = choose(decoded, _all(decoded)).token
        num, dim = token.shape
        shape = (self.num_classes - 1, dim)
        classes = self.param("class_embed", nn.initializers.normal(1.0), shape).astype(token.dtype)
        vectors = MLP((dim, dim, dim // 8), token.dtype, name="class_head")(
            jnp.broadcast_to(token[:, None], (num, *shape)) + classes[None]
        )
        return jnp.einsum(
            "nhwc,nkc->nhwk", decoded.image, vectors, preferred_element_type=jnp.float32
        )


def as_query(decoded: DecodedMasks) -> dict[str, Array]:
    """The best candidate as the only query of a frame, of class 1 (results/pixel_scores.py)."""
    mask = choose(decoded, _all(decoded)).mask
    logits = jnp.array([-CERTAIN, 0.0, -CERTAIN], jnp.float32)[None, None]
    return {
        "pred_masks": mask[..., None],
        "pred_logits": jnp.broadcast_to(logits, (mask.shape[0], 1, 3)),
        "presence_logits": decoded.object_score[:, 0],
    }


def class_scores(mask: Array, classes: Array) -> Array:
    """Log probabilities [N, h, w, K] from logits: mask [N, h, w] and classes [N, h, w, K - 1]."""
    mask = mask.astype(jnp.float32)[..., None]
    inside = nn.log_sigmoid(mask) + nn.log_softmax(classes, axis=-1)
    return jnp.concatenate([nn.log_sigmoid(-mask), inside], axis=-1)


def encode(sam2: SAM2, images: Array, batch: Mapping[str, Array]) -> ImageFeatures:
    """The maps of all frames: cached ones, or those of images [N, H, W, 3]."""
    if TRUNK_MAPS[0] not in batch:
        return sam2.encode_images(images)
    dtype = jnp.dtype(sam2.dtype)
    return ImageFeatures(*(fold_frames(batch[name]).astype(dtype) for name in TRUNK_MAPS))


def decode_with_memory(
    sam2: SAM2,
    features: ImageFeatures,
    fused: ImageFeatures,
    more: MoreTokens | None,
    valid: Array,
    train: bool,
) -> DecodedMasks:
    """Decodes clips frame by frame, each frame seeing the valid ones before.

    Args:
      sam2: bound.
      features: of all frames, [N, ...], as they are remembered.
      fused: the same with words in them, as they are decoded.
      more: tokens of all frames.
      valid: bool [B, T].

    Returns:
      all frames, [N, ...].
    """
    num_clips, num_frames = valid.shape
    module, variables = sam2.unbind()

    def call(method, *args):
        return module.apply(variables, *args, method=method)

    def by_time(x):
        return jnp.swapaxes(unfold_frames(x, num_frames), 0, 1)

    def decode(now, seen, tokens):
        decoded = call("decode_tracked", seen, *no_prompt(seen), tokens)
        segments = call("as_segments", decoded, _all(decoded))
        return decoded, call("encode_memory", now, segments)

    def follow(bank, inputs):
        frame, now, fused, tokens, is_new = inputs
        decoded, memory = decode(now, call("with_memory", fused, bank, frame, LONG_VIDEO), tokens)
        return remember(bank, memory, frame, is_new), decoded

    frames = jax.tree.map(by_time, (features, fused, more))
    now, now_fused, tokens = jax.tree.map(lambda x: x[0], frames)
    first, memory = decode(now, call("without_memory", now_fused), tokens)
    bank = call("new_bank", memory, 1)
    bank = remember_prompted(bank, memory, jnp.int32(0), jnp.ones(num_clips, bool))
    later = jax.tree.map(lambda x: x[1:], frames)
    inputs = (jnp.arange(1, num_frames), *later, valid.T[1:])
    _, rest = jax.lax.scan(jax.checkpoint(follow) if train else follow, bank, inputs)
    join = functools.partial(jnp.concatenate, axis=0)
    decoded = jax.tree.map(lambda x, y: join([x[None], y]), first, rest)
    return jax.tree.map(lambda x: fold_frames(jnp.swapaxes(x, 0, 1)), decoded)


def _all(decoded: DecodedMasks) -> Array:
    """Every prompt is ambiguous: bool [N]."""
    return jnp.ones(decoded.ious.shape[0], bool)
