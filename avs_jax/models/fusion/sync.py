"""Synchrony: where motion goes with the sound, not only where there is motion.

Per frame, from a window of R samples of the motion of 24 x 24 cells and of the sound's energy and
rise (data/synchrony.py); no color and no position enters:

  b_x(t) = log(1 + speed / 0.1), its derivative, the signed speed along the cell's principal axis,
           and the first two of the mean speed within `reach` cells (objects cross cells)
  m_x, a = temporal convolutions of b_x and of the sound, each minus its mean over the window before
           and after, of unit length over time and channels; shared by all cells
  C_x(l) = R / (R - |l|) sum_t m_x(t + l) . a(t)                for lags |l| <= max_lag, in samples
  s_x    = logmeanexp_near(C_x / tau) - logmeanexp_far(C_x / tau)
  e_x    = v_x / (v_x + 0.02), v_x the mean speed within `reach`: 0 where nothing moves
  z_x    = g (e_x tanh(s_x / 4), the same minus its e-weighted mean over the frame)

near: lags within `near` samples of a learned offset, with a soft edge. far: the others, except
those at which the sound's own autocorrelation exceeds 0.7: periodic sounds fit there, too.
So s compares a cell with itself at other times, and loud, big or constant motion has no advantage.

  g        = sigmoid(MLP[max_x e_x s_x, log motion energy, log rise energy]): can this be judged?
  queries  : pixel weights z W_q      features : mask features + z W_f        both W initially 0

So a model without this part gives the same masks with it, until it is trained. Without a track, all
z are 0.

Source: ours. Synchformer (arXiv 2401.16423) learns synchrony from embeddings of whole segments;
here, every cell is judged, and appearance cannot help.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.layers import Linear
from avs_jax.models.rules import at_least, one_of, within
from avs_jax.models.stage import Stage, StageInputs, StageResult
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import MASK_STRIDE

AT = ("queries", "features", "both")
KERNEL, DILATIONS = 5, (1, 2, 4)
FAST = 0.1  # sides of the image per second
REST = 0.02  # likewise: slower is still
PERIODIC = 0.7
EPSILON = 1e-6
TAU = 0.1
GATE_WIDTH = 16
EVIDENCE_SCALE = 4.0
LOSS_OUTPUTS = ("lags", "near", "far", "score", "activity")


class TemporalConv(nn.Module):
    """Dilated convolution over the time of [N, R, S, C], repeating the ends."""

    features: int
    dilation: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, reach = x.shape[-1], KERNEL // 2 * self.dilation
        init = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (KERNEL, width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        x = jnp.concatenate([x[:, :1]] * reach + [x] + [x[:, -1:]] * reach, axis=1)
        # Over [R, S] as over a picture, with S innermost but for C: half the time, on a CPU, of
        # shifted products or of sequences whose time is innermost.
        y = jax.lax.conv_general_dilated(
            x,
            kernel[:, None].astype(self.dtype),
            (1, 1),
            "VALID",
            rhs_dilation=(self.dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class SequenceEncoder(nn.Module):
    """Sequences [N, R, S, C] to [N, R, S, width] without a mean and of unit length, float32."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - x.mean(1, keepdims=True)
        for i, dilation in enumerate(DILATIONS):
            x = TemporalConv(self.width, dilation, self.dtype, name=f"conv_{i}")(x)
            if i < len(DILATIONS) - 1:
                x = nn.gelu(x)
        x = x.astype(jnp.float32)
        x = x - x.mean(1, keepdims=True)
        square = jnp.square(x).sum((1, 3), keepdims=True)
        return x * jax.lax.rsqrt(square + EPSILON)


