"""PyTorch's side of scripts/benchmark.py for the host vct, on transformers and torchvision."""

import sys
from functools import partial

import torch
from absl import flags
from benchmark_torch_case import make_case, module_run
from benchmark_worker import Case, serve, sizes
from ml_collections import ConfigDict
from torch import nn
from transformers import Mask2FormerConfig, SwinBackbone, SwinConfig
from transformers.models.mask2former import modeling_mask2former as mask2former

MASK_STRIDE, PROTOTYPE_HEADS = 4, 4  # of ours


class Model(nn.Module):
    """Two Swins, gated, Mask2Former's pixel decoder, PPQG, transformer decoder; no audio."""

    def __init__(self, config: ConfigDict):
        super().__init__()
        settings, dims = mask2former_config(config), [dim for _, dim in sizes(config)]
        self.backbones = nn.ModuleList(swin_module(config) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(dim, dim) for dim in dims)
        self.pixel_decoder = mask2former.Mask2FormerPixelDecoder(settings, dims)
        self.transformer = transformer_module(config)
        self.class_embed = nn.Linear(settings.hidden_dim, config.model.num_classes + 1)

    def forward(self, images, pre_masks):
        first, second = (
            backbone(x).feature_maps
            for backbone, x in zip(self.backbones, (images, pre_masks), strict=True)
        )
        features = []
        for x, y, gate in zip(first, second, self.gates, strict=True):
            features.append(x + torch.sigmoid(gate(y.mean((2, 3))))[:, :, None, None] * y)
        return decode(self.pixel_decoder, self.transformer, self.class_embed, features)


def decode(pixel_decoder, transformer, class_embed, features):
    """Class logits [N, Q, K+1] and mask logits [N, Q, h, w] of every prediction."""
    pixels = pixel_decoder(features, return_dict=True)
    out = transformer(list(pixels.multi_scale_features), pixels.mask_features)
    logits = [class_embed(x.transpose(0, 1)) for x in out.intermediate_hidden_states]
    return list(zip(logits, out.masks_queries_logits, strict=True))


class PPQG(nn.Module):
    """Queries from mask features, by the formulas of avs_jax/models/decoders/ppqg.py."""

    def __init__(self, config: ConfigDict):
        super().__init__()
        dim, count = config.model.hidden_dim, config.model.num_queries
        pixels = (config.data.image_size // MASK_STRIDE) ** 2
        self.pre_proj = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.mixer = nn.Sequential(
            nn.Linear(pixels, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, count)
        )
        self.prototypes = None
        if config.model.num_prototypes:
            self.prototypes = nn.Parameter(torch.randn(config.model.num_prototypes, dim))
            self.attend = nn.MultiheadAttention(dim, PROTOTYPE_HEADS, batch_first=True)
            self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, mask_features):
        """[N, D, h, w] -> [Q, N, D]."""
        x = self.pre_proj(mask_features).flatten(2)
        queries, pixels = self.mixer(x).transpose(1, 2), x.transpose(1, 2)
        if self.prototypes is not None:
            spread = self.prototypes.expand(len(x), -1, -1)
            queries = self.norm(queries + self.attend(queries, spread, spread)[0])
        keys = self.key(pixels).transpose(1, 2)
        soft = (self.query(queries) @ keys * x.shape[1] ** -0.5).softmax(1)
        hard = nn.functional.one_hot(soft.argmax(1), soft.shape[1]).transpose(1, 2)
        assigned = (hard - soft).detach() + soft
        share = assigned / (assigned.sum(-1, keepdim=True) + 1)
        return (queries + self.out(share @ self.value(pixels))).transpose(0, 1)


def transformer_module(config: ConfigDict) -> nn.Module:
    """Mask2Former's masked decoder, whose queries start from those that PPQG generates."""
    settings = mask2former_config(config)
    module = mask2former.Mask2FormerTransformerModule(config.model.hidden_dim, settings)
    module.ppqg = PPQG(config)

    def generate(_, args, given):
        learned, mask_features = given["inputs_embeds"], given["pixel_embeddings"]
        return args, given | {"inputs_embeds": learned + module.ppqg(mask_features)}

    module.decoder.register_forward_pre_hook(generate, with_kwargs=True)
    return module


