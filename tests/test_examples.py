"""The examples, each run as its reader would run it, with less work."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.bundles import CLASS_NAMES, as_float, expected_scores, random_images, write_bundle
from smart_runtime import Bundle, SmartModel
from smart_runtime.audit.verification import verify_audit

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow
def test_the_demo_goes_from_training_to_the_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    less = ["--epochs", "1", "--blocks", "4", "--examples", "40"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "01_demo.py"), "--out", str(out), *less],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("path            clean") :].splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["dense", "clean", "robust"]
    bench = json.loads((out / "smart-bench.json").read_text())
    assert [row["name"] for row in bench["rows"]] == ["dense", "clean", "robust"]
    assert (out / "bench.png").stat().st_size > 10_000
    with SmartModel.load(out / "bundle") as model:
        assert model.paths == ("clean", "robust")


@pytest.mark.slow
def test_the_python_api_trains_evaluates_exports_and_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "05_python_api.py"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *accuracies, checks, clean, robust = done.stdout.splitlines()
    assert [line.split(":")[0] for line in accuracies] == ["clean", "robust"]
    assert "checks of" in checks
    for line in (clean, robust):
        percent = re.search(r": (\d+\.\d)% of 360 digits right on the device$", line)
        assert percent is not None
        assert float(percent[1]) > 80


PICTURES = random_images(4)
SERVICES = ["03_asyncio_service.py", "04_threaded_service.py"]


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURES[index]).save(file, "PNG")
    return file.getvalue()


def expected(index: int, path: str) -> tuple[str, float]:
    """The class and probability that the oracle gives a picture."""
    scores = expected_scores(path, as_float(PICTURES[index : index + 1]))[0]
    shares = np.exp(scores - scores.max())
    return CLASS_NAMES[int(scores.argmax())], float(shares.max() / shares.sum())


def is_expected(answer: dict[str, Any], index: int, path: str) -> bool:
    name, probability = expected(index, path)
    # float32 scores of size 1 to 10: 1e-6 each
    return (answer["path"], answer["class"]) == (path, name) and abs(answer["probability"] - probability) < 1e-4


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@contextmanager
def example(name: str, *arguments: str | Path, logged: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run an example; when the block ends it must have ended, with status 0, and with ``logged`` alone logged."""
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            yield process
            assert process.wait(60) == 0
            assert process.stderr is not None
            complaints = process.stderr.read()
            assert re.fullmatch(logged, complaints), complaints
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], words: str) -> str:
    """Read lines until one has ``words``, of a camera that goes on for ever a million at most."""
    assert process.stdout is not None
    for line in itertools.islice(process.stdout, 1_000_000):
        if words in line:
            return line
    raise AssertionError(f"ended without {words!r}: {process.stderr and process.stderr.read()}")


