"""AVSBench semantic (AVSS) as a TFDS dataset; its folders: avs_jax/data/avsbench_folders.py."""

from avs_jax.data.avsbench_folders import AVSS
from tfds_builders.avsbench import AVSBenchBuilder
from tfds_builders.record_builder import make_configs


class Builder(AVSBenchBuilder):
    """Clips of 5 or 10 s, a class out of 71 for every pixel."""

    SETTING = AVSS
    MANUAL_DOWNLOAD_INSTRUCTIONS = AVSS.how_to_get
    BUILDER_CONFIGS = make_configs(AVSS)
