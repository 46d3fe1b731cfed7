"""QVHighlights: which windows of a video a sentence means, and how salient their clips are.

manual_dir holds the features and the annotations, whose license (CC BY-NC-SA) we cannot pass on:

  highlight_{train,val,test}_release.jsonl   here or in data/; test has no windows
  slowfast_features/{vid}.npz                "features" [n, 2304]; here or in features/, like the
  clip_features/{vid}.npz                    "features" [n, 512]                         next three
  clip_text_features/qid{qid}.npz            "last_hidden_state" [words, 512]
  pann_features/{vid}.npy                    [n, 2048]; may be absent

A row of features stands for 2 s. Features may have other widths: the rows' configuration says which
are expected.

Source: repositories jayleicn/moment_detr (annotations, features) and wjun0830/QD-DETR (PANN).
"""

from tfds_builders.moments import Features, MomentBuilder, MomentLayout, MomentSetting
from tfds_builders.record_builder import make_configs


def _features(folder: str, name: str, key: str = "") -> Features:
    return Features((f"features/{folder}", folder), name, key)


RELEASE = MomentLayout(
    name="release",
    description="Annotations and features as released",
    annotations=("highlight_{split}_release.jsonl", "data/highlight_{split}_release.jsonl"),
    video=(
        _features("slowfast_features", "{vid}.npz", "features"),
        _features("clip_features", "{vid}.npz", "features"),
    ),
    text=_features("clip_text_features", "qid{qid}.npz", "last_hidden_state"),
    audio=_features("pann_features", "{vid}.npy"),
    clip_seconds=2.0,
)


QVHIGHLIGHTS = MomentSetting(
    dataset="qvhighlights",
    title="QVHighlights",
    layouts=(RELEASE,),
    how_to_get=(
        "The annotations are in data/ of https://github.com/jayleicn/moment_detr, whose README "
        "links to the SlowFast and CLIP features; https://github.com/wjun0830/QD-DETR links to "
        "PANN's."
    ),
)


class Builder(MomentBuilder):
    """Sentences on videos of 150 s at most, with windows and scores of clips."""

    SETTING = QVHIGHLIGHTS
    HOMEPAGE = "https://github.com/jayleicn/moment_detr"
    MANUAL_DOWNLOAD_INSTRUCTIONS = QVHIGHLIGHTS.how_to_get
    BUILDER_CONFIGS = make_configs(QVHIGHLIGHTS)
