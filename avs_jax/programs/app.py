"""A page in the browser to try a checkpoint on.

  avs-jax app --checkpoint=runs/s4_ama

Drop or record a video, and give what the checkpoint's task takes: words, a point on the object, the
sound of another file. The page shows the overlay with its sound, the model's maps and a chart per
second, and the same with silence and with another sound to compare; the masks are a download.

The page is open to this machine only and sends nothing anywhere. One job runs at a time. Ctrl-C
ends the program and removes all files of the page. Needs the extra: pip install 'avs_jax[app]'.
"""

import importlib.util
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Sequence

from absl import flags

from avs_jax.predict import make_predictor
from avs_jax.runtime.command_line import CommandLine, UsageError, exit_status, parse
from avs_jax.stopping import run_as_program, sigterm_as_interrupt
from avs_jax.tasks import predict_flags


def main(argv: Sequence[str]) -> int:
    """Serves the page until it is stopped; returns the exit status."""
    required = ("checkpoint",)
    return exit_status(
        lambda: run(parse(argv, _define_flags, __doc__, required, needs_config=False))
    )


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page needs Gradio: pip install 'avs_jax[app]'")
    with (
        sigterm_as_interrupt(),
        tempfile.TemporaryDirectory(prefix="avs_jax_app_", ignore_cleanup_errors=True) as folder,
    ):
        os.environ |= {  # Gradio reads them when it is imported
            "GRADIO_TEMP_DIR": f"{folder}/files",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
        }
        from avs_jax.app import jobs, page

        values = line.values
        predictor = make_predictor(line, jobs.WatchedPredictor)
        given = {"flow_weights": values.flow_weights} if values.flow_weights else {}
        runner = jobs.Runner(predictor, values.max_seconds, given)
        places = pathlib.Path(folder) / "jobs"
        places.mkdir()
        shown = page.Page(runner, places, f"avs_jax: {predictor.config.name}")
        address, close = page.launch(shown, values.port, values.max_megabytes)
        try:
            print(f"{address} shows the page; Ctrl-C ends it", flush=True)
            threading.Event().wait()
        finally:
            close()
            runner.close()


def _define_flags(values: flags.FlagValues) -> None:
    text = "a run's working directory, one of its steps, or converted weights"
    flags.DEFINE_string("checkpoint", None, text, flag_values=values)
    text = "of the page; by default the first free one from 7860 on"
    flags.DEFINE_integer("port", None, text, 1, 65535, flag_values=values)
    text = "longest video that is taken"
    flags.DEFINE_integer("max_seconds", 120, text, lower_bound=1, flag_values=values)
    text = "largest file that is taken"
    flags.DEFINE_integer("max_megabytes", 200, text, lower_bound=1, flag_values=values)
    name = "flow_weights"
    flags.DEFINE_string(name, None, predict_flags()[name].text, flag_values=values)


if __name__ == "__main__":
    run_as_program(main, sys.argv)
