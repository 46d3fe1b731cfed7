"""SAM2 on AVSBench-semantic (AVSS), prompted by sounds, with memory over the frames of a clip.

Data:    avs-jax data build --dataset=avsbench_semantic \
             --manual_dir=AVSBench_semantic --data_dir=~/tensorflow_datasets
Weights: as s4_sam2.py.
Command: avs-jax train --config=configs/avss_sam2.py --workdir=DIR \
             --config.init.sam2=checkpoints/sam2_base_plus \
             --config.init.audio_backbone=checkpoints/vggish
Hardware: 86 M parameters, 12.4 M of them trained. Not timed here.
A class head reads the decoder's map; frames without a sounding object train the object score.
Published: see s4_sam2.py.
This recipe was not trained on AVSBench here.
`:demo` is a small version for generated clips; its weights may start from those of s4_sam2:demo.
"""

from ml_collections import ConfigDict

from configs.sam2_host import MEMORY, sam2_host_config, shrink

DEMO = {
    "data.max_targets": 5,  # four objects and the background
    "train.batch_size": 4,
    "train.init_fresh": (r"class_(embed|head.*)",),
    "evaluate.batch_size": 4,
}


def get_config(variant: str = "") -> ConfigDict:
    config = sam2_host_config("avss_sam2")
    config.data.dataset = "avsbench_semantic"
    config.data.num_frames = 10
    config.data.num_supervised = 10
    config.data.num_classes = 71
    config.data.max_targets = 8  # `avs-jax data check` reports how many a download needs
    config.data.short_audio = "zeros"
    config.data.train_frames = "all"  # frames meet in the memory
    config.data.false_sounds.share = 0.0  # AVSS has silent frames
    config.model.memory = True
    config.optim.frozen = tuple(p for p in config.optim.frozen if p not in MEMORY)
    config.train.steps = 85_000
    return shrink(config, variant, DEMO)
