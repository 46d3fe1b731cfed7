"""AVSBench Multi-sources (MS3) as a TFDS dataset; its folders: avs_jax/data/avsbench_folders.py."""

from avs_jax.data.avsbench_folders import MS3
from tfds_builders.avsbench import AVSBenchBuilder
from tfds_builders.record_builder import make_configs


class Builder(AVSBenchBuilder):
    """Five-second clips with several sounding objects, no categories."""

    SETTING = MS3
    MANUAL_DOWNLOAD_INSTRUCTIONS = MS3.how_to_get
    BUILDER_CONFIGS = make_configs(MS3)
