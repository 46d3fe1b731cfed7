"""PyTorch's side of scripts/benchmark.py for the host tpavi: AVSBench's model on ResNet-50.

Layers, layouts (channels first, Conv3d in the TPAVI blocks) and arithmetic are the original's
(OpenNLPLab/AVSBench, avs_*/model/ResNet_AVSModel.py), with one exception: the original builds the
attention matrix [T h w, T h w]. Here keys and values are multiplied first, as in our model, unless
--original_attention asks for the matrix.
"""

import sys

import torch
from absl import flags
from benchmark_torch_case import make_case, module_run
from benchmark_worker import Case, serve
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from avs_jax.spec import MEL_BANDS, MEL_FRAMES, InputError

DILATIONS = (3, 6, 12, 18)
VGGISH = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool")
AUDIO_DIM = 128


class Bottleneck(nn.Module):
    """ResNet's block, stride in the 3 x 3 convolution."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if channels != out or stride != 1:
            convolution = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out))

    def forward(self, x):
        return functional.relu(self.body(x) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """Images [N, 3, H, W] to maps of strides 4, 8, 16 and 32."""

    def __init__(self, depths: tuple[int, ...], width: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.stages, channels = nn.ModuleList(), width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                blocks.append(Bottleneck(channels, width << stage, stride))
                channels = 4 * (width << stage)
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class VGGish(nn.Module):
    """Log-mels [N, 1, 96, 64] to embeddings [N, 128]."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 1
        for width in VGGISH:
            if width == "pool":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(True)]
                channels = width
        self.features, self.embeddings, size = nn.Sequential(*layers), nn.ModuleList(), 12288
        for width in (4096, 4096, AUDIO_DIM):
            self.embeddings.append(nn.Linear(size, width))
            size = width

    def forward(self, x):
        x = self.features(x).permute(0, 2, 3, 1).flatten(1)
        for layer in self.embeddings:
            x = functional.relu(layer(x))
        return x


class DilatedSum(nn.Module):
    """The sum of four dilated convolutions."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, dim, 3, padding=d, dilation=d) for d in DILATIONS
        )

    def forward(self, x):
        return sum(convolution(x) for convolution in self.convolutions)


class Block(nn.Module):
    """TPAVI in the mode dot: pixels [B, C, T, h, w] and embeddings [B, T, 128]."""

    def __init__(self, dim: int, audio_bias: bool, original_attention: bool):
        super().__init__()
        inner = dim // 2
        self.original_attention = original_attention
        self.align_channel = nn.Linear(AUDIO_DIM, dim, audio_bias)
        self.g, self.theta, self.phi = (nn.Conv3d(dim, inner, 1) for _ in range(3))
        self.W_z = nn.Sequential(nn.Conv3d(inner, dim, 1), nn.BatchNorm3d(dim))
        self.norm_layer = nn.LayerNorm(dim)

    def forward(self, x, audio):
        heard = self.align_channel(audio).transpose(1, 2)[..., None, None].expand_as(x)
        value = self.g(x).flatten(2).transpose(1, 2)
        query = self.theta(x).flatten(2).transpose(1, 2)
        key = self.phi(heard).flatten(2)
        if self.original_attention:
            y = (query @ key / key.shape[-1]) @ value
        else:
            y = query @ (key @ value / key.shape[-1])
        y = y.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        z = self.W_z(y) + x
        return self.norm_layer(z.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class ResidualUnit(nn.Module):
    """relu(x) + conv(relu(conv(relu(x))))."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = functional.relu(x)
        return x + self.conv2(functional.relu(self.conv1(x)))


