"""The page of `ditflow app` in a real browser, with the small model: `make test-browser`."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from webdriver import Browser

from ditflow.small.clips import main as write_clip

SLOW = 600  # seconds that a run may take on a busy machine
STEPS = 60  # quick ones, so many that a run is still under way when a test acts on it
QUICK = {"optimisation_steps": 1, "frames": 9, "steps": STEPS}
EARLIER = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
PROMPT = "a red circle on a white background"
TEXT = "return document.body.innerText"
COMMAND = f"""
import signal
import sys
from functools import partial

def watch(event, given):
    if event == "socket.connect" and given[1][0] != "127.0.0.1":
        print("asked:", given[1], flush=True)

sys.addaudithook(watch)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
from ditflow.app import server
from ditflow.cli.main import main

server.Server = partial(server.Server, others={QUICK})
sys.exit(main(["app", "--port", "0", "--runs", *sys.argv[1:]]))
"""
OWN = "Method not implemented."  # what Gradio's client says whenever it closes its stream of events


def until(question, seconds=SLOW):
    deadline = time.monotonic() + seconds
    while not (found := question()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@contextmanager
def serving(runs):
    """The address of `ditflow app`, whose runs take few updates; in the end it gets a Ctrl-C."""
    with runs.with_suffix(".log").open("w+") as log:
        command = [sys.executable, "-c", COMMAND, str(runs)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)

        def said():
            log.seek(0)
            return log.read()

        try:
            until(lambda: "Ctrl-C" in said() or process.poll() is not None)
            assert process.poll() is None, said()
            yield said().split()[0]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=SLOW) == 128 + signal.SIGINT, said()
        finally:
            process.kill()
            process.wait()
        assert said().splitlines()[1:] == ["ditflow: interrupted"], said()


class Page(Browser):
    """The page in one browser, which tests open again."""

    def visit(self, address):
        self.open("about:blank")
        self.complaints()  # of the page that was left
        self.open(address)
        self.until("return document.querySelector('video.sample')?.readyState >= 2")

    def until(self, question):
        """Wait until a script returns something true, and return that."""
        return until(lambda: self.run(question))

    def shows(self, words):
        return self.until(f"return document.body.innerText.includes({json.dumps(words)})")

    def runs(self, what=""):
        """Wait until the job that is shown runs, `what` it is."""
        return self.until(
            f"return document.querySelector('#status .running')?.innerText.includes({json.dumps(what)})"
        )

    def gets_to_step(self, least):
        """Wait until the job under way is at this step or a later one."""
        step = rf"document.querySelector('#status .running')?.innerText.match(/step (\d+) of {STEPS}/)"
        return self.until(f"return {step}?.[1] >= {least}")

    def plays(self):
        """Wait until the job that is shown has ended and its new video plays."""
        return self.until("return document.querySelector('#picture video')?.currentTime > 0.2")

    def cancel(self):
        self.until("return document.querySelector('#cancel')?.offsetParent")
        self.click("#cancel")
        self.until("return Boolean(document.querySelector('#status .cancelled'))")

    def press_label(self, name):
        """Choose where the motion is from."""
        labels = "[...document.querySelectorAll('#source label')]"
        self.run(f"{labels}.find((each) => each.innerText.trim() === '{name}').click()")

    def complaints(self):
        return [line for line in super().complaints() if OWN not in line]

    def asked_elsewhere(self):
        names = self.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        return [name for name in names if not name.startswith(("data:", "blob:", "http://127.0.0.1:"))]

    def photograph(self, name):
        """Save a picture of the page, if SCREENSHOTS names a folder."""
        if folder := os.environ.get("SCREENSHOTS"):
            self.screenshot(Path(folder) / f"app-{name}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a folder of runs, which has a finished one with an embedding, and of a clip."""
    place = tmp_path_factory.mktemp("app")
    write_clip([str(place / "mine.mp4"), "--seed", "5"])
    given = [
        "--model=small",
        "--optimise=embedding",
        "--video",
        str(place / "mine.mp4"),
        "--prompt",
        PROMPT,
        "--output",
        str(place / "runs" / "earlier"),
    ]
    command = [sys.executable, "-m", "ditflow", "transfer", "--quiet", *EARLIER, *given]
    subprocess.run(command, check=True, timeout=SLOW)
    return place


@pytest.fixture(scope="module")
def browser():
    with Page() as page:
        yield page


@pytest.fixture(scope="module")
def server(place, browser):
    """The address of the page. When the server ends, the page is still open."""
    with serving(place / "runs") as address:
        yield address


@pytest.fixture
def page(browser, server):
    browser.dress(1280, 1400, dark=False)
    browser.visit(server)
    yield browser
    assert browser.complaints() == []


def runs_of(place):
    return {path.parent.name for path in (place / "runs").glob("*/settings.yaml")}


def card(run):
    """A script's expression for a run's card."""
    return f"""[...document.querySelectorAll('.card')].find((card) => card.innerText.includes('{run} ·'))"""


def press(page, run, button):
    """Press a button of a run's card, once it is there."""
    pressed = f"""const found = [...({card(run)}?.querySelectorAll('button, a') ?? [])]
        .find((each) => each.innerText === '{button}');
        found?.click(); return Boolean(found)"""
    assert page.until(pressed)


