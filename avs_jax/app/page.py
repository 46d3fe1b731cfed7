"""What the browser shows: the inputs of the checkpoint's task, the status of a job, its result.

Gradio serves the page to this machine only: no telemetry, nothing from other hosts, and no request
with another host's name (which a web site could point here). Uploads and results are in folders
that the program removes when it ends.
"""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from avs_jax.app.jobs import ANOTHER, OWN, SILENCE, Inputs, Job, Runner
from avs_jax.data.video import read_frames
from avs_jax.results.visualize import PREDICTION
from avs_jax.spec import InputError, first_line

HOST = "127.0.0.1"
FONTS = ("system-ui", "sans-serif")  # of the browser
BUTTONS = ["download", "fullscreen"]  # of images; "share" would upload them
DOT = 5  # px, radius of a clicked point
FILE_HEIGHT = 150  # px
POLL_SECONDS = 0.3
MAX_WAITING = 8  # jobs; further ones are refused
KEEP_SECONDS = 3600  # that Gradio keeps its copies of files

Updates = dict[Any, Any]  # component -> its new value or gr.update


class Page:
    """The page of one checkpoint.

    Attributes:
      blocks: Gradio's.
    """

    def __init__(self, runner: Runner, folder: pathlib.Path, title: str):
        """`folder` gets the folders of jobs."""
        self._runner, self._folder = runner, folder
        with gr.Blocks(
            title=title, analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)
        ) as self.blocks:
            gr.Markdown(f"## {title}\n{self._introduction()}")
            self._job = gr.State(None, delete_callback=_discard)
            self._points = gr.State([])
            with gr.Row():
                with gr.Column(scale=1):
                    self._add_inputs()
                with gr.Column(scale=2):
                    self._add_outputs()
            self._connect()
        self.blocks.queue(default_concurrency_limit=1, max_size=MAX_WAITING)

    def _introduction(self) -> str:
        name, seconds = self._runner.predictor.task.name, self._runner.max_seconds
        text = f"Task `{name}`. Videos of up to {seconds} s; they stay on this machine."
        if self._runner.hears:
            text += " Does the model listen? Compare with silence and with another sound."
        return text

    def _add_inputs(self) -> None:
        """Adds all inputs; those that the task does not take are hidden."""
        runner = self._runner
        self._video = gr.Video(
            label="video",
            sources=["upload", "webcam"],
            include_audio=True,
            buttons=[],
            elem_id="video",
        )
        self._first = gr.Image(
            label="click on the object to follow",
            interactive=False,
            buttons=[],
            visible=runner.takes("points"),
            elem_id="first",
        )
        self._text = gr.Textbox(
            label="what to look for, one per line",
            lines=2,
            visible=runner.takes("text"),
            elem_id="text",
        )
        self._sound = gr.File(
            label="replace the sound by that of this file",
            height=FILE_HEIGHT,
            visible=runner.hears,
            elem_id="sound",
        )
        self._silence = gr.Checkbox(
            label="compare with silence", visible=runner.hears, elem_id="silence"
        )
        self._another = gr.File(
            label="compare with the sound of this file",
            height=FILE_HEIGHT,
            visible=runner.hears,
            elem_id="another",
        )
        with gr.Row():
            self._run_button = gr.Button("Run", variant="primary", elem_id="run")
            self._cancel_button = gr.Button("Cancel", elem_id="cancel")

    def _add_outputs(self) -> None:
        self._status = gr.Textbox(
            label="status", value="ready", interactive=False, elem_id="status"
        )
        with gr.Row():
            self._overlay = gr.Video(
                label=OWN, interactive=False, buttons=["download"], elem_id="overlay"
            )
            self._others = {
                condition: gr.Video(
                    label=condition,
                    interactive=False,
                    visible=False,
                    buttons=["download"],
                    elem_id=f"{condition.split()[0]}_overlay",
                )
                for condition in (SILENCE, ANOTHER)
            }
        self._chart = gr.Image(
            show_label=False, interactive=False, visible=False, buttons=BUTTONS, elem_id="chart"
        )
        self._maps = gr.Gallery(
            show_label=False, columns=1, visible=False, buttons=BUTTONS, elem_id="maps"
        )
        self._archive = gr.File(label="masks and numbers", visible=False, elem_id="archive")

    def _connect(self) -> None:
        inputs = {
            self._job, self._points, self._video, self._text, self._sound, self._silence,
            self._another,
        }  # fmt: skip
        outputs = [self._job, self._status, self._overlay, *self._hideable()]
        running = self._run_button.click(
            self._run,
            inputs,
            outputs,
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )
        self._cancel_button.click(
            _cancel,
            self._job,
            self._status,
            cancels=[running],
            queue=False,
            api_visibility="private",
        )
        if self._runner.takes("points"):
            shown = [self._first, self._points]
            self._video.change(_show_first, self._video, shown, api_visibility="private")
            self._first.select(
                _add_point, [self._video, self._points], shown, api_visibility="private"
            )

    def _run(self, given: Mapping[Any, Any]) -> Iterator[Updates]:
        """Runs a job and yields what changes on the page."""
        _discard(given[self._job])
        if not given[self._video]:
            yield {self._job: None, self._status: "drop or record a video first", **self._empty()}
            return
        folder = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
        job = Job(self._runner, self._read(given), folder)
        try:
            yield {self._job: job, self._status: job.progress, **self._empty()}
            while not job.wait(POLL_SECONDS):
                yield {self._status: job.progress}
        except GeneratorExit:  # canceled, or the browser was closed
            job.discard()
            raise
        yield self._show(job)

    def _read(self, given: Mapping[Any, Any]) -> Inputs:
        def path(component):
            return pathlib.Path(given[component]) if given[component] else None

        lines = (given[self._text] or "").splitlines()
        return Inputs(
            video=pathlib.Path(given[self._video]),
            sound=path(self._sound),
            silence=given[self._silence],
            another=path(self._another),
            text=[line.strip() for line in lines if line.strip()],
            points=given[self._points],
        )

    def _hideable(self) -> list[Any]:
        """The outputs that not every result has."""
        return [*self._others.values(), self._chart, self._maps, self._archive]

    def _empty(self) -> Updates:
        hidden = {output: gr.update(value=None, visible=False) for output in self._hideable()}
        return {self._overlay: gr.update(value=None), **hidden}

    def _show(self, job: Job) -> Updates:
        result = job.result
        if result is None:
            return {self._status: job.error}
        videos = {condition: str(path) for condition, path in result.videos.items()}
        first = next(iter(videos), OWN)
        values = {self._chart: result.chart, self._maps: result.maps or None}
        values |= {output: videos.get(name) for name, output in self._others.items()}
        values[self._archive] = str(result.archive)
        return {
            self._status: "\n".join(["done", *result.lines]),
            self._overlay: gr.update(value=videos.get(first), label=first),
            **{
                output: gr.update(value=value, visible=value is not None)
                for output, value in values.items()
            },
        }


