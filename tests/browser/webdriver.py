"""Headless Chromium over the WebDriver protocol, which is HTTP and JSON and needs no package."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for an element's id


class Browser:
    """One browser window; a context manager that closes the browser at its end."""

    def __init__(self, width: int = 1200, height: int = 1400, dark: bool = False, less_motion: bool = False):
        driver = shutil.which("chromedriver")
        assert driver, "chromedriver is missing: apt-get install chromium chromium-driver"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
        self.root = f"http://127.0.0.1:{port}"
        self._wait_until_ready()
        # tests run as root in containers: the sandbox does not work there, and shared memory is small
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        arguments += [f"--window-size={width},{height}"]
        wanted = {"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.root += f"/session/{session['sessionId']}"
        self.dress(width, height, dark, less_motion)

    def dress(self, width: int, height: int, dark: bool, less_motion: bool = False) -> None:
        """Give the window a size, and preferences for light or dark, and for less motion."""
        wishes = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if less_motion else "no-preference",
        }
        preferences = [{"name": name, "value": value} for name, value in wishes.items()]
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setEmulatedMedia", {"features": preferences})
        self._command("Emulation.setDeviceMetricsOverride", screen)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self._ask("DELETE", "")
        self.process.terminate()
        self.process.wait(timeout=20)

    def open(self, page: Path | str) -> None:
        """Open a file or an address."""
        self._ask("POST", "/url", {"url": page if isinstance(page, str) else page.resolve().as_uri()})

    def run(self, script: str):
        """Run a script and return its result; promises are awaited."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def click(self, selector: str) -> None:
        self._ask("POST", f"{self._element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into a field, or give a file's path to one for files."""
        self._ask("POST", f"{self._element(selector)}/value", {"text": text})

    def complaints(self) -> list[str]:
        """Console messages of the page since the last call."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        shot = self._command("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def _element(self, selector: str) -> str:
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        return f"/element/{found[ELEMENT]}"

    def _command(self, name: str, parameters: dict):
        """Run a command of Chromium's own protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                if self._ask("GET", "/status")["ready"]:
                    return
            except urllib.error.URLError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _ask(self, method: str, path: str, content: dict | None = None):
        body = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.root + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None
