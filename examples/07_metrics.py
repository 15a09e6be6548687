"""Serve a model's metrics to Prometheus, with the standard library only.

    make demo                                                         # makes demo-out/bundle
    python examples/07_metrics.py --bundle demo-out/bundle --port 9100
    curl localhost:9100/metrics

A camera that sees noise stands for the program that uses the model, and by night the robust path answers. Metrics tell
whoever reads them how often a path was switched, and why: let only your own Prometheus reach the port.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from smart_common.errors import SmartError
from smart_runtime import SmartModel
from smart_runtime.metrics import CONTENT_TYPE
from smart_runtime.policies import Schedule

FRAMES_A_SECOND = 30


class Server(ThreadingHTTPServer):
    """Knows the model."""

    daemon_threads = True

    def __init__(self, model: SmartModel, *, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model = model


class Handler(BaseHTTPRequestHandler):
    """Answers one request, in a thread of its own: `metrics` may be called in any."""

    server: Server
    timeout = 20  # seconds that a read may take

    def do_GET(self) -> None:
        """Send the metrics."""
        found = self.path == "/metrics"
        data = self.server.model.metrics().encode() if found else b"expected /metrics\n"
        self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing: the base class prints a line a request."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--port", type=int, default=9100, help="0 takes a free one")
    parser.add_argument("--audit", type=Path, help="file that every switch is written to")
    options = parser.parse_args()

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    policy = Schedule([("22:00", "06:00", "robust")], otherwise="clean")
    with (
        SmartModel.load(options.bundle, threads=1, policy=policy, audit=options.audit) as model,
        Server(model, port=options.port) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"listening on http://127.0.0.1:{server.server_address[1]}/metrics", flush=True)
        camera, pause = np.random.default_rng(0), threading.Event()
        while not stopping:
            model.run(camera.random((1, *model.manifest.input.shape), dtype=np.float32))
            pause.wait(1 / FRAMES_A_SECOND)
        server.shutdown()
    print("stopped")


if __name__ == "__main__":
    try:
        main()
    except (SmartError, OSError) as error:  # no bundle, or a port that is taken
        sys.exit(f"error: {error}")
