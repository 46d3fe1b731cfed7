"""Checks a download of AVSBench or Ref-AVS, and makes what VCT's 384 px datasets need.

  avs-jax data check DIR [--json=FILE]
  avs-jax data prepare DIR

DIR is the folder of one setting (Single-source, Multi-sources or AVSBench_semantic), or the folder
that holds several of them; for `check` also that of Ref-AVS.

`check` reads every file once: clips (Ref-AVS: expressions) per split against the expected counts,
every missing, unreadable or mis-sized file, frames without the mask they should have, rows of the
csv without a folder and folders without a row, sounds by length and rate. It prints a table and the
problems, writes them as JSON too, and exits with 1 if there are any.

`prepare` makes, from AVSBench_semantic's clips of the same name (v1s for S4, v1m for MS3):

  s4_data_384/visual_frames_384, gt_masks_384 (train), gt_masks_224 (val, test), and likewise
  ms3_data_384/; pre_SAM_mask_384 where AVSBench_semantic has color masks

frames bilinear, masks nearest: a mask is where labels_rgb, as a gray image, is not black. Then it
makes 16 kHz wavs from raw_videos where audio_wav lacks them. Existing files are kept; a second run
finds nothing to do. AVSS needs no preparation: its builder reads the download, and its frames are
squashed when they are read.

Source: VCT (repository spyflying/VCT_AVS), generate_data_384.
"""

import json
import pathlib
import sys

from avs_jax.data.avsbench_folders import (
    S4,
    SETTINGS,
    DatasetLayoutError,
)
from avs_jax.files import write_atomically
from avs_jax.flag_style import FlagParser
from avs_jax.spec import InputError
from avs_jax.stopping import sigterm_as_interrupt, stop_status
from tfds_builders import download_check, prepare_384
from tfds_builders.refavs_check import check_refavs, find_refavs


def find_settings(folder: str) -> dict[str, pathlib.Path]:
    """Setting -> folder of its csv, for the settings that `folder` holds.

    Raises:
      DatasetLayoutError: it holds none.
    """
    found = {}
    for setting in SETTINGS.values():
        try:
            found[setting.name] = setting.find_root(folder)
        except DatasetLayoutError:
            continue
    if not found:
        wanted = ", ".join(f"{'/'.join(x.folders)}/{x.csv}" for x in SETTINGS.values())
        raise DatasetLayoutError(
            f"{folder} holds none of AVSBench's settings; looked for {wanted}, and for the csv "
            f"itself\n{S4.how_to_get}"
        )
    return found


def check(folder: str, json_path: str | None) -> int:
    """Prints the table and the problems; returns the exit status."""
    reports = []
    if refavs := find_refavs(folder):
        reports.append(check_refavs(refavs))
    else:
        for setting, root in find_settings(folder).items():
            reports += download_check.check_setting(SETTINGS[setting], root)
    print("\n".join(download_check.to_lines(reports)))
    if json_path:
        write_atomically(json_path, json.dumps(reports, indent=2) + "\n")
        print(f"written: {json_path}")
    return int(any(report["problems"] for report in reports))


def prepare(folder: str) -> int:
    """Makes the 384 px folders and missing wavs; returns the exit status."""
    roots = find_settings(folder)
    problems = []
    for setting, subset in (("s4", "v1s"), ("ms3", "v1m")):
        if setting not in roots:
            print(f"{setting}: not in {folder}, nothing to prepare")
            continue
        result = prepare_384.extract_wavs(SETTINGS[setting], roots[setting])
        print(f"{setting}: wavs from videos: {result.made} made, {result.kept} kept")
        problems += result.problems
        if "avss" not in roots:
            print(f"{setting}: no AVSBench_semantic, so no 384 px variant")
            continue
        source = roots["avss"], subset
        result = prepare_384.resize_clips(SETTINGS[setting], roots[setting], *source)
        print(f"{setting}: 384 px files: {result.made} made, {result.kept} kept")
        problems += result.problems
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; returns the exit status."""
    parser = FlagParser(prog="avs-jax data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser(
        "check", help="read every file, list what is wrong", description=__doc__
    )
    checking.add_argument("folder")
    checking.add_argument("--json", help="also write the report to this file")
    commands.add_parser(
        "prepare", help="make what the builders need", description=__doc__
    ).add_argument("folder")
    args = parser.parse_args(argv)
    try:
        with sigterm_as_interrupt():
            if args.command == "check":
                return check(args.folder, args.json)
            return prepare(args.folder)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        line, status = stop_status(error)
        advice = "starts over" if args.command == "check" else "resumes"
        print(f"{line}; the same command {advice}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
