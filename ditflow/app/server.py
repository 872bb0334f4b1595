"""Serves the page and the runs' pictures and reports from this machine. Needs Gradio."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

from ditflow.app import form, gallery
from ditflow.app.page import Page
from ditflow.app.planner import Planner
from ditflow.app.runner import Runner
from ditflow.errors import DitflowError
from ditflow.limits import CLIP_BYTES

# the browser asks nobody else for anything, whatever Gradio's page names
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"
LOOPBACK = ("127.0.0.1", "localhost")
LATER = """<!doctype html><title>ditflow: report</title><meta charset="utf-8">
<meta http-equiv="refresh" content="2">
<p>The report is made when the run under way has ended. This page then shows it."""


class Server:
    """The page of a folder of runs. `others`: settings of new runs that the form does not have."""

    def __init__(self, runs: Path, others: Mapping[str, Any] | None = None):
        self.runs, self.runner, self.planner = runs.resolve(), Runner(), Planner()
        page = Page(self.runs, self.runner, self.planner, others or {}).build()
        app = FastAPI(openapi_url=None)
        app.get("/run/{name}/{file}")(self.picture)
        app.get("/report/{name}")(self.report)
        app.get("/sample/{seed}.mp4")(self.sample)
        app.exception_handler(DitflowError)(lambda _, error: PlainTextResponse(str(error), 404))
        self.app = gr.mount_gradio_app(
            app,
            page,
            "/",
            footer_links=[],
            max_file_size=CLIP_BYTES,
            ssr_mode=False,
            theme=gr.themes.Default(
                font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
            ),
            css_paths=Path(__file__).with_name("page.css"),
        )

    def serve(self, listening: Any, host: str) -> None:
        """Answer at a listening socket until the process is asked to end. Then running jobs are cancelled.

        The answering is done in a thread, so that a signal ends the command as it ends every other one.
        """
        app = _Guarded(self.app, LOOPBACK if host in LOOPBACK else None)
        server = _Uvicorn(uvicorn.Config(app, log_level="warning"))
        ended = threading.Event()  # Python 3.11 takes a thread whose `join` was interrupted for ended

        def answer() -> None:
            try:
                server.run([listening])
            finally:
                ended.set()

        threading.Thread(target=answer, name="server").start()
        try:
            while not ended.wait(timeout=1):
                pass
        finally:
            server.should_exit = True
            self.planner.close()
            self.runner.close()  # a report that is being made may wait for the running job
            ended.wait()

    def picture(self, name: str, file: str) -> Response:
        path = gallery.picture(self.runs, name, file)
        return FileResponse(path, media_type=gallery.MEDIA[file])

    def report(self, name: str) -> Response:
        """The report of a run, made when it is asked for; while a job runs, a page that asks again."""
        from ditflow.pages.page import report

        if any(job.state == "running" for job in self.runner.jobs()):
            return HTMLResponse(LATER)
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "report.html"
            report([gallery.run_named(self.runs, name)], page)
            return HTMLResponse(page.read_text(encoding="utf-8"))

    def sample(self, seed: int) -> Response:
        if seed not in form.SAMPLE_SEEDS:
            raise DitflowError(f"there is no sample {seed}")
        return FileResponse(form.sample_clip(seed, self.runs / form.FILES), media_type="video/mp4")


class _Uvicorn(uvicorn.Server):
    async def shutdown(self, sockets: Any = None) -> None:
        """End the connections, as if all pages were closed: their event streams do not end by themselves."""
        for connection in self.server_state.connections:
            connection.transport.close()
        await super().shutdown(sockets)


class _Guarded:
    """Adds the policy to every answer, and answers only to the names of this machine if it is local."""

    def __init__(self, app: Any, hosts: tuple[str, ...] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").partition(":")[0]
        if self.hosts and host not in self.hosts:  # a foreign page whose name was made to lead here
            await PlainTextResponse("unknown host", 400)(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = message | {"headers": [*message.get("headers", ()), *headers]}
            await send(message)

        await self.app(scope, receive, guarded)
