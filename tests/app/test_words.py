"""Progress in words, and that nothing from outside gets into the page as HTML."""

import base64
import io
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditflow.app import words
from ditflow.app.runner import Job
from ditflow.jobs.events import Event


@pytest.mark.parametrize(
    "event, expected",
    [
        (Event("text"), ""),
        (Event("denoise", 0, 25), "step 1 of 25"),
        (
            Event("denoise", 2, 25, 3, loss=0.12345, seconds_left=41.2),
            "step 3 of 25, update 3, loss 0.123, about 41 seconds left",
        ),
        (Event("denoise", 25, 25, seconds_left=0), "step 25 of 25, a few seconds left"),
        (Event("decode", substep=4), "tile 4"),
    ],
)
def test_progress(event, expected):
    assert words.progress_text(event) == expected


def job(**given):
    return Job(1, "transfer", "<b>a red circle", "small", start=None, folder=Path("run"), **given)


def test_phases_of_a_running_job():
    page = words.job_html(job(state="running", event=Event("denoise", 5, 25)))
    assert re.findall(r'<li class="(\w+)">(\w+)', page) == [
        ("done", "prompt"),
        ("done", "clip"),
        ("now", "denoising"),
        ("next", "video"),
    ]
    assert '<progress value="5" max="25">' in page and "&lt;b&gt;a red circle" in page
    assert "loading the model" in words.job_html(job(state="running"))


def test_a_job_that_is_being_cancelled():
    asked = threading.Event()
    asked.set()
    assert "is being cancelled" in words.job_html(job(state="running", cancel=asked))


def test_a_failed_job():
    page = words.job_html(job(state="failed", message="no <memory>", warnings=["the clip is still"]))
    assert "no &lt;memory&gt;" in page and "the clip is still" in page and "failed" in page


def test_a_waiting_job_can_be_removed():
    page = words.waiting_html(job())
    assert "&lt;b&gt;a red circle" in page and 'data-action="remove" data-of="1"' in page


def test_a_preview_is_a_moving_picture():
    frames = np.zeros((3, 4, 6, 3), np.uint8)
    frames[1], frames[2] = 100, 200
    (data,) = re.findall(r"base64,([^\"]+)", words.preview_html(frames))
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        shown = []
        for index in range(picture.n_frames):
            picture.seek(index)
            shown.append(np.asarray(picture.convert("RGB")))
    assert np.array_equal(np.stack(shown), frames)


def test_fits():
    assert 'class="fits failed"' in words.fits_html("does not fit: 1.2 GiB over", "")
    assert words.fits_html("needs 1.0 of 2.0 GiB", "The first run downloads 21 GB.").count(". ") == 1