def swin_module(config: ConfigDict) -> nn.Module:
    """The backbone without drop path, of the same size."""
    backbone = config.model.backbone
    settings = SwinConfig(
        image_size=config.data.image_size,
        embed_dim=backbone.embed_dim,
        depths=list(backbone.depths),
        num_heads=list(backbone.num_heads),
        window_size=backbone.window_size,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return SwinBackbone(settings)


def mask2former_config(config: ConfigDict) -> Mask2FormerConfig:
    """Mask2Former of the same sizes; its decoder layers count the first prediction."""
    model, loss = config.model, config.loss
    settings = Mask2FormerConfig(
        feature_size=model.hidden_dim,
        mask_feature_size=model.hidden_dim,
        hidden_dim=model.hidden_dim,
        encoder_feedforward_dim=model.pixel_decoder.ffn_dim,
        encoder_layers=model.pixel_decoder.num_layers,
        decoder_layers=model.decoder.num_layers + 1,
        dim_feedforward=model.decoder.ffn_dim,
        num_attention_heads=model.decoder.num_heads,
        num_queries=model.num_queries,
        dropout=0.0,
        train_num_points=loss.num_points,
        no_object_weight=loss.no_object_weight,
        class_weight=loss.class_weight,
        mask_weight=loss.mask_weight,
        dice_weight=loss.dice_weight,
    )
    settings.num_labels = model.num_classes
    return settings


class Loss:
    """Mask2Former's criterion on random ground truth, two masks per frame."""

    def __init__(self, config: ConfigDict, frames: int, device: str):
        loss, side = config.loss, config.data.image_size
        self._weights = {
            "loss_cross_entropy": loss.class_weight,
            "loss_mask": loss.mask_weight,
            "loss_dice": loss.dice_weight,
        }
        self._module = mask2former.Mask2FormerLoss(mask2former_config(config), self._weights)
        self._module.to(device)
        count = config.data.max_targets
        masks = torch.rand(frames, count, side, side, device=device) < 0.5
        self._masks = list(masks.float())
        self._labels = [torch.arange(count, device=device) % config.data.num_classes] * frames

    def __call__(self, predictions):
        *earlier, (logits, masks) = predictions
        auxiliary = [
            {"class_queries_logits": logits, "masks_queries_logits": masks}
            for logits, masks in earlier
        ]
        terms = self._module(masks, logits, self._masks, self._labels, auxiliary)
        return sum(
            self._weights[name] * value
            for key, value in terms.items()
            for name in self._weights
            if key == name or key.startswith(f"{name}_")
        )


def swin(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """transformers' SwinBackbone."""

    def build(device):
        side = config.data.image_size
        images = torch.randn(values.frames, 3, side, side, device=device)
        module = swin_module(config).to(device)
        return module_run(module, mode, lambda module: module(images).feature_maps)

    return make_case(build, values, values.frames)


def encoder(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Mask2Former's deformable encoder, grid_sample inside."""

    def build(device):
        shapes = [(side, side) for side, _ in sizes(config)[:0:-1]]
        starts = torch.tensor([0, *torch.tensor(shapes).prod(1).cumsum(0)[:-1]], device=device)
        tokens = sum(h * w for h, w in shapes)
        x, position = torch.randn(2, values.frames, tokens, config.model.hidden_dim, device=device)
        module = mask2former.Mask2FormerPixelDecoderEncoderOnly(mask2former_config(config))

        def call(module):
            return module(
                inputs_embeds=x,
                attention_mask=torch.zeros(values.frames, tokens, dtype=torch.bool, device=device),
                position_embeddings=position,
                spatial_shapes_list=shapes,
                level_start_index=starts,
                valid_ratios=torch.ones(values.frames, len(shapes), 2, device=device),
                return_dict=True,
            )[:1]

        return module_run(module.to(device), mode, call)

    return make_case(build, values, values.frames)


def decoder(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """PPQG and Mask2Former's masked decoder."""

    def build(device):
        dim = config.model.hidden_dim
        maps = [torch.randn(values.frames, dim, s, s, device=device) for s, _ in sizes(config)]
        module = nn.ModuleDict(
            {
                "transformer": transformer_module(config),
                "class_embed": nn.Linear(dim, config.model.num_classes + 1),
            }
        ).to(device)

        def call(module):
            out = module["transformer"](maps[:0:-1], maps[0])
            logits = [module["class_embed"](x) for x in out.intermediate_hidden_states]
            return [*logits, *out.masks_queries_logits]

        return module_run(module, mode, call)

    return make_case(build, values, values.frames)


def criterion(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Mask2FormerLoss with SciPy's matching on the host."""

    def build(device):
        model, side = config.model, config.data.image_size // 4
        loss = Loss(config, values.frames, device)

        def leaf(*shape):
            return torch.randn(shape, device=device, requires_grad=True)

        predictions = [
            (
                leaf(values.frames, model.num_queries, model.num_classes + 1),
                leaf(values.frames, model.num_queries, side, side),
            )
            for _ in range(model.decoder.num_layers + 1)
        ]

        def train():
            for pair in predictions:
                for x in pair:
                    x.grad = None
            loss(predictions).backward()

        return train

    return make_case(build, values, values.frames)


def random_frames(config: ConfigDict, frames: int, device: str) -> torch.Tensor:
    """Images and color masks: [2, N, 3, S, S]."""
    side = config.data.image_size
    return torch.randn(2, frames, 3, side, side, device=device)


def clip(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Model on all frames of one clip."""

    def build(device):
        batch = random_frames(config, config.data.num_frames, device)
        model = Model(config).to(device)
        return module_run(model, mode, lambda model: model(*batch))

    return make_case(build, values, config.data.num_frames, config.model.dtype)


def step(config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """Forward, losses, backward, gradient clipping, AdamW."""
    frames = values.clips * config.data.num_frames
    if config.data.train_frames == "supervised" and not values.original_frames:
        frames = values.clips * config.data.num_supervised

    def build(device):
        batch, model = random_frames(config, frames, device), Model(config).to(device)
        loss = Loss(config, frames, device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

        def train():
            optimizer.zero_grad(set_to_none=True)
            loss(model(*batch)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
            optimizer.step()

        return train

    return make_case(build, values, frames, config.model.dtype)


def raft(variant: str, config: ConfigDict, mode: str, values: flags.FlagValues) -> Case:
    """torchvision's RAFT, which returns the flow of every iteration; the last is used."""

    def build(device):
        pair = torch.rand(2, values.frames, 3, 384, 384, device=device) * 2 - 1
        import torchvision  # for this case only

        module = getattr(torchvision.models.optical_flow, variant)().to(device)
        return module_run(module, mode, lambda module: module(*pair, num_flow_updates=12))

    return make_case(build, values, values.frames)


BUILDERS = {
    "swin": swin,
    "encoder": encoder,
    "decoder": decoder,
    "criterion": criterion,
    "clip": clip,
    "step": step,
    "raft_large": partial(raft, "raft_large"),
    "raft_large_rows": partial(raft, "raft_large"),
    "raft_small": partial(raft, "raft_small"),
}

if __name__ == "__main__":
    sys.exit(serve(sys.argv, BUILDERS, __doc__))
