"""AVSBench Single-source (S4) as a TFDS dataset; its folders: avs_jax/data/avsbench_folders.py."""

from avs_jax.data.avsbench_folders import S4
from tfds_builders.avsbench import AVSBenchBuilder
from tfds_builders.record_builder import make_configs


class Builder(AVSBenchBuilder):
    """Five-second clips with one sounding object of 23 categories."""

    SETTING = S4
    MANUAL_DOWNLOAD_INSTRUCTIONS = S4.how_to_get
    BUILDER_CONFIGS = make_configs(S4)
