"""TVSum: how important twenty people found each second of a video; the query is its title.

manual_dir holds the annotations and the features:

  tvsum_{train,val}.jsonl                       here or in data/
  video_features/{vid}_rgb.npy, {vid}_opt.npy   [seconds, 1024] each; here or in features/; these
  query_features/{vid}.npz                      "token" [words, d]            folders may also be
  audio_features/{vid}.npy                      [seconds, 2048]; may be absent   called video, ...

A row of features stands for 1 s. There is a layout per domain, with four videos to train on and one
to validate, and `all`.

Source: repository TencentARC/UMT (annotations, features), as wjun0830/QD-DETR uses them.
"""

from tfds_builders.moments import Features, MomentBuilder, MomentLayout, MomentSetting
from tfds_builders.record_builder import make_configs

DOMAINS = {
    "BK": "Beekeeping",
    "BT": "Bike tricks",
    "DS": "Dog shows",
    "FM": "Flash mobs",
    "GA": "Grooming animals",
    "MS": "Making sandwiches",
    "PK": "Parkour",
    "PR": "Parades",
    "VT": "Changing tires",
    "VU": "Freeing stuck vehicles",
}


def _features(kind: str, name: str, key: str = "") -> Features:
    folders = [f"{parent}{kind}{end}" for parent in ("features/", "") for end in ("_features", "")]
    return Features(tuple(folders), name, key)


def _layout(name: str, description: str, domain: str = "") -> MomentLayout:
    return MomentLayout(
        name=name,
        description=description,
        annotations=("tvsum_{split}.jsonl", "data/tvsum_{split}.jsonl"),
        video=(_features("video", "{vid}_rgb.npy"), _features("video", "{vid}_opt.npy")),
        text=_features("query", "{vid}.npz", "token"),
        audio=_features("audio", "{vid}.npy"),
        clip_seconds=1.0,
        domain=domain,
    )


TVSUM = MomentSetting(
    dataset="tvsum",
    title="TVSum",
    layouts=(
        _layout("all", "Every domain"),
        *(_layout(domain, title, domain) for domain, title in DOMAINS.items()),
    ),
    how_to_get=(
        "https://github.com/TencentARC/UMT links to annotations and features, "
        "https://github.com/wjun0830/QD-DETR to the form of them that is read here."
    ),
)


class Builder(MomentBuilder):
    """Titles of videos, with twenty people's scores of every second."""

    SETTING = TVSUM
    HOMEPAGE = "https://github.com/yalesong/tvsum"
    MANUAL_DOWNLOAD_INSTRUCTIONS = TVSUM.how_to_get
    BUILDER_CONFIGS = make_configs(TVSUM)