def _cancel(job: Job | None) -> Any:
    """What the status becomes; a result that is shown already stays."""
    if job is None or job.wait(0):
        return gr.skip()
    job.discard()
    return "canceled"


def _discard(job: Job | None) -> None:
    if job is not None:
        job.discard()


def _show_first(video: str | None) -> tuple[np.ndarray | None, list]:
    """The first frame to click on, without points."""
    return (_read_first(video) if video else None), []


def _add_point(
    video: str, points: list[tuple[int, int]], event: gr.SelectData
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Adds the pixel that was clicked on, and draws all."""
    points = [*points, (int(event.index[0]), int(event.index[1]))]
    image = Image.fromarray(_read_first(video))
    draw = ImageDraw.Draw(image)
    for x, y in points:
        draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=PREDICTION, outline="white")
    return np.asarray(image), points


def _read_first(video: str) -> np.ndarray:
    try:
        return next(read_frames(video))
    except InputError as error:
        raise gr.Error(first_line(error), print_exception=False) from error


def launch(page: Page, port: int | None, max_megabytes: int) -> tuple[str, Callable[[], None]]:
    """Serves the page; returns its address and a function that stops serving."""
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    _, address, _ = page.blocks.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        max_file_size=max_megabytes * 10**6,
        theme=gr.themes.Base(font=FONTS, font_mono=("monospace",)),
        footer_links=[],
        app_kwargs={"middleware": [hosts]},
    )
    return address, lambda: page.blocks.close(verbose=False)
