"""Writes when each class sounds in clips of AVSBench, as annotations to ground queries in.

  python scripts/derive_moments.py --dataset=avsbench_semantic --manual_dir=DIR --output=moments

--dataset=refavs writes when the object of each expression of Ref-AVS is in view.

OUTPUT/moments_{train,val,test}.jsonl   a line per clip and class that sounds
OUTPUT/features/energy/{vid}.npy        log-RMS of the sound, float32 [seconds, 1]

With features of the videos and queries beside them (tfds_builders/own_moments says where) they are
a dataset: avs-jax data build --dataset=own_moments --manual_dir=OUTPUT ...

Missing and damaged files are listed, all of them, and nothing is written. With --skip_bad their
clips are left out.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Collection

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from avs_jax.data.avsbench_folders import (  # noqa: E402
    AVSS,
    BY_DATASET,
    MS3,
    DatasetLayoutError,
    Setting,
)
from avs_jax.files import atomic_file, write_atomically  # noqa: E402
from avs_jax.flag_style import FlagParser  # noqa: E402
from avs_jax.spec import InputError  # noqa: E402
from tfds_builders import avs_moments, refer_clips  # noqa: E402
from tfds_builders.avsbench import list_clips  # noqa: E402
from tfds_builders.clip_files import DatasetFilesError  # noqa: E402
from tfds_builders.own_moments.own_moments_dataset_builder import (  # noqa: E402
    ANNOTATIONS,
    ENERGY,
)
from tfds_builders.refavs.refavs_dataset_builder import REFAVS  # noqa: E402

Found = dict[str, list[tuple[str, avs_moments.Derived]]]  # split -> (vid, what it gives)
DATASETS = (MS3.dataset, AVSS.dataset, REFAVS.dataset)


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and derives; returns the exit status."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help=f"{', '.join(DATASETS)}; NAME/LAYOUT")
    parser.add_argument("--manual_dir", required=True, help="the folder to read")
    parser.add_argument("--output", required=True, help="where the annotations go")
    parser.add_argument("--skip_bad", action="store_true", help="leave damaged clips out")
    args = parser.parse_args(argv)
    name, _, layout = args.dataset.partition("/")
    if name not in DATASETS:
        parser.error(f"--dataset={args.dataset}: expected one of {', '.join(DATASETS)}")
    try:
        derive(name, layout, args.manual_dir, pathlib.Path(args.output).expanduser(), args.skip_bad)
    except (InputError, OSError) as error:
        print(f"derive_moments: {error}", file=sys.stderr)
        return 1
    return 0


def derive(name: str, layout: str, manual_dir: str, output: pathlib.Path, skip_bad: bool) -> None:
    """Writes the annotations of every split, and the energy of every clip that has one.

    Raises:
      DatasetLayoutError: the folder or the layout is not there.
      DatasetFilesError: files are missing or damaged.
    """
    if name == REFAVS.dataset:
        found, problems = _derive_refavs(manual_dir, layout)
    else:
        found, problems = _derive_avsbench(BY_DATASET[name], manual_dir, layout)
    everything = [derived for pairs in found.values() for _, derived in pairs]
    num_bad = len(problems) + sum(bool(derived.problems) for derived in everything)
    problems += [line for derived in everything for line in derived.problems]
    if problems and not skip_bad:
        raise DatasetFilesError(problems, len(everything) - num_bad, num_bad)
    for split, pairs in found.items():
        lines = [json.dumps(line) + "\n" for _, derived in pairs for line in derived.lines]
        partial = sum(derived.is_partial for _, derived in pairs)
        if lines:
            write_atomically(output / ANNOTATIONS.format(split=split), "".join(lines))
        print(
            f"{split}: {len(lines)} queries on {len(pairs)} clips; {partial} clips have masks for "
            "some frames only"
        )
        for vid, derived in pairs:
            if derived.energy is not None:
                with atomic_file(output / ENERGY / f"{vid}.npy") as file:
                    np.save(file, derived.energy)
    if num_bad:
        print(f"{num_bad} clips are left out:\n  " + "\n  ".join(problems))


def _derive_avsbench(setting: Setting, manual_dir: str, layout: str) -> tuple[Found, list[str]]:
    """(what each clip of each split gives, what is wrong before any file is read)."""
    root = setting.find_root(manual_dir)
    choices = {x.name: x for x in setting.layouts}
    layout = layout or next(iter([*setting.layouts_present(root), *setting.layouts])).name
    _check_layout(layout, choices)
    clips, problems = list_clips(setting, root, choices[layout])
    derive_one = functools.partial(avs_moments.derive, names=avs_moments.class_names(setting, root))
    found = {
        split: [(c.clip_id, x) for c, x in avs_moments.derive_all(listed, derive_one)]
        for split, listed in clips.items()
    }
    return found, problems


def _derive_refavs(manual_dir: str, layout: str) -> tuple[Found, list[str]]:
    """The same of Ref-AVS."""
    _check_layout(layout or refer_clips.LAYOUT.name, [refer_clips.LAYOUT.name])
    clips, _, problems = refer_clips.list_clips(REFAVS.find_root(manual_dir))
    found: Found = {}
    for split, target in avs_moments.REFER_SPLITS.items():
        pairs = avs_moments.derive_all(clips.get(split, []), avs_moments.derive_expressions)
        found.setdefault(target, []).extend((clip.folder, x) for clip, x in pairs)
    return found, problems


def _check_layout(layout: str, choices: Collection[str]) -> None:
    if layout not in choices:
        raise DatasetLayoutError(f"no layout {layout!r}; there are {', '.join(choices)}")


if __name__ == "__main__":
    sys.exit(main())
