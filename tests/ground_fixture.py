"""Small QVHighlights and TVSum folders in the published layouts, and the records made of them.

The arrays are random numbers and the texts are ours; only names and shapes follow the data sets.
"""

import pathlib
import shutil

from tfds_builders import moments
from tfds_builders.qvhighlights.qvhighlights_dataset_builder import RELEASE
from tfds_builders.tvsum.tvsum_dataset_builder import TVSUM

FIXTURE = pathlib.Path(__file__).parent / "golden" / "ground" / "fixture"
LAYOUTS = {"qvhighlights": RELEASE, "tvsum": TVSUM.layouts[1]}  # domain BK


def copy_qvhighlights(folder: pathlib.Path) -> pathlib.Path:
    """The fixture's queries as train, the first two of them as val too."""
    shutil.copytree(FIXTURE / "qvhighlights", folder)
    for name in ("slowfast", "clip", "clip_text", "pann"):
        (folder / "features" / f"{name}_features").parent.mkdir(exist_ok=True)
        (folder / name).rename(folder / "features" / f"{name}_features")
    train = folder / "highlight_train_release.jsonl"
    (folder / "highlight_train_mini.jsonl").rename(train)
    lines = train.read_text().splitlines()
    (folder / "highlight_val_release.jsonl").write_text("\n".join(lines[:2]))
    return folder


def copy_tvsum(folder: pathlib.Path) -> pathlib.Path:
    """The fixture's videos as train, the first two of them as val too."""
    shutil.copytree(FIXTURE / "tvsum", folder)
    train = folder / "tvsum_train.jsonl"
    (folder / "tvsum_train_mini.jsonl").rename(train)
    lines = train.read_text().splitlines()
    (folder / "tvsum_val.jsonl").write_text("\n".join(lines[:2]))
    return folder


def read_records(folder: pathlib.Path, dataset: str, split: str = "train") -> list[dict]:
    """Records as the builder would write them."""
    queries, problems = moments.list_queries(folder, LAYOUTS[dataset])
    outcomes = [moments.read_query(query) for query in queries[split]]
    assert problems == [] and all(lines == [] for _, lines in outcomes)
    return [record for record, _ in outcomes]