def test_a_run_goes_on_without_the_page_and_is_cancelled_and_resumed(page, server, place):
    before = runs_of(place)
    page.click("#start")
    page.runs()
    page.click("#start")
    page.shows("waiting: a blue square")
    page.photograph("running")
    page.click("#waiting button")
    page.until("return !document.body.innerText.includes('waiting:')")
    page.visit(server)  # closed and opened again
    page.runs()
    page.gets_to_step(3)
    assert "waiting:" not in page.run(TEXT)
    page.cancel()
    page.shows("cancelled; resume it below")
    (run,) = runs_of(place) - before
    folder = place / "runs" / run
    assert (folder / "state").is_dir() and not (folder / "run.json").exists()
    page.until(f"return {card(run)}?.innerText.includes('unfinished')")
    page.photograph("cancelled")
    press(page, run, "Resume")
    page.plays()
    assert json.loads((folder / "run.json").read_text())["resumed"] is True


def test_from_upload_to_a_playing_result(page, place):
    before = runs_of(place)
    page.press_label("Upload")
    page.until("return Boolean(document.querySelector('#upload input[type=file]'))")
    page.type("#upload input[type=file]", str(place / "mine.mp4"))
    page.until("return document.querySelector('#upload video')?.readyState >= 1")
    page.type("#prompt textarea", " & a circle")
    page.click("#start")
    page.until("return document.querySelector('#picture img.preview')?.complete")
    page.photograph("preview")
    page.plays()
    (run,) = runs_of(place) - before
    assert run.startswith("mine-a-blue-square-on")
    page.until(
        f"return {card(run)} && [...{card(run)}.querySelectorAll('video')].every((v) => v.readyState >= 2)"
    )
    assert page.run(f"return {card(run)}.querySelectorAll('video').length") == 2  # the result and the clip
    page.photograph("finished")
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
    page.until("return document.querySelector('#drawing textarea')?.offsetParent")
    page.type("#drawing textarea", "\nobjects: 3")
    page.click("#start")
    page.shows("given 2 times; give it once")
    page.photograph("error")
    assert "Traceback" not in page.run(TEXT)


def test_a_drawing_is_read_from_a_file(page, tmp_path):
    box = "return document.querySelector('#drawing textarea').value"
    right, wrong = tmp_path / "right.json", tmp_path / "wrong.yaml"
    right.write_text('{"camera": [{"time": 0}, {"time": 1, "zoom": 2}]}')
    wrong.write_text("camera: 3")
    page.press_label("Drawn motion")
    page.until("return document.querySelector('#drawing textarea')?.offsetParent")
    page.type("input[type=file][accept*=yaml]", str(wrong))
    page.shows("camera: 3 given, a list of points accepted")
    assert "objects:" in page.run(box)  # as it was
    page.type("input[type=file][accept*=yaml]", str(right))
    until(lambda: page.run(box) == right.read_text())


def test_a_card_stays_while_others_come_and_its_embedding_is_injected(page, place):
    before = runs_of(place)
    page.until(f"return Boolean({card('earlier')})")
    page.run(f"{card('earlier')}.marked = true")
    page.type("form[data-of=earlier] input", "a green square")
    press(page, "earlier", "Replay")
    page.runs(f"replay: {PROMPT}")
    page.until("return document.querySelector('#status').innerText.includes('step')")
    page.cancel()
    (replayed,) = runs_of(place) - before
    page.until(f"return Boolean({card(replayed)})")
    assert page.run(f"return {card('earlier')}.marked")
    press(page, "earlier", "Inject")
    page.runs("inject: a green square")
    page.plays()
    (injected,) = runs_of(place) - before - {replayed}
    assert "saved_embedding: " in (place / "runs" / injected / "settings.yaml").read_text()


def test_a_report_waits_for_the_run_under_way(page, server):
    page.click("#start")
    page.runs()
    link = page.until(f"return {card('earlier')}?.querySelector('a').href")
    page.open(link)
    page.shows("The report is made when the run under way has ended")
    page.visit(server)
    page.cancel()
    page.open(link)
    page.until("return document.querySelectorAll('video').length >= 2")
    assert PROMPT in page.run(TEXT)


def test_another_host_name_is_refused(server):
    asked = urllib.request.Request(server, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(asked, timeout=60)


def test_the_run_under_way_can_be_resumed_when_the_server_has_ended(browser, tmp_path):
    with serving(tmp_path / "runs") as address:
        browser.visit(address)
        browser.click("#start")
        browser.runs()
        browser.gets_to_step(2)
    (state,) = (tmp_path / "runs").glob("*/state")
    assert not (state.parent / "run.json").exists()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_narrow_and_dark(page, server, width, dark):
    page.dress(width, 1400, dark)
    page.visit(server)
    page.until(f"return Boolean({card('earlier')})")
    page.until("return [...document.querySelectorAll('video')].every((video) => video.readyState >= 2)")
    assert page.run("return document.documentElement.scrollWidth") <= width
    colour = page.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(colour[:3]) < 64) == dark and (min(colour[:3]) > 191) != dark
    page.photograph(f"{width}-{'dark' if dark else 'light'}")
