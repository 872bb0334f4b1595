"""The page of `ditflow report` in a real browser: `make test-browser`. Fails without a browser."""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from webdriver import Browser

from ditflow.cli.main import main
from ditflow.small.clips import main as write_clip

SPACE, LEFT, RIGHT, TAB = " ", "\ue012", "\ue014", "\ue004"
VIDEOS = "[...document.querySelectorAll('video')]"
EDGED = "[...document.querySelectorAll('video, canvas, .wheel')]"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three short runs of the small model with two clips, as a page."""
    folder = tmp_path_factory.mktemp("page")
    runs = []
    for mode, seed in (("flow", "5"), ("moft", "5"), ("smm", "6")):
        clip = folder / f"clip{seed}.mp4"
        if not clip.exists():
            write_clip([str(clip), "--seed", seed])
        runs.append(str(folder / mode))
        words = ["transfer", "--model", "small", "--video", str(clip), "--steps", "4"]
        words += ["--prompt", "a red circle on </script> & a blue background", "--loss", mode]
        assert main([*words, "--output", runs[-1], "--quiet"]) == 0
    assert main(["report", *runs, "--output", str(folder / "page.html")]) == 0
    return folder / "page.html"


@pytest.fixture(scope="module")
def drawn_page(tmp_path_factory):
    """A run whose motion is drawn for one object: the rest of the frame is free."""
    folder = tmp_path_factory.mktemp("drawn")
    points = (f"{{time: {time}, center: [{x}, 0.5], size: [0.3, 0.4]}}" for time, x in ((0, 0.2), (1, 0.8)))
    (folder / "line.yaml").write_text(f"objects: [{{shape: box, path: [{', '.join(points)}]}}]")
    words = ["transfer", "--model", "small", "--motion", str(folder / "line.yaml"), "--steps", "4"]
    words += ["--optimisation-steps", "1", "--prompt", "a red circle on a blue background"]
    assert main([*words, "--output", str(folder / "run"), "--quiet"]) == 0
    assert main(["report", str(folder / "run"), "--output", str(folder / "page.html")]) == 0
    return folder / "page.html"


@pytest.fixture
def playing(page):
    with Browser() as browser:
        browser.open(page)
        until(browser, f"return {VIDEOS}.every(v => v.readyState >= 3)")
        until(browser, "return document.getElementById('distance-2').textContent !== ''")
        yield browser


@pytest.fixture
def browser(playing):
    """Paused at the first frame."""
    playing.run("goTo(0)")
    return playing


def until(browser, question, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := browser.run(question)):
        assert time.monotonic() < deadline, question
        time.sleep(0.05)
    return found


def canvases(browser, names="#wheel-reference-0, #wheel-result-0, canvas[id^=arrows][id$='-0']"):
    """The content of canvases; by default those of motion flow."""
    return browser.run(f'return [...document.querySelectorAll("{names}")].map(c => c.toDataURL())')


def contrast(first, second):
    """The contrast of two colours (R, G, B), as WCAG defines it."""
    parts = (np.array((first, second)) / 255).clip(1e-9)
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (light + 0.05) / (dark + 0.05)


def test_nothing_goes_wrong(browser):
    assert browser.complaints() == []
    assert browser.run("return document.querySelector('h1').textContent").endswith(
        "</script> & a blue background"
    )
    asked = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in asked)  # nothing from a network
    assert "ditflow transfer --config" in browser.run("return document.querySelector('pre').textContent")
    assert browser.run("return document.querySelectorAll('polyline').length") == 3


def test_videos_start_muted_and_loop(playing):
    assert playing.run("return document.getElementById('play').textContent") == "Pause"
    assert playing.run(f"return {VIDEOS}.every(v => v.muted && v.loop && v.playsInline && !v.paused)")
    until(playing, f"return {VIDEOS}.every(v => v.currentTime > 0.2)")


def test_nothing_moves_by_itself_where_less_motion_is_wanted(page):
    with Browser(less_motion=True) as browser:
        browser.open(page)
        until(browser, f"return {VIDEOS}.every(v => v.readyState >= 3)")
        time.sleep(0.5)
        assert browser.run(f"return {VIDEOS}.every(v => v.paused && v.currentTime === 0)")
        assert browser.run("return document.getElementById('play').textContent") == "Play"
        browser.click("#play")
        until(browser, f"return {VIDEOS}.every(v => v.currentTime > 0.2)")


def test_flow_is_first_that_from_the_first_frame_to_the_last(browser):
    last = browser.run("return data.flow.map(flow => String(flow.frames - 1))")
    for name, expected in (("query", ["0"] * 3), ("key", last), ("key-number", last)):
        assert browser.run(f"return [0, 1, 2].map(run => find('{name}', run).value)") == expected
    assert len(set(canvases(browser, "canvas[id^=wheel-result]"))) == 3  # every run's own


def test_videos_advance_in_step(browser):
    rows = "[...document.querySelectorAll('.clip')].map(row => row.querySelectorAll('video').length)"
    assert browser.run(f"return {rows}") == [3, 2]  # each clip beside its results
    browser.click("#play")
    until(browser, f"return {VIDEOS}.every(v => v.currentTime > 0.5)")
    times = browser.run(f"return {VIDEOS}.map(v => v.currentTime)")
    assert max(times) - min(times) < 2 / 8  # frames are 1/8 s
    until(browser, "return Number(document.getElementById('frame').value) > 4")
    browser.click("#play")
    assert browser.run(f"return {VIDEOS}.every(v => v.paused)")
    assert browser.complaints() == []


def test_videos_begin_again(browser):
    browser.run("show(22)")
    browser.click("#play")
    until(browser, "return leader.currentTime > 0.2 && leader.currentTime < 1.5 && !leader.paused")


def test_keyboard(browser):
    before = browser.run(f"return {VIDEOS}.map(v => v.currentTime)")
    browser.press(RIGHT)
    browser.press(RIGHT)
    assert browser.run("return document.getElementById('frame-number').value") == "2"
    assert all(
        a != b for a, b in zip(before, browser.run(f"return {VIDEOS}.map(v => v.currentTime)"), strict=True)
    )
    browser.press(SPACE)
    until(browser, f"return {VIDEOS}.every(v => !v.paused)")
    browser.press(SPACE)
    reached = []
    for _ in range(9):
        browser.press(TAB)
        reached.append(browser.run("return document.activeElement.id"))
    steps, first = [f"motion-step-{run}" for run in range(3)], ["block-0", "query-0", "key-0", "block-1"]
    assert reached == ["play", "frame", *steps, *first]


def test_sliders_change_the_pictures(browser):
    browser.run("document.getElementById('key-0').focus()")
    seen = [canvases(browser)]
    browser.press(LEFT)
    assert browser.run("return document.getElementById('key-number-0').value") == "4"
    seen.append(canvases(browser))
    browser.run("document.getElementById('query-0').focus()")
    browser.press(RIGHT)
    seen.append(canvases(browser))
    for first, second in ((0, 1), (1, 2), (0, 2)):
        # the frames behind arrows change with the query frame only, pictures of flow with either
        assert all(a != b for a, b in zip(seen[first], seen[second], strict=True)), (first, second)


def test_optical_flow_changes_with_its_step(browser):
    flow = "canvas[id^=wheel-motion][id$='-0']"
    browser.run("document.getElementById('motion-step-0').focus()")
    before = canvases(browser, flow)
    for _ in range(8):
        browser.press(RIGHT)
    assert browser.run("return document.getElementById('motion-number-0').value") == "8"
    after = canvases(browser, flow)
    assert len(before) == 3 and all(a != b for a, b in zip(before, after, strict=True))


def test_colours_are_those_of_the_chosen_pair(browser, page):
    """Each pair's picture is cut out of the sheet at its own place."""
    script = """const image = new Image(), {width, height, frames, blocks} = data.flow[0];
        image.src = Object.values(blocks)[0].reference.sheet;
        await image.decode();
        const own = document.getElementById('wheel-reference-0');
        const cut = new OffscreenCanvas(width, height);
        cut.getContext('2d').drawImage(image, -5 * width, -3 * height);
        document.getElementById('query-0').value = 3;
        document.getElementById('key-0').value = 5;
        document.getElementById('key-0').dispatchEvent(new Event('input'));
        const pixels = (canvas) => [...canvas.getContext('2d').getImageData(0, 0, width, height).data];
        return [image.width === frames * width, pixels(own).join() === pixels(cut).join()]"""
    assert browser.run(f"return (async () => {{ {script} }})()") == [True, True]