class Sync(nn.Module):
    """The evidence of each cell, and the pixel weights and mask features that follow from it."""

    width: int = 64  # channels of the sequences
    max_lag: int = 25  # samples
    near: int = 2  # samples around the learned offset that count as in time
    reach: int = 3  # cells on each side over which speeds are averaged, too
    at: str = "both"  # or "queries", "features": where the evidence acts
    dtype: jnp.dtype = jnp.float32  # of the convolutions

    RULES = (
        *at_least(1, "fusion.width", "fusion.max_lag"),
        *at_least(0, "fusion.near", "fusion.reach"),
        one_of("fusion.at", AT),
        within("fusion.max_lag", lambda x: x < 1 << 10, "a whole number of samples below 1024"),
    )

    @nn.compact
    def __call__(
        self,
        track: jax.Array,
        sound: jax.Array,
        mask_features: jax.Array,
        image_size: tuple[int, int],
    ) -> tuple[jax.Array | None, jax.Array | None, dict[str, jax.Array]]:
        """From the fields motion_track [N, R, g, g, 2] and sound_track [N, R, F].

        Args:
          mask_features: [N, h, w, D] at stride 4, of the padded image.
          image_size: (H, W) of the image that the cells cover.

        Returns:
          the pixel weights [N, h, w] and the mask features [N, h, w, D], None where `at` says so;
          and evidence [N, g, g], the first channel of z; gate [N]; lag [N], samples at which the
          cell of the greatest evidence fits best; for the loss, lags [N, g, g, L], C / tau, and
          near and far [N, L], weights of the lags; score [N, g, g], e tanh(s / 4), and activity, e.
          All are float32.
        """
        track, sound = track.astype(jnp.float32), sound.astype(jnp.float32)
        found = self._judge(track, sound)
        gate = self._gate(found["strongest"], track, sound)
        evidence = jnp.stack([found["score"], found["relative"]], axis=-1)
        evidence = evidence * gate[:, None, None, None]
        size = mask_features.shape[1:3]
        zeros = nn.initializers.zeros
        upsampled = _cover(evidence, image_size, size)
        pixel_weights = features = None
        if self.at != "features":
            project = Linear(1, use_bias=False, kernel_init=zeros, name="query_proj")
            pixel_weights = project(upsampled)[..., 0]
        if self.at != "queries":
            width = mask_features.shape[-1]
            project = Linear(width, use_bias=False, kernel_init=zeros, name="feature_proj")
            features = mask_features + project(upsampled).astype(mask_features.dtype)
        return pixel_weights, features, found | {"evidence": evidence[..., 0], "gate": gate}

    def _judge(self, track: jax.Array, sound: jax.Array) -> dict[str, jax.Array]:
        """What every cell says by itself, before the gate."""
        length, cells = track.shape[1], track.shape[2:4]
        sequences, speed = motion_sequences(track, self.reach)
        moves = SequenceEncoder(self.width, self.dtype, name="motion")(sequences)
        heard = SequenceEncoder(self.width, self.dtype, name="sound")(sound[:, :, None])[:, :, 0]
        lags = range(-self.max_lag, self.max_lag + 1)
        shifted = jnp.stack([_shift(heard, lag) for lag in lags], axis=1)
        overlap = np.float32([length / max(length - abs(lag), 1) for lag in lags])
        match = jnp.einsum("nrsc,nlrc->nsl", moves, shifted) * overlap[None, None]
        itself = jnp.einsum("nrc,nlrc->nl", heard, shifted) * overlap[None]

        log_tau = self.param("log_tau", nn.initializers.constant(math.log(TAU)), (1,))
        offset = self.param("offset", nn.initializers.zeros, (1,))[0]
        near, far = lag_weights(jax.lax.stop_gradient(itself), offset, self.near)
        match = match * jnp.exp(-log_tau)[None, None]
        evidence = _log_mean(match, near) - _log_mean(match, far)
        activity = speed / (speed + REST)
        score = activity * jnp.tanh(evidence / EVIDENCE_SCALE)
        mean = (activity * score).sum(1) / jnp.maximum(activity.sum(1), EPSILON)
        best = jnp.argmax(score, axis=1)
        at_best = jnp.take_along_axis(match, best[:, None, None], axis=1)[:, 0]

        def unfold(x):
            return x.reshape(x.shape[0], *cells, *x.shape[2:])

        return {
            "score": unfold(score),
            "relative": unfold(activity * (score - mean[:, None])),
            "activity": unfold(activity),
            "strongest": jnp.max(activity * evidence, axis=1),
            "lag": jnp.argmax(at_best, axis=1).astype(jnp.float32) - self.max_lag,
            "lags": unfold(match),
            "near": near,
            "far": far,
        }

    def _gate(self, strongest: jax.Array, track: jax.Array, sound: jax.Array) -> jax.Array:
        energy = jnp.square(track).sum(-1).mean((1, 2, 3))
        rise = jnp.square(sound[..., sound.shape[-1] // 2 :]).mean((1, 2))
        known = [strongest, jnp.log(energy + EPSILON), jnp.log(rise + EPSILON)]
        hidden = nn.gelu(Linear(GATE_WIDTH, name="gate_0")(jnp.stack(known, axis=-1)))
        return nn.sigmoid(Linear(1, name="gate_1")(hidden)[:, 0])


def _cover(x: jax.Array, image_size: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """A map [N, g, g, C] of an image at stride 4, 0 where the image is padded: [N, h, w, C]."""
    inner = [min(-(-n // MASK_STRIDE), most) for n, most in zip(image_size, size, strict=True)]
    resized = resize_bilinear(x, tuple(inner))
    bottom, right = (most - n for n, most in zip(inner, size, strict=True))
    return jnp.pad(resized, ((0, 0), (0, bottom), (0, right), (0, 0)))


def motion_sequences(track: jax.Array, reach: int) -> tuple[jax.Array, jax.Array]:
    """How cells move, from velocities [N, R, g, g, 2].

    Returns:
      sequences [N, R, g * g, 5], see above (3 if `reach` is 0); and mean speeds [N, g * g] within
      `reach` cells.
    """
    u, v = track[..., 0], track[..., 1]
    speed = jnp.sqrt(jnp.square(u) + jnp.square(v))
    angle = jnp.arctan2(2 * (u * v).sum(1), jnp.square(u).sum(1) - jnp.square(v).sum(1)) / 2
    signed = u * jnp.cos(angle)[:, None] + v * jnp.sin(angle)[:, None]
    around = _box_mean(speed, reach)
    sequences = [*_level_and_change(speed), signed / FAST]
    if reach:
        sequences += _level_and_change(around)
    stacked = jnp.stack(sequences, axis=-1)  # [N, R, g, g, C]
    count, length = stacked.shape[:2]
    stacked = stacked.reshape(count, length, -1, stacked.shape[-1])
    return stacked, around.mean(1).reshape(count, -1)


def _level_and_change(speed: jax.Array) -> list[jax.Array]:
    level = jnp.log1p(speed / FAST)
    return [level, jnp.diff(level, axis=1, prepend=level[:, :1])]


def _box_mean(x: jax.Array, reach: int) -> jax.Array:
    """Mean over the cells within `reach` on the two last axes; beyond the border nothing moves."""
    if not reach:
        return x
    size = 2 * reach + 1
    window = (1, 1, size, size)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME") / size**2


def _shift(x: jax.Array, lag: int) -> jax.Array:
    """x(t - lag) along axis 1 of [N, R, C], 0 beyond the ends."""
    length = x.shape[1]
    lag = max(-length, min(lag, length))
    if lag >= 0:
        return jnp.pad(x, ((0, 0), (lag, 0), (0, 0)))[:, :length]
    return jnp.pad(x, ((0, 0), (0, -lag), (0, 0)))[:, -lag:]


def lag_weights(itself: jax.Array, offset: jax.Array, near: int) -> tuple[jax.Array, jax.Array]:
    """Weights [N, L] in 0..1 of the lags that are in time and of those that are not.

    Args:
      itself: [N, L], autocorrelation of the sound at lags -L // 2 .. L // 2.
      offset: [], the lag that counts as in time, in samples.
      near: samples on each side of it.
    """
    half = itself.shape[1] // 2
    lags = jnp.arange(-half, half + 1)
    in_time = nn.sigmoid(4 * (near + 0.5 - jnp.abs(lags - offset)))
    from_offset = lags - jnp.round(jax.lax.stop_gradient(offset)).astype(jnp.int32)
    repeats = jnp.take(itself, jnp.clip(from_offset + half, 0, 2 * half), axis=1) > PERIODIC
    weights = jnp.broadcast_to(in_time[None], itself.shape)
    return weights, jnp.where(repeats, 0, 1 - weights)


def _log_mean(scores: jax.Array, weights: jax.Array) -> jax.Array:
    """log of the weighted mean of exp over the last axis: [N, S, L] and [N, L] to [N, S].

    0 where no lag has weight.
    """
    total = weights.sum(-1)
    greatest = jax.lax.stop_gradient(scores.max(-1))
    mean = (jnp.exp(scores - greatest[..., None]) * weights[:, None]).sum(-1)
    mean /= jnp.maximum(total, EPSILON)[:, None]
    found = greatest + jnp.log(jnp.maximum(mean, EPSILON**2))
    return jnp.where(total[:, None] > EPSILON, found, 0)


def _apply(module: Sync, inputs: StageInputs) -> StageResult:
    pixel_weights, features, found = module(
        inputs.fields["motion_track"],
        inputs.fields["sound_track"],
        inputs.mask_features,
        inputs.image_size,
    )
    names = ("evidence", "gate", "lag", *(LOSS_OUTPUTS if inputs.train else ()))
    return StageResult(
        pixel_weights=pixel_weights,
        features=features,
        outputs={f"sync_{name}": found[name] for name in names},
        intermediates=found,
    )


STAGE = Stage(
    Sync,
    parameter="sync",
    acts_on=("pixel_weights", "features"),
    apply=_apply,
    reads=("motion_track", "sound_track"),
    outputs=("sync_evidence", "sync_gate", "sync_lag"),
    logged_params={"sync_offset": "sync/offset"},
)
