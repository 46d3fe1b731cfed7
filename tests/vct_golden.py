"""The golden files of the whole model: weights by name, inputs as a batch, and comparison.

tests/golden/golden_tiny_{s4,ms3,ss}.npz hold every stage of the original, measured once; the
larger tensors as every k-th element of PyTorch's layout.
"""

import json
import pathlib

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from avs_jax.convert.rules import Rule, apply_rules
from avs_jax.convert.tables import gate_rules, head_rules, swin_rules, vggish_rules
from avs_jax.models import build_model
from configs.s4_vct import get_config
from tests.golden.weights import vct_value

FOLDER = pathlib.Path(__file__).resolve().parent / "golden"
CLASSES = {"s4": (2, 23), "ms3": (2, 0), "ss": (71, 71)}
DEPTHS = (2, 2, 2, 2)


def tiny_config(name):
    """config.model of golden_tiny_{name}."""
    config = get_config().model
    num_classes, num_prototypes = CLASSES[name]
    config.update(num_classes=num_classes, num_prototypes=num_prototypes)
    config.backbone.update(
        embed_dim=32, depths=DEPTHS, num_heads=(2, 4, 8, 16), window_size=6, drop_path_rate=0.0
    )
    return config


def vct_rules():
    """The whole state dict of a golden model, with what is known and not taken."""
    return [
        *swin_rules("backbone", "backbone", DEPTHS),
        *swin_rules("pre_sam_backbone", "pre_sam_backbone", DEPTHS),
        *gate_rules("scale_factor_module", "scale_factor_module"),
        *vggish_rules("audio_backbone", "audio_backbone"),
        *head_rules("sem_seg_head", 6),
        Rule(r"criterion\.logit_scale", "logit_scale"),
        Rule(r"criterion\.empty_weight", None),
    ]


def tiny_names(name, num_pixels):
    """Names and PyTorch shapes of the tiny model: the official checkpoint's, made smaller."""
    manifest = json.loads((FOLDER / f"params_{name}_swinb384.json").read_text())
    names = {}
    for key, (shape, _) in manifest["state_dict"].items():
        if key.startswith(("backbone.layers.2.blocks", "pre_sam_backbone.layers.2.blocks")):
            if int(key.split(".")[4]) >= DEPTHS[2]:
                continue
        if "relative_position_index" in key:
            continue
        if "relative_position_bias_table" in key:
            shape = [121, shape[1] // 2]
        elif key.startswith(("backbone.", "pre_sam_backbone.")):
            fixed = (3, 3) if "patch_embed.proj.weight" in key else ()
            shape = [n if n in fixed or (fixed and n == 4) else n // 4 for n in shape]
        elif key.startswith("scale_factor_module"):
            shape = [n // 4 for n in shape]
        elif "input_proj" in key or "adapter_1.weight" in key:
            shape = [shape[0], shape[1] // 4, *shape[2:]] if len(shape) == 4 else shape
        elif key.endswith("query_mixer.layers.0.weight"):
            shape = [256, num_pixels]
        names[key] = tuple(shape)
    return names


def tiny_weights(names, variables):
    """The variables of our model, filled with the golden weights."""
    shapes = {k: v.shape for k, v in flatten_dict(variables["params"], sep="/").items()}
    source = {key: vct_value(key, shape) for key, shape in names.items()}
    source = {
        key: np.float32(np.log(1 / 0.07)) if key.endswith("logit_scale") else value
        for key, value in source.items()
        if not key.endswith("empty_weight")
    }
    params = apply_rules(source, vct_rules(), shapes)
    return {"params": unflatten_dict({tuple(k.split("/")): v for k, v in params.items()})}


class Golden:
    """One golden file: `batch`, and `check` of arrays in our layout."""

    def __init__(self, name):
        self.name = name
        self.arrays = dict(np.load(FOLDER / f"golden_tiny_{name}.npz"))
        self.noise = json.loads(str(self.arrays["meta/noise_json"]))

    def batch(self):
        """Our batch [B, T, ...]. Of "ss", whose clips have 5 and 10 frames, T = 5 and B = 3."""

        def join(field):
            return np.concatenate([self.arrays[f"in/{field}_{clip}"] for clip in (0, 1)])

        images = np.moveaxis(join("images"), 1, -1)
        pre_masks = np.moveaxis(join("pre_masks"), 1, -1)
        if self.name == "ss":
            keep = [self.arrays[f"in/vid_temporal_mask_flag_{c}"].astype(bool) for c in (0, 1)]
            log_mel = join("audio_log_mel")[np.concatenate(keep)]
        else:
            log_mel = join("audio_log_mel")
        batch = {"images": images, "pre_masks": pre_masks, "log_mel": log_mel[:, 0]}
        return {key: x.reshape(-1, 5, *x.shape[1:]) for key, x in batch.items()}

    def check(self, key, ours, scale=10.0, floor=None):
        """Asserts that an array in PyTorch's layout agrees within `scale` noise floors."""
        ours = np.asarray(ours)
        prefix = f"{key}/sample"
        if prefix in self.arrays:
            assert ours.shape == tuple(self.arrays[f"{key}/shape"]), (key, ours.shape)
            theirs = self.arrays[prefix]
            ours = ours.reshape(-1)[:: int(self.arrays[f"{key}/stride"])]
        else:
            theirs = self.arrays[key]
            assert ours.shape == theirs.shape, (key, ours.shape, theirs.shape)
        floor = self.noise[key.removeprefix("allmasked/")][0] if floor is None else floor
        worst = np.abs(ours.astype(np.float64) - theirs).max()
        assert worst <= scale * floor + 1e-7, f"{key}: off by {worst:.3g}, noise floor {floor:.3g}"
        return worst / max(floor, 1e-12)


def run(name, golden, weights_override=None):
    """Variables and outputs of our model on a golden's inputs, jitted once."""
    model = build_model(tiny_config(name))
    batch = golden.batch()
    height, width = batch["images"].shape[2:4]
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))
    names = tiny_names(name, height * width // 16)
    variables = tiny_weights(names, variables)
    apply = jax.jit(lambda v: model.apply(v, batch))
    return variables, apply
