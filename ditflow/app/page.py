"""The layout of the page, and what its buttons do. Needs Gradio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ditflow.app import actions, form, gallery, words
from ditflow.app.fits import Choice, Planner, default_frames
from ditflow.app.runner import Job, Runner
from ditflow.errors import DitflowError
from ditflow.limits import PROMPT_CHARACTERS, SETTINGS_BYTES
from ditflow.settings.speed import SPEEDS

EXAMPLE_MODEL = "small"
TICK = 1.0  # seconds from one look at the runner to the next
DAY = 86400  # seconds after which Gradio removes its own copies of uploads
RUNS_SHOWN = 12  # more are shown on request
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
                    waiting = gr.State(())
                    self._queue(waiting)
            runs, count = gr.State(()), gr.State(RUNS_SHOWN)
            gr.HTML("<h2>Runs</h2>")
            self._gallery(runs, count)
            cancel.click(self._cancel_running, show_progress="hidden")
            outputs = [status, picture, cancel, waiting, runs, model, fits]
            before, timer = gr.State({}), gr.Timer(TICK)
            gr.on(
                [page.load, timer.tick],
                self._look,
                [before, model, speed, frames],
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
        upload = gr.Video(label="Clip", sources=["upload"], visible=False, elem_id="upload")
        drawing = gr.Textbox(
            form.EXAMPLE_DRAWING,
            label="Drawn motion (YAML)",
            lines=7,
            max_length=SETTINGS_BYTES,
            visible=False,
            elem_id="drawing",
        )
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
        source.change(_visible_source, source, [sampled, upload, drawing], show_progress="hidden")
        sample.change(_sample_html, sample, shown, show_progress="hidden")
        model.input(default_frames, model, frames, show_progress="hidden")
        filled = [source, upload, sample, drawing, prompt, model, speed, frames, mask, embedding]
        start.click(self._start, filled, show_progress="hidden")
        return model, speed, frames, fits

    def _queue(self, waiting: gr.State) -> None:
        """The jobs that wait for their turn, each with a button that takes it out."""

        @gr.render(inputs=waiting, show_progress="hidden")
        def show(numbers: tuple[int, ...]) -> None:
            for job in (each for each in self.runner.jobs() if each.number in numbers):
                with gr.Row(elem_classes="waiting"):
                    gr.HTML(f"waiting: {escape(job.title)}")
                    remove = gr.Button("Remove", size="sm", min_width=80, scale=0)
                    remove.click(lambda job=job: self.runner.cancel(job), show_progress="hidden")

    def _gallery(self, runs: gr.State, count: gr.State) -> None:
        """The runs of the folder, the latest first, and what can be done with each."""

        @gr.render(inputs=[runs, count], show_progress="hidden")
        def show(_: object, most: int) -> None:
            found = gallery.list_runs(self.runs)
            active = {job.folder for job in self.runner.jobs() if job.state == "running"}
            shown = [run for run in found if run.folder not in active][:most]
            if not shown:
                gr.HTML(f'<p class="hint">None in {escape(str(self.runs))} yet.</p>')
            with gr.Row(elem_classes="cards"):
                for run in shown:
                    with gr.Column(min_width=300, elem_classes="run"):
                        self._card(run)
            if len(found) > len(shown) + len(active):
                gr.Button("Show more", size="sm").click(lambda: most + RUNS_SHOWN, outputs=count)

    def _card(self, run: gallery.ShownRun) -> None:
        gr.HTML(gallery.card_html(run))
        with gr.Row():
            if run.state == "unfinished":
                self._action("Resume", run, actions.resume)
            elif run.state == "finished":
                link = gallery.report_link(run)
                gr.Button("Report", size="sm", min_width=80, link=link, link_target="_blank")
                self._action("Replay", run, actions.replay)
        if run.has_embedding:
            with gr.Row():
                prompt = gr.Textbox(
                    placeholder="another prompt", show_label=False, max_length=PROMPT_CHARACTERS
                )
                self._action("Inject", run, actions.inject, prompt)

    def _action(self, name: str, run: gallery.ShownRun, action: actions.Action, *inputs: gr.Textbox) -> None:
        button = gr.Button(name, size="sm", min_width=80)

        def act(*given: str) -> None:
            with _errors_shown():
                action(self.runner, self.runs, run.folder, *given)

        button.click(act, list(inputs), show_progress="hidden")

    def _start(self, *filled: Any) -> None:
        with _errors_shown():
            actions.transfer(self.runner, form.Form(*filled), self.runs, self.others)

    def _cancel_running(self) -> None:
        for job in self.runner.jobs():
            if job.state == "running":
                self.runner.cancel(job)

    def _look(self, before: dict[str, Any], model: str, speed: str, frames: float | None) -> list[Any]:
        """What has changed since `before`; all else is left as it is, so that nobody is disturbed."""
        jobs = self.runner.jobs()
        job = _shown_job(jobs)
        labels = self.planner.labels()
        choice = Choice(model, speed, int(frames or default_frames(model)))
        now = {
            "status": words.job_html(job) if job else NOTHING_RUNS,
            "picture": self._picture(job),
            "cancel": bool(job and job.state == "running" and not job.cancel.is_set()),
            "waiting": tuple(each.number for each in jobs if each.state == "waiting"),
            "runs": (gallery.stamp(self.runs), job and job.state == "running" and str(job.folder)),
            "model": labels,
            "fits": words.fits_html(self.planner.text(choice), actions.download_note(model)),
        }
        updates = {
            "cancel": lambda: gr.Button(visible=now["cancel"]),
            "model": lambda: gr.Dropdown(choices=labels),
        }
        changed = [
            (updates[name]() if name in updates else value) if before.get(name) != value else gr.skip()
            for name, value in now.items()
        ]
        return [now, *changed]

    def _picture(self, job: Job | None) -> str:
        """The preview of a running job, or the result of one that has ended."""
        if job and job.state == "running":
            return words.preview_html(job.preview) if job.preview is not None else ""
        if job and job.state == "done" and job.folder:
            return gallery.result_html(self.runs, job.folder)
        return ""


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
        gr.Textbox(visible=source == form.DRAWN),
    ]


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Show an error as one line that stays until it is closed."""
    try:
        yield
    except DitflowError as error:
        line = escape(" ".join(str(error).split()))
        raise gr.Error(line, duration=None, print_exception=False) from None
