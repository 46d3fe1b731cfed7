"""CLIP ViT-B/32 on AVSBench S4: frames and text, from OpenAI's weights. `:b16` has patches of 16.

Weights: avs-jax convert --source=clip --config=configs/align_clip.py \
             --input=ViT-B-32.pt or model.safetensors --output=checkpoints/clip_b32
Tokens:  --config.data.text.path=FOLDER, where tokenizer.json of the same checkpoint is.
Zero-shot classes of S4:
         avs-jax evaluate --config=configs/align_clip.py \
             --checkpoint=checkpoints/clip_b32 --config.data.text.path=FOLDER
Frames are resized to squares, where CLIP crops the center. Not run on S4 here.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.align import align_config, shrink
from configs.base import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "b16", "demo", "tiny")
    config = align_config()
    config.name = "align_clip"
    config.data.text.update(source="clip", max_tokens=77)
    config.model.update(pairs="vt", embed_dim=512)
    config.model.backbone = parts.clip_vit()
    config.model.text = parts.clip_text()
    del config.model["audio_backbone"]
    del config.init["audio_backbone"]
    config.optim.learning_rate = 1e-5
    if variant == "b16":
        config.name += "_b16"
        config.model.backbone = parts.clip_vit(patch_size=16)
        return config
    shrink(config, variant)
    if variant:  # words of its own: there is no checkpoint
        config.data.text.update(source="tiny", max_tokens=16)
        config.model.text.eos_id = 2
    return config
