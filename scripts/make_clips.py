"""Generates clips to train and test on, in the layout of one of AVSBench's settings.

  python scripts/make_clips.py --output=demo/clips
  python scripts/make_clips.py --setting=ms3 --output=demo/clips_ms3
  python scripts/make_clips.py --setting=avss --output=demo/clips_avss

Run again with the same parameters it keeps what is there and adds what is missing; other parameters
in the same folder are an error that shows the difference.
"""

import argparse
import os
import sys

from avs_jax.data import synthetic_files


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and generates; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder of the csv and the clips")
    parser.add_argument(
        "--setting", choices=list(synthetic_files.SETTINGS), default="s4", help="(%(default)s)"
    )
    parser.add_argument("--train", type=int, default=1000, help="training clips (%(default)s)")
    parser.add_argument("--val", type=int, default=60, help="validation clips (%(default)s)")
    parser.add_argument("--test", type=int, default=100, help="test clips (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="everything follows (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="height in pixels (%(default)s)")
    parser.add_argument("--categories", type=int, help="12 at most (10, for avss 12)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        written = synthetic_files.write_clips(
            args.output,
            num_train=args.train,
            num_val=args.val,
            num_test=args.test,
            seed=args.seed,
            size=args.size,
            categories=args.categories,
            workers=args.workers,
            setting=args.setting,
        )
    except (ValueError, OSError) as error:
        print(f"make_clips: {error}", file=sys.stderr)
        return 1
    total = args.train + args.val + args.test
    print(f"{args.output}: {total} clips, {written} generated now, {total - written} were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
