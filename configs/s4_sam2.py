"""SAM2 on AVSBench S4, prompted by sounds: a frozen image encoder, a trained mask decoder.

Weights: avs-jax convert --source=sam2 --input=sam2.1_hiera_base_plus.pt \
             --config=configs/sam2_base_plus.py --output=checkpoints/sam2_base_plus
         avs-jax convert --source=vggish --input=vggish-10086976.pth \
             --config=configs/s4_sam2.py --output=checkpoints/vggish
Command: avs-jax train --config=configs/s4_sam2.py --workdir=DIR \
             --config.init.sam2=checkpoints/sam2_base_plus \
             --config.init.audio_backbone=checkpoints/vggish
Hardware: 86 M parameters, 4.7 M of them trained. `avs-jax plan` on a CPU: a step of 4 clips takes
2.9 GiB and 2.64 TFLOP, with cached maps (data.trunk_features) 1.1 GiB and 0.05 TFLOP. A step of one
clip takes 6.12 s on two CPU cores, with cached maps 0.40 s (docs/results.md).
Published: AuralSAM2 (arXiv 2506.01015) prompts SAM2 with VGGish's sounds, sparse and dense; TAViS
(arXiv 2506.11436) with ImageBind's. Both report on AVSBench; their numbers are not quoted, because
we could not check them. SAM2-LOVE (arXiv 2506.01558), with text as well, reports J&f_beta 47.7 on
the seen and 69.4 on the unseen test split of Ref-AVS, S 0.23 on its null split.
This recipe was not trained on AVSBench here.
`:demo` is a small version for generated clips (scripts/demo.sh): a small Hiera from random values,
trained with everything else, in ten minutes on two cores. Seed 0: test stream mIoU 79.4, with
swapped sound 13.8.
"""

from ml_collections import ConfigDict

from configs.sam2_host import sam2_host_config, shrink

# A model that guesses one of two to four objects is often right, so it can ignore the sound for a
# long time. Two of five training clips of the demo get a false sound. To tell which, the object
# score has to compare sound and image, and the masks need the same comparison. TPAVI's demo did not
# learn to listen without them.
DEMO = {"data.false_sounds.share": 0.4}


def get_config(variant: str = "") -> ConfigDict:
    return shrink(sam2_host_config("s4_sam2"), variant, DEMO)
