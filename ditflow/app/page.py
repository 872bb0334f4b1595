"""The layout of the page, and what its buttons do. Needs Gradio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ditflow.app import actions, form, gallery, words
from ditflow.app.fits import Choice, default_frames
from ditflow.app.planner import Planner
from ditflow.app.runner import Job, Runner
from ditflow.errors import DitflowError
from ditflow.limits import PROMPT_CHARACTERS, SETTINGS_BYTES
from ditflow.settings.speed import SPEEDS

EXAMPLE_MODEL = "small"
TICK = 1.0  # seconds from one look at the runner to the next
DAY = 86400  # seconds after which Gradio removes its own copies of uploads
RUNS_SHOWN = 12  # more are shown on request
LIST = '<div class="cards"></div>'  # filled in by cards.js
NOTHING_RUNS = '<p class="hint">Nothing runs. <b>Start</b> makes the example.</p>'


@dataclass(frozen=True)
class Page:
    """What the page shows and acts on."""

    runs: Path
    runner: Runner
    planner: Planner
    others: Mapping[str, Any]  # settings that the form does not have

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="ditflow", analytics_enabled=False, delete_cache=(DAY, DAY)) as page:
            gr.HTML("<h1>ditflow</h1><p>A clip's motion, a prompt's content.</p>")
            with gr.Row():
                with gr.Column(min_width=320):
                    model, speed, frames, fits = self._form()
                with gr.Column(min_width=320):
                    status = gr.HTML(NOTHING_RUNS, elem_id="status")
                    picture = gr.HTML(elem_id="picture")
                    cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
                    waiting = _cards("waiting", self._remove)
            gr.HTML("<h2>Runs</h2>")
            runs, most = _cards("runs", self._act), gr.State(RUNS_SHOWN)
            more = gr.Button("Show more", size="sm", visible=False)
            more.click(lambda most: most + RUNS_SHOWN, most, most, show_progress="hidden")
            cancel.click(self._cancel_running, show_progress="hidden")
            outputs = [status, picture, cancel, waiting, runs, more, model, fits]
            before, timer = gr.State({}), gr.Timer(TICK)
            gr.on(
                [page.load, timer.tick],
                self._look,
                [before, most, model, speed, frames],
                [before, *outputs],
                show_progress="hidden",
            )
        return page

    def _form(self) -> tuple[gr.Dropdown, gr.Radio, gr.Number, gr.HTML]:
        """The form. Returns what a plan depends on, and where it is shown."""
        source = gr.Radio(form.SOURCES, value=form.SAMPLE, label="Motion of", elem_id="source")
        seeds = form.sample_names()
        with gr.Column() as sampled:
            sample = gr.Dropdown(seeds, value=seeds[0][1], label="Sample", elem_id="sample")
            shown = gr.HTML(_sample_html(seeds[0][1]))
        upload = gr.Video(label="Clip", sources=["upload"], height=240, visible=False, elem_id="upload")
        with gr.Column(visible=False) as drawn:
            drawing = gr.Textbox(
                form.EXAMPLE_DRAWING,
                label="Drawn motion (YAML or JSON)",
                lines=7,
                max_length=SETTINGS_BYTES,
                elem_id="drawing",
            )
            file = gr.UploadButton("Read a file", file_types=form.DRAWINGS, size="sm", elem_id="drawing-file")
        prompt = gr.Textbox(
            form.EXAMPLE_PROMPT, label="Prompt", lines=2, max_length=PROMPT_CHARACTERS, elem_id="prompt"
        )
        model = gr.Dropdown(
            self.planner.labels(), value=EXAMPLE_MODEL, label="Model", filterable=False, elem_id="model"
        )
        with gr.Row():
            speed = gr.Radio(SPEEDS, value=SPEEDS[0], label="Speed", elem_id="speed")
            frames = gr.Number(
                default_frames(EXAMPLE_MODEL), label="Frames", precision=0, minimum=1, min_width=100
            )
        fits = gr.HTML(elem_id="fits")
        with gr.Accordion("More", open=False):
            mask = gr.File(label="Mask: only what is white moves", file_types=["image", "video"], height=120)
            embedding = gr.Checkbox(label="Keep an embedding, to inject it with other prompts")
        start = gr.Button("Start", variant="primary", elem_id="start")
        source.change(_visible_source, source, [sampled, upload, drawn], show_progress="hidden")
        file.upload(_text_of, file, drawing, show_progress="hidden")
        sample.change(_sample_html, sample, shown, show_progress="hidden")
        model.input(default_frames, model, frames, show_progress="hidden")
        filled = [source, upload, sample, drawing, prompt, model, speed, frames, mask, embedding]
        start.click(self._start, filled, show_progress="hidden")
        return model, speed, frames, fits

    def _start(self, *filled: Any) -> None:
        with _errors_shown():
            actions.transfer(self.runner, form.Form(*filled), self.runs, self.others)

    def _cancel_running(self) -> None:
        for job in self.runner.jobs():
            if job.state == "running":
                self.runner.cancel(job)

    def _remove(self, pressed: gr.EventData) -> None:
        """Take a job that waits out of the queue."""
        for job in self.runner.jobs():
            if job.state == "waiting" and str(job.number) == pressed.of:
                self.runner.cancel(job)

    def _act(self, pressed: gr.EventData) -> None:
        """Do what a run's button says."""
        with _errors_shown():
            folder = gallery.run_named(self.runs, pressed.of)
            if pressed.action == "resume":
                actions.resume(self.runner, folder)
            elif pressed.action == "replay":
                actions.replay(self.runner, self.runs, folder)
            elif pressed.action == "inject":
                actions.inject(self.runner, self.runs, folder, pressed.prompt)

    def _look(
        self, before: dict[str, Any], most: int, model: str, speed: str, frames: float | None
    ) -> list[Any]:
        """What has changed since `before`; all else is left as it is, so that nobody is disturbed."""
        jobs = self.runner.jobs()
        job = _shown_job(jobs)
        choice = Choice(model, speed, int(frames or default_frames(model)))
        in_queue = {each.folder.name for each in jobs if each.is_open}
        runs = [stamp for stamp in gallery.stamps(self.runs) if stamp.name not in in_queue]
        now = {
            "status": words.job_html(job) if job else NOTHING_RUNS,
            "picture": self._picture(job),
            "cancel": bool(job and job.state == "running" and not job.cancel.is_set()),
            "waiting": [words.waiting_html(each) for each in jobs if each.state == "waiting"],
            "runs": runs[:most],
            "more": len(runs) > most,
            "model": self.planner.labels(),
            "fits": words.fits_html(self.planner.text(choice), actions.download_note(model)),
        }
        updates = {
            "cancel": lambda: gr.Button(visible=now["cancel"]),
            "runs": lambda: self._run_cards(now["runs"]),
            "more": lambda: gr.Button(visible=now["more"]),
            "model": lambda: gr.Dropdown(choices=now["model"]),
        }
        changed = [
            (updates[name]() if name in updates else value) if before.get(name) != value else gr.skip()
            for name, value in now.items()
        ]
        return [now, *changed]

    def _run_cards(self, shown: list[gallery.Stamp]) -> list[str]:
        found = [gallery.card_html(gallery.read_run(self.runs / stamp.name)) for stamp in shown]
        return found or [f'<p class="hint">None in {escape(str(self.runs))} yet.</p>']

    def _picture(self, job: Job | None) -> str:
        """The preview of a running job, or the result of one that has ended."""
        if job and job.state == "running":
            return words.preview_html(job.preview) if job.preview is not None else ""
        if job and job.state == "done":
            return gallery.result_html(self.runs, job.folder)
        return ""


