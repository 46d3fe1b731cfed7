"""RAFT (Teed and Deng, ECCV 2020): optical flow between two frames, large and small.

  f1, f2 = feature encoder(frame 1, 2);  h, context = tanh | relu of context encoder(frame 1)
  repeat: c = correlation of f1 with f2 around x + flow, at four scales
          h = GRU(h, [context, motion encoder(c, flow)]);  flow += flow head(h)
  flow at 1/8 -> full size: a learned convex combination of 3 x 3 neighbors (large), or bilinear

Flow (u, v) is in px: the point (x, y) of frame 1 is at (x + u, y + v) in frame 2.

The iterations are one scan. `correlation` chooses how the inner products of f1 and f2 are stored,
see ops/correlation.py.

Source: torchvision's `raft_large`, `raft_small` and princeton-vl/RAFT, which agree bit for bit
under mapped weights; parameter names are torchvision's. Inference only: the context encoder's
BatchNorm uses its stored statistics.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.layers import BatchNorm
from avs_jax.ops.correlation import all_pairs, look_up, look_up_on_demand, pyramid
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import check_shape

STRIDE = 8  # px per cell of the recurrent part
MIN_SIDE = 128  # px; below, the coarsest level has fewer than two cells
CORRELATIONS = ("all_pairs", "on_demand")
EPSILON = 1e-5  # of the norms
MASK_GAIN = 0.25  # of the upsampling logits, balances their gradient in training


@dataclasses.dataclass(frozen=True)
class Variant:
    """The differences between the two models; tuples list layer widths from first to last."""

    is_bottleneck: bool  # blocks of three convolutions instead of two
    has_batch_norm: bool  # in the context encoder, which otherwise has no norm
    feature: tuple[int, ...]  # of stem, three stages and output
    context: tuple[int, ...]  # likewise
    hidden: int  # number of context channels that initialize the hidden state
    radius: int  # of the lookup window, in cells
    correlation_layers: tuple[int, ...]  # of the motion encoder
    flow_layers: tuple[int, ...]  # likewise
    motion: int  # width of the motion encoder's output, flow included
    gru_kernels: tuple[tuple[int, int], ...]  # (height, width) of the successive GRUs
    head: int  # width of the flow head
    has_mask: bool  # convex upsampling instead of bilinear


VARIANTS = {
    "raft_large": Variant(
        is_bottleneck=False,
        has_batch_norm=True,
        feature=(64, 64, 96, 128, 256),
        context=(64, 64, 96, 128, 256),
        hidden=128,
        radius=4,
        correlation_layers=(256, 192),
        flow_layers=(128, 64),
        motion=128,
        gru_kernels=((1, 5), (5, 1)),
        head=256,
        has_mask=True,
    ),
    "raft_small": Variant(
        is_bottleneck=True,
        has_batch_norm=False,
        feature=(32, 32, 64, 96, 128),
        context=(32, 32, 64, 96, 160),
        hidden=96,
        radius=3,
        correlation_layers=(96,),
        flow_layers=(64, 32),
        motion=82,
        gru_kernels=((3, 3),),
        head=128,
        has_mask=False,
    ),
}


class RAFT(nn.Module):
    """Optical flow; correlations, coordinates, norms and flow are float32."""

    variant: str = "raft_large"  # key of VARIANTS
    correlation: str = "all_pairs"  # or "on_demand": the same result, with different memory use
    dtype: str = "float32"  # of the convolutions

    @nn.compact
    def __call__(
        self,
        first: jax.Array,
        second: jax.Array,
        num_iterations: int = 12,
        return_all: bool = False,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Estimates the flow from the first frames to the second.

        Args:
          first, second: [N, H, W, 3], RGB 0..255 of any dtype; sides are multiples of 8 and at
            least 128 px (`pad_to_stride`).
          return_all: return the flow after every iteration.

        Returns:
          flow float32 [N, H, W, 2], or [num_iterations, N, H, W, 2]; intermediates: "first",
          "second" (features), "context", and "hidden", "low" (hidden state and flow at 1/8 after
          every iteration).
        """
        variant = self._check(first, second, num_iterations)
        dtype = jnp.dtype(self.dtype)
        frames = jnp.concatenate([first, second]).astype(jnp.float32) / 127.5 - 1
        features = Encoder(
            variant.feature, variant.is_bottleneck, "instance", dtype, name="feature_encoder"
        )(frames.astype(dtype))
        norm = "batch" if variant.has_batch_norm else "none"
        context = Encoder(
            variant.context, variant.is_bottleneck, norm, dtype, name="context_encoder"
        )(frames[: len(first)].astype(dtype))
        f1, f2 = jnp.split(features.astype(jnp.float32), 2)
        hidden = jnp.tanh(context[..., : variant.hidden])
        inputs = nn.relu(context[..., variant.hidden :])

        flow = jnp.zeros((*hidden.shape[:3], 2), jnp.float32)
        stored = self.correlation == "all_pairs"
        volume, f2_pyramid = (all_pairs(f1, f2), None) if stored else (None, pyramid(f2))
        scan = nn.scan(
            _Step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(nn.broadcast,) * 4,
            length=num_iterations,
        )
        (hidden, flow), (hiddens, flows) = scan(variant, dtype, name="update_block")(
            (hidden, flow), inputs, volume, f1, f2_pyramid
        )
        intermediates = dict(first=f1, second=f2, context=context, hidden=hiddens, low=flows)
        if return_all:  # fold iterations and pairs into one axis
            hidden, flow = (x.reshape(-1, *x.shape[2:]) for x in (hiddens, flows))
        if variant.has_mask:
            mask = MaskPredictor(dtype, name="mask_predictor")(hidden)
            flow = upsample_convex(flow, mask)
        else:
            size = tuple(STRIDE * n for n in flow.shape[1:3])
            flow = STRIDE * resize_bilinear(flow, size, align_corners=True)
        if return_all:
            flow = flow.reshape(num_iterations, -1, *flow.shape[1:])
        return flow, intermediates

    def _check(self, first, second, num_iterations) -> Variant:
        if self.variant not in VARIANTS:
            raise ValueError(f"RAFT variant {self.variant!r}: choose one of {sorted(VARIANTS)}")
        if self.correlation not in CORRELATIONS:
            raise ValueError(f"correlation {self.correlation!r}: choose one of {CORRELATIONS}")
        if num_iterations < 1:
            raise ValueError(f"{num_iterations} iterations, expected at least 1")
        sizes = check_shape("first", first, "N H W 3")
        check_shape("second", second, "N H W 3", **sizes)
        for axis in "HW":
            if sizes[axis] % STRIDE or sizes[axis] < MIN_SIDE:
                raise ValueError(
                    f"frames of {sizes['H']} x {sizes['W']} px: the sides must be multiples of "
                    f"{STRIDE} and at least {MIN_SIDE} px; pad_to_stride makes them so"
                )
        return VARIANTS[self.variant]