class Model(nn.Module):
    """Images [B T, 3, H, W] and log-mels [B T, 1, 96, 64] to logits [B T, 1, H, W]."""

    def __init__(self, config: ConfigDict, original_attention: bool):
        super().__init__()
        model = config.model
        dim, width = model.hidden_dim, model.backbone.width
        self.frames = model.attention_frames
        self.backbone = ResNet(tuple(model.backbone.depths), width)
        self.audio_backbone = VGGish().eval().requires_grad_(False)
        self.necks = nn.ModuleList(DilatedSum(4 * (width << i), dim) for i in range(4))
        self.blocks = nn.ModuleList(
            Block(dim, model.tpavi_audio_bias, original_attention) for _ in range(4)
        )
        self.units = nn.ModuleList(ResidualUnit(dim) for _ in range(4))
        self.side_units = nn.ModuleList(ResidualUnit(dim) for _ in range(3))
        self.head = nn.Sequential(
            nn.Conv2d(dim, dim // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(dim // 2, dim // 8, 3, padding=1),
            nn.ReLU(True),
            nn.Conv2d(dim // 8, 1 if model.num_classes == 2 else model.num_classes, 1),
        )

    def forward(self, images, log_mel):
        with torch.no_grad():
            audio = self.audio_backbone(log_mel).unflatten(0, (-1, self.frames))
        maps = []
        for x, neck, block in zip(self.backbone(images), self.necks, self.blocks, strict=True):
            x = neck(x).unflatten(0, (-1, self.frames)).transpose(1, 2)
            maps.append(block(x, audio).transpose(1, 2).flatten(0, 1))
        path = maps[3]
        for stage in (3, 2, 1, 0):
            if stage < 3:
                path = path + self.side_units[stage](maps[stage])
            path = self.units[stage](path)
            path = functional.interpolate(path, scale_factor=2, mode="bilinear", align_corners=True)
        return self.head(path)


def random_inputs(config: ConfigDict, frames: int, device: str) -> tuple[torch.Tensor, ...]:
    """Normalized images and log-mels."""
    side = config.data.image_size
    images = torch.randn(frames, 3, side, side, device=device)
    return images, torch.rand(frames, 1, MEL_FRAMES, MEL_BANDS, device=device)


def make_model(config: ConfigDict, values: flags.FlagValues, device: str) -> Model:
    """InputError for a model that this file does not have."""
    model = config.model
    given = {
        "backbone.name": model.backbone.name,
        "tpavi_mode": model.tpavi_mode,
        "tpavi_stages": tuple(model.tpavi_stages),
        "tpavi_va": model.tpavi_va,
        "tpavi_vv": model.tpavi_vv,
        "dtype": model.dtype,
    }
    known = ("resnet50", "dot", (0, 1, 2, 3), True, False, "float32")
    for (name, value), expected in zip(given.items(), known, strict=True):
        if value != expected:
            raise InputError(
                f"config.model.{name} = {value!r}: PyTorch's side has {expected!r} only"
            )
    return Model(config, values.original_attention).to(device)


def clip(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Model on all frames of one clip."""

    def build(device):
        inputs = random_inputs(config, config.data.num_frames, device)
        model = make_model(config, values, device)
        return module_run(model, mode, lambda model: model(*inputs))

    return make_case(build, values, config.data.num_frames)


def step(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Forward with batch statistics, loss of the supervised frames, backward, Adam."""
    length = config.data.num_frames
    frames = values.clips * length

    def build(device):
        images, log_mel = random_inputs(config, frames, device)
        target = torch.rand(frames, *images.shape[2:], device=device) < 0.5
        supervised = torch.arange(frames, device=device) % length < config.data.num_supervised
        model = make_model(config, values, device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=config.optim.learning_rate)

        def loss(logits):
            if logits.shape[1] > 1:
                return functional.cross_entropy(logits[supervised], target[supervised].long())
            probability = torch.sigmoid(logits[supervised, 0])
            return functional.binary_cross_entropy(probability, target[supervised].float())

        def train():
            optimizer.zero_grad(set_to_none=True)
            loss(model(images, log_mel)).backward()
            optimizer.step()

        return train

    return make_case(build, values, frames)


if __name__ == "__main__":
    sys.exit(serve(sys.argv, {"clip": clip, "step": step}, __doc__))
