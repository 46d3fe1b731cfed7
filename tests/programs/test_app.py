"""The page, in headless Chromium: upload, record, click, run, compare, cancel; errors as text."""

import contextlib
import functools
import importlib.util
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest

from avs_jax.generate.video_writer import write_video
from avs_jax.runtime.checkpoint import save_variables
from tests.conftest import ROOT
from tests.sam2_golden import save_smallest_sam2
from tests.small import random_variables, small_config

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of Gradio and Selenium
    pytest.mark.skipif(bool(MISSING), reason=f"no {MISSING}: pip install -e .[test-slow]"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with chromium-driver"),
]
CSS = "css selector"
PATIENCE = 300  # seconds; the first run compiles
ENDS = ("done", "error", "failed")


def video(path, seconds, has_sound=True, size=(64, 96)):
    frames = np.random.default_rng(0).integers(0, 255, (4 * seconds, *size, 3), np.uint8)
    wave = (np.sin(np.arange(seconds * 16_000) / 8) * 9000).astype(np.int16)
    write_video(path, frames, 4, wave if has_sound else None)
    return path


@contextlib.contextmanager
def serving(folder):
    """(address, folder for temporary files) of a running page on folder/weights."""
    (folder / "tmp").mkdir()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": paths, "TMPDIR": str(folder / "tmp"), "XLA_FLAGS": ""}
    # With programs that an earlier run compiled, a job ends before a test can cancel it.
    variables["XDG_CACHE_HOME"] = str(folder / "cache")
    flags = [f"--checkpoint={folder}/weights", "--max_seconds=20", "--max_megabytes=3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "avs_jax.cli", "app", *flags],
        cwd=folder,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), line
    try:
        yield line.split()[0], folder / "tmp"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        process.stdout.close()
    assert not list((folder / "tmp").glob("avs_jax_app_*"))  # nothing is left


@contextlib.contextmanager
def browsing(address):
    """A browser on the page, with a camera and a microphone that Chromium makes up."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "use-fake-device-for-media-stream",
        "use-fake-ui-for-media-stream",
        "window-size=1400,1400",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.get(address)
        wait(driver, lambda: driver.find_elements(CSS, "#video input[type=file]"))
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("app"), small_config()
    save_variables(folder / "weights", random_variables(config, (64, 64)), config)
    with serving(folder) as address_and_folder:
        yield address_and_folder


@pytest.fixture
def browser(served):
    with browsing(served[0]) as driver:
        yield driver


def wait(driver, condition, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds).until(lambda _: condition())


def upload(driver, element, path):
    driver.find_element(CSS, f"#{element} input[type=file]").send_keys(str(path))
    done = "#video video" if element == "video" else f"#{element} a[download]"
    wait(driver, lambda: driver.find_elements(CSS, done))


def click(driver, element):
    target = driver.find_element(CSS, f"#{element}")
    driver.execute_script("arguments[0].click()", target)


def status(driver):
    return driver.find_element(CSS, "#status textarea").get_attribute("value")


def shown(driver, selector):
    return [x for x in driver.find_elements(CSS, selector) if x.is_displayed()]


def test_upload_run_and_compare(browser, served, tmp_path):
    upload(browser, "video", video(tmp_path / "clip.mp4", 3))
    click(browser, "silence input")
    upload(browser, "another", video(tmp_path / "other.mp4", 2))
    click(browser, "run")
    wait(browser, lambda: status(browser).startswith(ENDS), PATIENCE)
    assert status(browser).startswith("done"), status(browser)
    for element in ("overlay", "silence_overlay", "another_overlay"):
        assert shown(browser, f"#{element} video"), element
    assert shown(browser, "#chart img") and shown(browser, "#maps img")
    with urllib.request.urlopen(shown(browser, "#archive a")[0].get_attribute("href")) as response:
        names = zipfile.ZipFile(io.BytesIO(response.read())).namelist()
    conditions = ("own_sound", "silence", "another_sound")
    assert {f"{name}/masks/0002.png" for name in conditions} <= set(names)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = [params["request"]["url"] for params in sent]
    local = (served[0], "data:", "blob:", "chrome")
    assert urls and [url for url in urls if not url.startswith(local)] == []


def test_recording_with_a_camera(browser):
    def press(name):
        def found():
            buttons = browser.find_elements(CSS, "#video button")
            return [b for b in buttons if name in (b.get_attribute("aria-label"), b.text)]

        wait(browser, found)[0].click()

    press("Capture from camera")
    press("Click to Access Webcam")
    press("Record")
    time.sleep(3)  # what is recorded
    press("Stop")
    wait(browser, lambda: browser.find_elements(CSS, "#video video[src*='/file=']"))
    click(browser, "run")
    wait(browser, lambda: status(browser).startswith(ENDS), PATIENCE)
    assert status(browser).startswith("done"), status(browser)
    assert shown(browser, "#overlay video")


def test_a_click_chooses_what_to_follow(tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    save_smallest_sam2(tmp_path / "weights")
    with serving(tmp_path) as (address, _), browsing(address) as driver:
        upload(driver, "video", video(tmp_path / "clip.mp4", 2))
        first = wait(driver, lambda: shown(driver, "#first img"))[0]
        plain = first.get_attribute("src")
        click(driver, "run")
        wait(driver, lambda: "click" in status(driver))
        ActionChains(driver).move_to_element(first).click().perform()
        wait(driver, lambda: shown(driver, "#first img")[0].get_attribute("src") != plain)
        click(driver, "run")
        wait(driver, lambda: status(driver).startswith("done"), PATIENCE)
        assert wait(driver, lambda: shown(driver, "#overlay video"))
        archive = wait(driver, lambda: shown(driver, "#archive a"))[0].get_attribute("href")
        with urllib.request.urlopen(archive) as response:
            names = zipfile.ZipFile(io.BytesIO(response.read())).namelist()
        assert [name for name in names if name.endswith("masks/object/00000.png")], names


def test_other_host_names_are_refused(served):
    request = urllib.request.Request(served[0], headers={"Host": "example.org"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


def test_a_file_over_the_limit_is_refused(served):
    def send(num_bytes):
        lines = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        body = lines + bytes(num_bytes) + b"\r\n--x--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        address = f"{served[0].rstrip('/')}/gradio_api/upload"
        return urllib.request.urlopen(urllib.request.Request(address, body, headers)).status

    assert send(2_900_000) == 200
    with pytest.raises(urllib.error.HTTPError, match="413"):
        send(3_100_000)


@pytest.mark.parametrize(
    "make, reason",
    [
        (functools.partial(video, seconds=2, has_sound=False), "no sound"),
        (functools.partial(video, seconds=30), "this page takes up to 20 s"),
    ],
)
def test_errors_are_text(browser, tmp_path, make, reason):
    upload(browser, "video", make(tmp_path / "clip.mp4"))
    click(browser, "run")
    wait(browser, lambda: reason in status(browser))
    assert not shown(browser, "#overlay video")


def test_cancel_ends_the_job(browser, served, tmp_path):
    def places():
        return set(pathlib.Path(served[1]).glob("avs_jax_app_*/jobs/*"))

    before = places()  # of closed browsers, whose sessions last for an hour
    upload(browser, "video", video(tmp_path / "long.mp4", 20, size=(96, 64)))
    click(browser, "run")
    wait(browser, lambda: "step 1" in status(browser), 180)  # compiles another size
    click(browser, "cancel")
    wait(browser, lambda: status(browser) == "canceled")
    deadline = time.monotonic() + PATIENCE
    while places() - before:
        assert time.monotonic() < deadline
        time.sleep(0.5)