# ---- encoders ----


def conv(features: int, kernel: int | tuple[int, int], dtype: Any, name: str, stride: int = 1):
    """A convolution zero-padded by half its odd kernel, as in PyTorch."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = [(side // 2, side // 2) for side in kernel]
    return nn.Conv(features, kernel, (stride, stride), padding, dtype=dtype, name=name)


def instance_norm(x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 per channel and frame, in float32; no parameters."""
    y = x.astype(jnp.float32)
    y -= y.mean((1, 2), keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean((1, 2), keepdims=True) + EPSILON)
    return y.astype(x.dtype)


class Encoder(nn.Module):
    """Residual convolutions to 1/8 of the size."""

    widths: tuple[int, ...]  # of the stem, the three stages and the output
    is_bottleneck: bool  # blocks of 1 x 1, 3 x 3, 1 x 1 with a quarter of the width inside
    norm: str  # "instance", "batch" (stored statistics) or "none"
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, 3] -> [N, H/8, W/8, widths[-1]]."""
        x = conv(self.widths[0], 7, self.dtype, "convnormrelu_0", 2)(x)
        x = nn.relu(normalize(self.norm, x, "convnormrelu_1"))
        for stage, width in enumerate(self.widths[1:4], start=1):
            for block in range(2):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f"layer{stage}_{block}"
                x = Block(width, stride, self.is_bottleneck, self.norm, self.dtype, name=name)(x)
        return conv(self.widths[-1], 1, self.dtype, "conv")(x)


class Block(nn.Module):
    """relu(x + convolutions(x)); with a stride, a 1 x 1 convolution projects x."""

    width: int
    stride: int
    is_bottleneck: bool
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.width // 4
        layers = ((self.width, 3, self.stride), (self.width, 3, 1))
        if self.is_bottleneck:
            layers = ((inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1))
        y = x
        for number, (width, kernel, stride) in enumerate(layers, start=1):
            name = f"convnormrelu{number}"
            y = conv(width, kernel, self.dtype, f"{name}_0", stride)(y)
            y = nn.relu(normalize(self.norm, y, f"{name}_1"))
        if self.stride > 1:
            x = conv(self.width, 1, self.dtype, "downsample_0", self.stride)(x)
            x = normalize(self.norm, x, "downsample_1")
        return nn.relu(x + y)


def normalize(norm: str, x: jax.Array, name: str) -> jax.Array:
    """One of the three norms, called within the parent module of the BatchNorm."""
    if norm == "batch":
        return BatchNorm(name=name)(x, train=False)
    return instance_norm(x) if norm == "instance" else x


# ---- recurrent part ----


class UpdateBlock(nn.Module):
    """One iteration after the lookup."""

    variant: Variant
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, hidden: jax.Array, inputs: jax.Array, correlation: jax.Array, flow: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """hidden; the flow update, float32; the motion encoder's features.

        All are [N, h, w, C]: inputs of the context encoder, the correlation looked up around the
        flow, and the flow (float32, C = 2) in cells.
        """
        motion = MotionEncoder(self.variant, self.dtype, name="motion_encoder")(correlation, flow)
        recurrent = RecurrentBlock(self.variant.gru_kernels, self.dtype, name="recurrent_block")
        hidden = recurrent(hidden, jnp.concatenate([inputs, motion], axis=-1))
        delta = FlowHead(self.variant.head, self.dtype, name="flow_head")(hidden)
        return hidden, delta.astype(jnp.float32), motion


class _Step(UpdateBlock):
    """Lookup and update; the body of the scan."""

    @nn.compact
    def __call__(self, carry, inputs, volume, f1, f2_pyramid):
        hidden, flow = carry
        n, height, width = flow.shape[:3]
        points = (flow + cell_grid(height, width)[None]).reshape(n, -1, 2)
        radius = self.variant.radius
        if volume is not None:
            found = look_up(volume, points, radius)
        else:
            found = look_up_on_demand(f1, f2_pyramid, points, radius)
        found = found.reshape(n, height, width, -1)
        hidden, delta, _ = UpdateBlock.__call__(self, hidden, inputs, found, flow)
        flow = flow + delta
        return (hidden, flow), (hidden, flow)


class MotionEncoder(nn.Module):
    """Features of correlation and flow; the last two channels are the flow itself."""

    variant: Variant
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, correlation: jax.Array, flow: jax.Array) -> jax.Array:
        flow, x = flow.astype(self.dtype), correlation.astype(self.dtype)
        for number, width in enumerate(self.variant.correlation_layers, start=1):
            kernel = 1 if number == 1 else 3
            x = nn.relu(conv(width, kernel, self.dtype, f"convcorr{number}_0")(x))
        y = flow
        for number, width in enumerate(self.variant.flow_layers, start=1):
            kernel = 7 if number == 1 else 3
            y = nn.relu(conv(width, kernel, self.dtype, f"convflow{number}_0")(y))
        x = jnp.concatenate([x, y], axis=-1)
        x = nn.relu(conv(self.variant.motion - 2, 3, self.dtype, "conv_0")(x))
        return jnp.concatenate([x, flow], axis=-1)


class RecurrentBlock(nn.Module):
    """Successive convolutional GRUs on the same inputs."""

    kernels: tuple[tuple[int, int], ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array, inputs: jax.Array) -> jax.Array:
        for number, kernel in enumerate(self.kernels, start=1):
            hidden = ConvGRU(kernel, self.dtype, name=f"convgru{number}")(hidden, inputs)
        return hidden


class ConvGRU(nn.Module):
    """z, r = sigmoid(conv [h, x]);  q = tanh(conv [r h, x]);  h <- (1 - z) h + z q."""

    kernel: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array, inputs: jax.Array) -> jax.Array:
        def gate(name, state):
            layer = conv(hidden.shape[-1], self.kernel, self.dtype, name)
            return layer(jnp.concatenate([state, inputs], axis=-1))

        z, r = nn.sigmoid(gate("convz", hidden)), nn.sigmoid(gate("convr", hidden))
        return (1 - z) * hidden + z * jnp.tanh(gate("convq", r * hidden))


class FlowHead(nn.Module):
    """Hidden state to flow update, in cells."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        x = nn.relu(conv(self.width, 3, self.dtype, "conv1")(hidden))
        return conv(2, 3, self.dtype, "conv2")(x)


