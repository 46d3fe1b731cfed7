"""Generates clips to train and test on, in the layout of a published dataset.

{settings}

Numbers, sizes and kinds in parentheses are defaults; the first kind is the default. Run the same
command again to resume: clips that exist are kept and missing ones are added. Other options for an
existing folder are an error that shows the difference.
"""

import os
import sys
import textwrap

from avs_jax.flag_style import FlagParser
from avs_jax.generate.datasets import SETTINGS, write_clips
from avs_jax.spec import InputError
from avs_jax.stopping import sigterm_as_interrupt, stop_status


def main(argv: list[str] | None = None) -> int:
    """Parses the flags and generates; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        with sigterm_as_interrupt():
            written = write_clips(
                args.output,
                num_train=args.train,
                num_val=args.val,
                num_test=args.test,
                seed=args.seed,
                size=args.size,
                num_categories=args.categories,
                workers=args.workers,
                setting=args.setting,
                kind=args.kind,
            )
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        line, status = stop_status(error)
        print(f"{line}; the same command resumes", file=sys.stderr)
        return status
    print(f"{args.output}: complete, {written} clips generated now")
    return 0


def _parser() -> FlagParser:
    description = __doc__.format(settings=_list_settings())
    parser = FlagParser(prog="avs-jax clips", description=description)
    parser.add_argument("--output", required=True, help="folder of the dataset")
    parser.add_argument("--setting", choices=list(SETTINGS), default="s4", help="(%(default)s)")
    parser.add_argument("--kind", help="variant of twins or moments, see above")
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}", type=int, help=f"number of {split} clips")
    parser.add_argument("--seed", type=int, default=0, help="of all random draws (%(default)s)")
    parser.add_argument("--size", type=int, help="height of the frames in pixels")
    parser.add_argument("--categories", type=int, help="categories of objects, at most 12")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    return parser


def _list_settings() -> str:
    """Every setting with its defaults and an example."""
    lines = []
    for name, setting in SETTINGS.items():
        counts = ", ".join(f"{n} {split}" for split, n in setting.default_counts().items())
        kinds = f"; --kind={'|'.join(setting.kinds)}" if setting.kinds else ""
        text = f"{name}: {setting.title} ({counts} clips, {setting.size} px high{kinds})"
        lines += textwrap.wrap(text, 100, subsequent_indent="    ")
        lines.append(f"    avs-jax clips {setting.example}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
