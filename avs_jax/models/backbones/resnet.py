"""ResNet with bottleneck blocks (He et al., CVPR 2016): images to maps of strides 4 to 32.

    y = relu(shortcut(x) + bn3(conv1x1(relu(bn2(conv3x3(relu(bn1(conv1x1(x)))))))))

As in torchvision, a stage halves the map in the 3 x 3 convolution of its first block. The norms are
frozen, as detectron2 does for pretrained backbones: they read their loaded statistics (collection
`batch_stats`) even in training, and segmentation's recipes freeze their scale and bias. With
`trained_norms` they use and update the statistics of the batch in training, as AVSBench does. The
defaults are ResNet-50; depths (3, 4, 23, 3) are ResNet-101.

Source: torchvision/models/resnet.py; AVSBench's two-branch net computes the same.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.backbones.stages import FEATURE_LEVELS
from avs_jax.models.layers import BatchNorm, max_pool
from avs_jax.models.rules import at_least, per_stage
from avs_jax.spec import check_shape

EXPANSION = 4  # output channels of a block over its inner ones

Array = jax.Array

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """Four stages of bottleneck blocks; parameters and norms are float32."""

    depths: Sequence[int] = (3, 4, 6, 3)  # blocks per stage, any positive number
    width: int = 64  # channels of the stem; stage i has 4 * width * 2**i
    trained_norms: bool = False  # training normalizes by the statistics of the batch
    remat: bool = False  # recompute each block in the backward pass
    dtype: str = "float32"  # of convolutions and activations

    RULES = (*at_least(1, "backbone.width"), *per_stage("backbone.depths"))

    @nn.compact
    def __call__(
        self,
        x: Array,
        train: bool = False,
        frame_ids: Array | None = None,
        valid: Array | None = None,
    ) -> dict[str, Array]:
        """Feature maps of normalized images [N, H, W, 3]; frame_ids are not used.

        Args:
          train: use the statistics of the batch, where norms are trained.
          valid: bool [N], the frames that enter the statistics of the batch; None: all.

        Returns:
          {"res2": [N, ceil(H / 4), ceil(W / 4), 4 * width], .., "res5"}, of `dtype`; each map has
          half the size of the previous one, rounded up, and twice the channels.
        """
        check_shape("x", x, "N H W 3")
        dtype = jnp.dtype(self.dtype)
        x = Convolution(self.width, 7, 2, dtype, name="conv1")(x)
        train = train and self.trained_norms
        x = nn.relu(BatchNorm(name="bn1")(x, train=train, valid=valid))
        x = max_pool(x, 3, padding=1)
        block, outputs = (nn.remat(Bottleneck) if self.remat else Bottleneck), {}
        for stage, (level, depth) in enumerate(
            zip(FEATURE_LEVELS, self.depths, strict=True), start=1
        ):
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                width = self.width * 2 ** (stage - 1)
                x = block(width, stride, i == 0, train, dtype, name=f"layer{stage}_{i}")(x, valid)
            outputs[level] = x
        return outputs


class Bottleneck(nn.Module):
    """A residual of 1 x 1, 3 x 3, 1 x 1; the first block of a stage projects its shortcut."""

    width: int
    stride: int
    has_projection: bool
    train: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        """[N, h, w, C], bool [N] -> [N, ceil(h / stride), ceil(w / stride), 4 * width]."""

        def conv_norm(x, width, kernel, stride, names):
            x = Convolution(width, kernel, stride, self.dtype, name=names[0])(x)
            return BatchNorm(name=names[1])(x, train=self.train, valid=valid)

        y = x
        layers = ((self.width, 1, 1), (self.width, 3, self.stride), (EXPANSION * self.width, 1, 1))
        for number, (width, kernel, stride) in enumerate(layers, start=1):
            y = nn.relu(y) if number > 1 else y
            y = conv_norm(y, width, kernel, stride, (f"conv{number}", f"bn{number}"))
        if self.has_projection:
            names = ("downsample_0", "downsample_1")
            x = conv_norm(x, EXPANSION * self.width, 1, self.stride, names)
        return nn.relu(x + y)


class Convolution(nn.Module):
    """A convolution without bias, zero-padded by half its odd kernel as in PyTorch."""

    features: int
    kernel_size: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, h, w, C] -> [N, ceil(h / stride), ceil(w / stride), features]."""
        size, channels = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", kaiming_normal, (size, size, channels, self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if size == 1:  # XLA:CPU takes half as long for a product, and its gradients
            x = x[:, :: self.stride, :: self.stride]
            return (x.reshape(-1, channels) @ kernel[0, 0]).reshape(*x.shape[:3], self.features)
        half = size // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            ((half, half), (half, half)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
