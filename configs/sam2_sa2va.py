"""Sa2VA's SAM2 (2.0, large): segments what hidden states of a language model describe.

Weights: avs-jax convert --source=sa2va --cast --input=Sa2VA-1B/model.safetensors \
             --config=configs/sam2_sa2va.py --output=checkpoints/sam2_sa2va
Command: avs-jax predict --checkpoint=checkpoints/sam2_sa2va --video=x.mp4 \
             --language=language.npz --output=DIR
The npz holds, by object, the hidden state of the language model's last layer at its [SEG] token:
float [D], D the width of that model: 896 for Sa2VA-1B (Qwen2.5-0.5B), else pass
--config.model.language_dim=D. The language model itself is not part of this package. Models in
several files have to be joined first; only `grounding_encoder.*` and `text_hidden_fcs.*` are read.
We have not converted a published file; the tests convert small ones with the same names.
Published, J&F of Sa2VA-1B with its language model, as measured by the authors of Sa2VA-i
(arXiv 2509.19082): MeViS 47.0, Ref-YouTube-VOS 68.0, Ref-DAVIS17 69.5.
Sa2VA shows absent objects' masks, keeps soft masks of prompted frames and fills no holes.
`:tiny` is for tests.
"""

from ml_collections import ConfigDict

from configs import sam2
from configs.base import check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "tiny")
    config = sam2.sam2_config("large")
    config.name = "sam2_sa2va"
    config.data.max_hole_area = 0
    config.model.update(codes_occlusion=False, codes_pointer_times=False)  # version 2.0
    config.model.update(language_dim=896, hides_absent=False, hard_prompts=False)
    config = sam2.vary(config, variant)
    if variant == "tiny":
        config.model.language_dim = 24
    return config
