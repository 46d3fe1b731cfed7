"""Ref-AVS Bench: expressions for the objects of clips with sound, or for nothing in them.

manual_dir holds the published folder, or generated clips (avs-jax clips --setting=refer):

  metadata.csv                            vid,uid,split,fid,exp
  media/{DIR}/audio.wav                   the clip's 10 s
  media/{DIR}/frames/{0..9}.jpg           the first frame of each second
  gt_mask/{DIR}/fid_{fid}/0000{0..9}.png  not 0 where the object is; may be absent for null rows

uid is {DIR}_{class}_{n}. Null rows, which refer to nothing, have uids and folders that start with
null_c- or null_m-, and a vid without the prefix. Rows of split TODO are dropped and counted.

A record is one folder DIR of a split with all of its expressions (tfds_builders/refer_clips.py).
The test set of unseen objects keeps the rows whose class also occurs in train, marked: the paper's
1454 expressions leave them out, the csv's 1656 do not, and an evaluation prints both.

Source: Ref-AVS (Wang et al., ECCV 2024; repository GeWu-Lab/Ref-AVS).
"""

from tfds_builders.record_builder import make_configs
from tfds_builders.refer_clips import LAYOUT, ReferBuilder, ReferSetting

REFAVS = ReferSetting(
    dataset="refavs",
    title="Ref-AVS Bench",
    layouts=(LAYOUT,),
    how_to_get=(
        "The csv is in https://github.com/GeWu-Lab/Ref-AVS, whose authors give out media and masks "
        "on request."
    ),
)


class Builder(ReferBuilder):
    """Clips with their expressions and the masks of what those refer to."""

    SETTING = REFAVS
    HOMEPAGE = "https://github.com/GeWu-Lab/Ref-AVS"
    MANUAL_DOWNLOAD_INSTRUCTIONS = REFAVS.how_to_get
    BUILDER_CONFIGS = make_configs(REFAVS)