def test_free_cells_are_grey(drawn_page):
    """Among colours, and under arrows as a veil. Within a frame, nothing is asked of any cell."""
    script = """const {width, height, frames, blocks, pictures} = data.flow[0];
        const target = vectors(Object.values(blocks)[0].reference.vectors, data.flow[0]);
        const pixels = (canvas) => {
          const {width, height} = canvas;
          return [...canvas.getContext('2d').getImageData(0, 0, width, height).data];
        };
        const show = (query, key) => {
          document.getElementById('query-0').value = query;
          document.getElementById('key-0').value = key;
          document.getElementById('key-0').dispatchEvent(new Event('input'));
        };
        show(1, 4);
        const first = (frames + 4) * height * width, cells = [...Array(height * width).keys()];
        const free = cells.map((cell) => Number.isNaN(target[2 * (first + cell)]));
        const colours = pixels(document.getElementById('wheel-reference-0'));
        const grey = cells.map((cell) => colours.slice(4 * cell, 4 * cell + 3).every((part) => part === 150));
        show(1, 1);
        const veiled = document.getElementById('arrows-reference-0');
        const plain = new OffscreenCanvas(veiled.width, veiled.height), context = plain.getContext('2d');
        context.imageSmoothingEnabled = false;
        context.drawImage(await picture(pictures.reference[1]), 0, 0, plain.width, plain.height);
        const below = pixels(plain), found = pixels(veiled);
        const miss = (part, at) => at % 4 === 3 ? 0 : Math.abs(part - 0.3 * below[at] - 0.7 * 150);
        return [free, grey, found.map(miss).reduce((a, b) => Math.max(a, b))]"""
    with Browser() as browser:
        browser.open(drawn_page)
        until(browser, "return document.getElementById('distance-0').textContent !== ''")
        free, grey, miss = browser.run(f"return (async () => {{ {script} }})()")
        assert free == grey and 0.5 < sum(free) / len(free) < 1
        assert miss < 3
        assert browser.complaints() == []


@pytest.mark.parametrize("width", [320, 1200])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_narrow_and_dark(page, width, dark, tmp_path):
    with Browser(width, 1400, dark) as browser:
        browser.open(page)
        until(browser, f"return {VIDEOS}.every(v => v.readyState >= 3)")
        until(browser, "return document.getElementById('distance-0').textContent !== ''")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        brightness = browser.run(
            "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        )
        assert (max(brightness) < 64) == dark and (min(brightness) > 191) != dark
        found = browser.run(f"return {EDGED}.map(each => getComputedStyle(each).borderTopColor)")
        edges = {tuple(map(int, re.findall(r"\d+", each))) for each in found}
        assert edges and all(contrast(edge, brightness) >= 3 for edge in edges)  # WCAG 1.4.11
        folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
        browser.screenshot(folder / f"page-{width}-{'dark' if dark else 'light'}.png")
        assert browser.complaints() == []
