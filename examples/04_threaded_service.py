"""Classify pictures over HTTP with a thread a request, switched by signals, and by requests too.

    make demo                                                         # makes demo-out/bundle
    python examples/04_threaded_service.py --bundle demo-out/bundle --port 8000
    curl --data-binary @picture.png localhost:8000/                   # -> class, probability, path, latency
    curl --data-binary @picture.png 'localhost:8000/?path=robust'     # this request only
    curl -X POST 'localhost:8000/path/robust?reason=night'            # every request from now on
    curl localhost:8000/stats
    kill -USR1 PID    # robust from now on        kill -USR2 PID    # clean from now on
    kill -HUP PID     # load what lies in the bundle's folder now; if it is no good, the old one goes on serving

It shows `SmartModel` used by many threads, with the standard library only. It is no web server: it knows no encryption
and no users, and whoever reaches it may switch. Put it behind something that does.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import nullcontext, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from smart_common.errors import SmartError
from smart_runtime import InputError, PathError, SmartModel, preprocess

MAX_BODY_BYTES = 10_000_000
LAST_SECONDS = 20  # for requests that have begun, once the service is to end
SWITCHES: dict[int, str] = {signal.SIGUSR1: "robust", signal.SIGUSR2: "clean"}
STOPS: set[int] = {signal.SIGTERM, signal.SIGINT}


class Server(ThreadingHTTPServer):
    """Knows the model; at the end it waits for the threads of its requests."""

    daemon_threads = False

    def __init__(self, model: SmartModel, *, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model = model
        self.connections: set[socket.socket] = set()

    def drain(self) -> None:
        """Wait for the requests that have begun, but for no client that sends its own a byte at a time."""
        until = time.monotonic() + LAST_SECONDS
        while self.connections and time.monotonic() < until:
            time.sleep(0.01)
        for connection in list(self.connections):
            with suppress(OSError):  # it may be closed by now
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """Answers one request, in a thread of its own."""

    server: Server
    protocol_version = "HTTP/1.1"  # curl asks "100-continue" before it sends a large picture
    timeout = 20  # seconds that a read may take: a client that sends nothing must not hold a thread for ever

    def setup(self) -> None:
        """Let the server know the connection."""
        self.server.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        """Let the server forget it."""
        try:
            super().finish()
        finally:
            self.server.connections.discard(self.request)

    def do_POST(self) -> None:
        """Classify a picture, or switch."""
        length = self.headers.get("Content-Length", "0")
        known = length.isdecimal() and len(length) < 20  # Python reads no number of thousands of digits
        if not known or int(length) > MAX_BODY_BYTES or "Transfer-Encoding" in self.headers:
            sentence = f"expected a length of at most {MAX_BODY_BYTES} bytes"
            return self.reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": sentence})
        body = self.rfile.read(int(length))
        model = self.server.model
        try:
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        except ValueError:
            return self.reply(HTTPStatus.BAD_REQUEST, {"error": "expected an URL, got something else"})
        try:
            if parts.path == "/":
                return self.reply(HTTPStatus.OK, classify(model, body, query.get("path")))
            if parts.path.startswith("/path/"):
                model.switch(parts.path.removeprefix("/path/"), reason=query.get("reason", "a request"))
                return self.reply(HTTPStatus.OK, {"path": model.path})
        except SmartError as error:
            theirs = isinstance(error, InputError | PathError)  # else the engine failed, and may work for the next one
            status = HTTPStatus.BAD_REQUEST if theirs else HTTPStatus.INTERNAL_SERVER_ERROR
            return self.reply(status, {"error": str(error)})
        return self.reply(HTTPStatus.NOT_FOUND, {"error": "expected POST /, POST /path/NAME or GET /stats"})

    def do_GET(self) -> None:
        """Say which path is active and what was counted."""
        if self.path != "/stats":
            return self.reply(HTTPStatus.NOT_FOUND, {"error": "expected POST /, POST /path/NAME or GET /stats"})
        model, stats = self.server.model, self.server.model.stats
        paths = {name: {"calls": one.calls, "p99_ms": one.latency.quantile(0.99)} for name, one in stats.paths.items()}
        counts = {"switches": stats.switches, "last_reason": stats.last_reason, "reloads": stats.reloads}
        return self.reply(HTTPStatus.OK, {"path": model.path, **counts, "paths": paths})

    def reply(self, status: HTTPStatus, found: dict[str, Any]) -> None:
        """Send ``found`` as JSON and end the connection."""
        data = json.dumps(found).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing: the base class prints a line a request."""


def classify(model: SmartModel, body: bytes, path: str | None) -> dict[str, Any]:
    """Return what ``path``, or without one the path that is active, says about a picture."""
    picture = preprocess(io.BytesIO(body), model)
    with model.using(path) if path else nullcontext():  # in this thread only
        result = model.run(picture)
    scores = result.scores[0]
    shares = np.exp(scores - scores.max())  # softmax
    best = int(scores.argmax())
    found = {"class": model.class_names[best], "probability": float(shares[best] / shares.sum())}
    return {**found, "path": result.path, "latency_ms": result.latency_ms}


def obey(number: int, model: SmartModel, bundle: Path) -> None:
    """Do what a signal asks for."""
    name = signal.Signals(number).name
    try:
        if number == signal.SIGHUP:
            model.reload(bundle)
        else:
            model.switch(SWITCHES[number], reason=name)
    except (SmartError, OSError) as error:  # the old path and the old bundle go on
        print(f"{name}: {error}", flush=True)
    else:
        print(f"{name}: path {model.path}, bundle {model.bundle.digest[:12]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    options = parser.parse_args()

    # Python runs a signal's handler in the main thread, between any two steps of what that is doing. A handler that
    # waits for a lock which the interrupted code holds waits for ever, and whatever takes long, as a reload does, holds
    # up the rest. So it only puts the number into a queue, of the kind that may be used there, and `obey` is called.
    signals: SimpleQueue[int] = SimpleQueue()
    for known in (*SWITCHES, signal.SIGHUP, *STOPS):
        signal.signal(known, lambda number, _: signals.put(number))
    # One thread a call: requests at the same time fill the other cores.
    with SmartModel.load(options.bundle, threads=1) as model, Server(model, port=options.port) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        print(f"listening on http://127.0.0.1:{server.server_address[1]}, process {os.getpid()}", flush=True)
        while (number := signals.get()) not in STOPS:
            obey(number, model, options.bundle)
        server.shutdown()
        serving.join()
        server.drain()
    print("stopped")


if __name__ == "__main__":
    try:
        main()
    except (SmartError, OSError) as error:  # no bundle, or a port that is taken
        sys.exit(f"error: {error}")