# ---- full size ----


class MaskPredictor(nn.Module):
    """Hidden state to the logits of convex upsampling: [N, h, w, 9 * 64]."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        x = nn.relu(conv(256, 3, self.dtype, "convrelu_0")(hidden))
        return MASK_GAIN * conv(9 * STRIDE**2, 1, self.dtype, "conv")(x).astype(jnp.float32)


def upsample_convex(flow: jax.Array, mask: jax.Array) -> jax.Array:
    """Every pixel is a convex combination of the 3 x 3 cells around its own; zeros outside.

    Flow [N, h, w, 2] in cells -> [N, 8 h, 8 w, 2] in px. The mask holds logits [N, h, w, 9 * 64]:
    neighbors row by row, then the 8 x 8 px of the cell.
    """
    n, height, width = flow.shape[:3]
    weights = nn.softmax(mask.reshape(n, height, width, 9, STRIDE, STRIDE), axis=3)
    padded = jnp.pad(STRIDE * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    up = jnp.einsum("nhwkij,knhwc->nhiwjc", weights, jnp.stack(around))
    return up.reshape(n, STRIDE * height, STRIDE * width, 2)


def cell_grid(height: int, width: int) -> np.ndarray:
    """(x, y) of every cell: float32 [height, width, 2]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y], axis=-1).astype(np.float32)


def pad_to_stride(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Edge padding in pixels: ((top, bottom), (left, right)).

    Padding is split evenly, the odd pixel at the bottom or right, as RAFT does for Sintel.
    Departure: smaller sides grow to MIN_SIDE.
    """

    def share(size: int) -> tuple[int, int]:
        missing = max(MIN_SIDE, -(-size // STRIDE) * STRIDE) - size
        return missing // 2, missing - missing // 2

    return share(height), share(width)