def _cards(name: str, act: Callable[[gr.EventData], None]) -> gr.HTML:
    """A list of cards; `act` is called when a button in one is pressed."""
    script = Path(__file__).with_name("cards.js").read_text(encoding="utf-8")
    shown = gr.HTML([], html_template=LIST, js_on_load=script, apply_default_css=False, elem_id=name)
    shown.click(act, trigger_mode="multiple", show_progress="hidden")
    return shown


def _shown_job(jobs: list[Job]) -> Job | None:
    """The running job, or else the one that ended last."""
    begun = [job for job in jobs if job.state != "waiting"]
    return next((job for job in begun if job.state == "running"), begun[-1] if begun else None)


def _sample_html(seed: int) -> str:
    return f'<video class="sample" src="/sample/{seed}.mp4" autoplay loop muted playsinline></video>'


def _visible_source(source: str) -> list[Any]:
    return [
        gr.Column(visible=source == form.SAMPLE),
        gr.Video(visible=source == form.UPLOAD),
        gr.Column(visible=source == form.DRAWN),
    ]


def _text_of(file: str) -> str:
    with _errors_shown():
        return form.drawing_text(Path(file))


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Show an error as one line that stays until it is closed."""
    try:
        yield
    except DitflowError as error:
        line = escape(" ".join(str(error).split()))
        raise gr.Error(line, duration=None, print_exception=False) from None
