"""Drive a headless Chromium through its DevTools protocol, over the two pipes that it offers for that."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome-headless-shell")
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # a container's root has no user namespace to build one in; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
)
Scheme = Literal["light", "dark"]


def find_browser() -> str | None:
    """The first Chromium on the path, or what SMART_EDGE_BROWSER names."""
    return os.environ.get("SMART_EDGE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab; ``events`` are all that the browser told of it."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, os.fdopen(answers, "rb", closefd=False)
        self._left, self._number = b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Security"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            found = os.read(self._answers.fileno(), 1 << 20)
            assert found, "the browser ended"
            self._left += found
        first, _, self._left = self._left.partition(b"\0")
        answer: dict[str, Any] = json.loads(first)
        return answer

    def open(self, file: Path, *, width: int, scheme: Scheme, media: str = "screen") -> None:
        """Show ``file`` at ``width`` px and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=file.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression gives."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        """What a script or the console said, and what could not be loaded."""
        kinds = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed"}
        return [json.dumps(event) for event in self.events if event.get("method") in kinds]

    @property
    def requests(self) -> list[str]:
        """The address of all that the page asked for, itself included; pictures that it holds left out."""
        asked = [event["params"]["request"]["url"] for event in self.events if event.get("method") == _ASKED]
        return [url for url in asked if not url.startswith("data:")]

    def screenshot(self, file: Path) -> None:
        """Save all of the page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """Return the page as a printer gets it."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])


_ASKED = "Network.requestWillBeSent"


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """Start a browser with a profile of its own, which is removed with it."""
    commands_read, commands = os.pipe()
    answers, answers_write = os.pipe()

    # The browser reads its descriptor 3 and writes 4; both are moved out of the way first, since they may be 3 or 4.
    script = "import os, sys; r, w = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2])); "
    script += "r, w = os.dup2(r, 30), os.dup2(w, 31); os.dup2(r, 3), os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
    profile = tempfile.mkdtemp(prefix="browser-")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            script,
            str(commands_read),
            str(answers_write),
            program,
            *FLAGS,
            f"--user-data-dir={profile}",
        ],
        pass_fds=(commands_read, answers_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_read)
    os.close(answers_write)
    try:
        page = Page(commands, answers)
        yield page
        page._session = None
        page.call("Browser.close")
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        os.close(commands)
        os.close(answers)
        shutil.rmtree(profile, ignore_errors=True)
