"""The page of `ditflow app` in a real browser, with the small model: `make test-browser`."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from webdriver import Browser

from ditflow.small.clips import main as write_clip

SLOW = 600  # seconds that a run may take on a busy machine
TEXT = "return document.body.innerText"
SERVER = """
import sys
from pathlib import Path

def watch(event, given):
    if event == "socket.connect" and given[1][0] != "127.0.0.1":
        print("asked:", given[1], flush=True)

sys.addaudithook(watch)
from ditflow.app.command import listening
from ditflow.app.server import Server

with listening("127.0.0.1", 0) as found:
    server = Server(Path(sys.argv[1]), {"optimisation_steps": 1, "frames": 9})
    print("port:", found.getsockname()[1], flush=True)
    server.serve(found, "127.0.0.1")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def server(place):
    """The address of a server whose runs take few updates; at the end it must close as it is asked to."""
    log = (place / "log").open("w+")
    command = [sys.executable, "-c", SERVER, str(place / "runs")]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
    until(lambda: "port: " in (place / "log").read_text() or process.poll() is not None)
    said = (place / "log").read_text()
    assert process.poll() is None, said
    yield f"http://127.0.0.1:{said.partition('port: ')[2].split()[0]}"
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=SLOW)
    said = (place / "log").read_text()
    assert "asked:" not in said, said


def until(question, seconds=SLOW):
    deadline = time.monotonic() + seconds
    while not (found := question()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


class Page(Browser):
    """The page in one browser, which tests open again."""

    def visit(self, address):
        self.open("about:blank")
        self.open(address)
        self.until("return document.querySelector('video.sample')?.readyState >= 2")

    def until(self, question):
        """Wait until a script returns something true, and return that."""
        return until(lambda: self.run(question))

    def shows(self, words):
        return self.until(f"return document.body.innerText.includes({json.dumps(words)})")

    def press_button(self, name):
        """Press the first visible button of that name."""
        pressed = f"""const found = [...document.querySelectorAll('button')]
            .find((button) => button.innerText.trim() === {json.dumps(name)} && button.offsetParent);
            found?.click(); return Boolean(found)"""
        assert self.until(pressed)

    def press_label(self, name):
        """Choose where the motion is from."""
        labels = "[...document.querySelectorAll('#source label')]"
        self.run(f"{labels}.find((each) => each.innerText.trim() === '{name}').click()")

    def asked_elsewhere(self):
        names = self.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        return [name for name in names if not name.startswith(("data:", "blob:", "http://127.0.0.1:"))]


@pytest.fixture(scope="module")
def browser():
    with Page() as page:
        yield page


@pytest.fixture
def page(browser, server):
    browser.dress(1280, 1400, dark=False)
    browser.visit(server)
    return browser


def runs_of(place):
    return {path.parent.name for path in (place / "runs").glob("*/settings.yaml")}


def test_a_run_goes_on_without_the_page_and_is_cancelled_and_resumed(page, server, place):
    before = runs_of(place)
    page.click("#start")
    page.until("return Boolean(document.querySelector('#status .running'))")
    page.click("#start")
    page.shows("waiting: a blue square")
    page.press_button("Remove")
    page.until("return !document.body.innerText.includes('waiting:')")
    page.visit(server)  # closed and opened again
    page.until("return Boolean(document.querySelector('#status .running'))")
    page.until("return /step ([3-9]|1\\d) of 25/.test(document.querySelector('#status').innerText)")
    assert "waiting:" not in page.run(TEXT)
    page.click("#cancel")
    page.shows("cancelled; resume it below")
    (run,) = runs_of(place) - before
    folder = place / "runs" / run
    assert (folder / "state").is_dir() and not (folder / "run.json").exists()
    page.press_button("Resume")
    page.until("return document.querySelector('#picture video')?.currentTime > 0.2")
    assert json.loads((folder / "run.json").read_text())["resumed"] is True


def test_from_upload_to_a_playing_result(page, place):
    before = runs_of(place)
    write_clip([str(place / "mine.mp4"), "--seed", "5"])
    page.press_label("Upload")
    page.until("return Boolean(document.querySelector('#upload input[type=file]'))")
    page.type("#upload input[type=file]", str(place / "mine.mp4"))
    page.until("return document.querySelector('#upload video')?.readyState >= 1")
    page.type("#prompt textarea", " & a circle")
    page.click("#start")
    page.until("return Boolean(document.querySelector('#picture img.preview'))")
    page.until("return document.querySelector('#picture video')?.currentTime > 0.2")
    page.until("return [...document.querySelectorAll('.card video')].every((video) => video.readyState >= 2)")
    (run,) = runs_of(place) - before
    assert run.startswith("mine-a-blue-square-on")
    shown = 2 * len(runs_of(place))  # the result and the clip
    assert page.run("return document.querySelectorAll('.card video').length") == shown
    assert page.asked_elsewhere() == []


def test_how_models_fit_is_said(page):
    page.until("return /Needs [\\d.]+ of [\\d.]+ GiB/.test(document.querySelector('#fits').innerText)")
    page.click("#model input")
    page.until("return /small-wan: (needs|does not fit)/.test(document.body.innerText)")


def test_an_error_is_one_line(page):
    page.press_label("Upload")
    page.click("#start")
    page.shows("no clip given: upload one, or choose a sample")
    page.press_label("Drawn motion")
    page.until("return Boolean(document.querySelector('#drawing textarea'))")
    page.type("#drawing textarea", "\nobjects: 3")
    page.click("#start")
    page.shows("given 2 times; give it once")
    assert "Traceback" not in page.run(TEXT)


def test_another_host_name_is_refused(server):
    asked = urllib.request.Request(server, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(asked, timeout=60)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_narrow_and_dark(page, server, width, dark, tmp_path):
    page.dress(width, 1400, dark)
    page.visit(server)
    page.until("return document.querySelectorAll('.card').length >= 2")
    page.until("return [...document.querySelectorAll('video')].every((video) => video.readyState >= 2)")
    assert page.run("return document.documentElement.scrollWidth") <= width
    colour = page.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(colour[:3]) < 64) == dark and (min(colour[:3]) > 191) != dark
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page.screenshot(folder / f"app-{width}-{'dark' if dark else 'light'}.png")