class Service:
    """A running service, and how to ask it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        found = re.search(r"listening on http://127.0.0.1:(\d+)", line_with(process, "listening"))
        assert found is not None
        self.port = int(found[1])

    def ask(
        self, method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, url, body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


@contextmanager
def service(name: str, bundle: Path, *, logged: str = "") -> Iterator[Service]:
    """Start a service; at the end SIGTERM must end it cleanly."""
    with example(name, "--bundle", bundle, "--port", "0", logged=logged) as process:
        running = Service(process)
        yield running
        process.send_signal(signal.SIGTERM)
        line_with(process, "stopped")


def test_the_camera_follows_its_rule(bundle: Path, tmp_path: Path) -> None:
    folder, sign = tmp_path / "pictures", tmp_path / "robust.on"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(0))
    (folder / "b.png").write_bytes(b"no picture")
    with example(
        "02_camera.py", "--bundle", bundle, "--folder", folder, "--robust-while", sign, "--loops", "0"
    ) as camera:
        name, probability = expected(0, "clean")
        assert f"1/a.png: {name} ({probability:.0%}), path clean" in line_with(camera, "a.png")
        assert "cannot be decoded" in line_with(camera, "b.png")
        sign.touch()
        name, probability = expected(0, "robust")
        assert f"{name} ({probability:.0%})" in line_with(camera, "path robust")
        sign.unlink()
        line_with(camera, "path clean")
        camera.send_signal(signal.SIGTERM)
        line_with(camera, "stopped")
        line_with(camera, "switches: 2, last reason: signal 0 below 0.5")
        assert "half of them in" in line_with(camera, "path clean:")
        line_with(camera, "path robust:")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_classifies_and_switches(name: str, bundle: Path) -> None:
    with service(name, bundle) as running:
        status, answer = running.ask("POST", "/", png(0))
        assert status == 200
        assert is_expected(answer, 0, "clean")
        assert answer["latency_ms"] > 0
        assert is_expected(running.ask("POST", "/?path=robust", png(0))[1], 0, "robust")
        assert is_expected(running.ask("POST", "/", png(0))[1], 0, "clean"), "that was for one request only"
        assert running.ask("POST", "/path/robust?reason=dusk") == (200, {"path": "robust"})
        assert is_expected(running.ask("POST", "/", png(1))[1], 1, "robust")
        status, stats = running.ask("GET", "/stats")
        assert (status, stats["path"], stats["switches"], stats["last_reason"]) == (200, "robust", 1, "dusk")
        assert {path: seen["calls"] for path, seen in stats["paths"].items()} == {"clean": 2, "robust": 2}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_refuses_nonsense_and_goes_on(name: str, bundle: Path) -> None:
    with service(name, bundle) as running:
        for method, url, body, headers, status, words in (
            ("POST", "/", b"no picture", {}, 400, "cannot be decoded"),
            ("POST", "/", b"", {}, 400, "cannot be decoded"),
            ("POST", "/?path=dense", png(0), {}, 400, "'clean', 'robust'"),
            ("POST", "/path/no", None, {}, 400, "'clean', 'robust'"),
            ("POST", "/", None, {"Content-Length": "10000001"}, 413, "at most 10000000 bytes"),
            ("POST", "/", None, {"Content-Length": "-1"}, 413, "at most 10000000 bytes"),
            ("POST", "/", None, {"Content-Length": "9" * 5000}, (400, 413), "expected "),
            ("POST", "//[x", b"", {}, (400, 404), "expected "),
            ("POST", "/elsewhere", b"", {}, 404, "POST /"),
            ("GET", "/", None, {}, 404, "GET /stats"),
        ):
            got, answer = running.ask(method, url, body, headers)
            known = status if isinstance(status, tuple) else (status,)
            assert (got in known, words in answer["error"]) == (True, True), (method, url, got, answer)
        assert is_expected(running.ask("POST", "/", png(0))[1], 0, "clean")


@pytest.mark.parametrize("name", SERVICES)
def test_requests_at_the_same_time_keep_their_paths(name: str, bundle: Path) -> None:
    wanted = [(i % len(PICTURES), path) for i in range(30) for path in ("clean", "robust")]
    with service(name, bundle) as running, ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda one: running.ask("POST", f"/?path={one[1]}", png(one[0])), wanted)
        wrong = [
            (index, path, got)
            for (index, path), got in zip(wanted, answers, strict=True)
            if got[0] != 200 or not is_expected(got[1], index, path)
        ]
    assert wrong == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_request_that_has_begun_is_answered_before_the_service_ends(name: str, bundle: Path) -> None:
    body = png(2)
    with example(name, "--bundle", bundle, "--port", "0") as process:
        connection = http.client.HTTPConnection("127.0.0.1", Service(process).port, timeout=60)
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        began = b""
        while not began.endswith(b"\r\n\r\n"):
            began += connection.sock.recv(1)
        assert began.startswith(b"HTTP/1.1 100 ")
        process.send_signal(signal.SIGTERM)
        connection.send(body)
        response = connection.getresponse()
        assert response.status == 200
        assert is_expected(json.loads(response.read()), 2, "clean")
        connection.close()
        line_with(process, "stopped")


def test_the_threaded_service_obeys_signals(bundle: Path) -> None:
    with service("04_threaded_service.py", bundle, logged="reload failed; .* goes on serving\n") as running:
        running.process.send_signal(signal.SIGUSR1)
        line_with(running.process, "SIGUSR1: path robust")
        assert is_expected(running.ask("POST", "/", png(0))[1], 0, "robust")
        running.process.send_signal(signal.SIGUSR2)
        line_with(running.process, "SIGUSR2: path clean")

        shutil.rmtree(bundle)
        write_bundle(bundle, baseline=False)  # another digest
        digest = Bundle.open(bundle).digest
        running.process.send_signal(signal.SIGHUP)
        line_with(running.process, f"SIGHUP: path clean, bundle {digest[:12]}")
        weights = bundle / "robust/weights.bin"
        weights.write_bytes(bytes(weights.stat().st_size))
        running.process.send_signal(signal.SIGHUP)
        assert "robust/weights.bin" in line_with(running.process, "SIGHUP: expected")
        assert is_expected(running.ask("POST", "/?path=robust", png(3))[1], 3, "robust"), "the old one serves"
        assert running.ask("GET", "/stats")[1]["reloads"] == 1


def test_prometheus_gets_its_metrics(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "switches.jsonl"
    with example("07_metrics.py", "--bundle", bundle, "--port", "0", "--audit", log) as process:
        running = Service(process)
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
        assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert re.search(r'^smart_edge_calls_total\{path="(clean|robust)"\} \d+$', text, re.MULTILINE)
        assert "smart_edge_policy_overridden 0\n" in text
        connection.request("GET", "/")
        assert connection.getresponse().status == 404
        connection.close()
        process.send_signal(signal.SIGTERM)
        line_with(process, "stopped")
    assert verify_audit(log).problems == ()
