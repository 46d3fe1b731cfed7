"""VCT + AMA on AVSBench-semantic (AVSS): avss_vct.py with motion, otherwise unchanged.

Command: avs-jax train --config=configs/avss_ama.py --workdir=DIR
Hardware: as avss_vct.py. The AMA authors planned batch 2 on one 80 GB GPU in mixed precision,
because more clips of ten frames did not fit; not timed here.
Target: 51.64 mIoU on the test split (README of SKA-VCT, "motion verification", mean of five seeds;
VCT there: 51.20). The AMA authors' notes record no number for AVSS with AMA alone.
`:demo` is a small version for generated clips, made as described in avss_vct.py.
"""

from ml_collections import ConfigDict

from configs import avss_vct
from configs.s4_ama import add_ama
from configs.segment import shrink


def get_config(variant: str = "") -> ConfigDict:
    return shrink(add_ama(avss_vct.recipe()), variant, avss_vct.DEMO)
