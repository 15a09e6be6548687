"""Classify pictures over HTTP with asyncio: the event loop goes on while the network runs in a thread.

    make demo                                                         # makes demo-out/bundle
    python examples/03_asyncio_service.py --bundle demo-out/bundle --port 8000
    curl --data-binary @picture.png localhost:8000/                   # -> class, probability, path, latency
    curl --data-binary @picture.png 'localhost:8000/?path=robust'     # this request only
    curl -X POST 'localhost:8000/path/robust?reason=night'            # every request from now on
    curl localhost:8000/stats

It shows how `SmartModel` and an event loop go together, with the standard library only. It is no web server: it knows
no encryption and no users, and whoever reaches it may switch. Put it behind something that does.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import signal
import sys
from contextlib import nullcontext, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from smart_common.errors import SmartError
from smart_runtime import InputError, PathError, SmartModel, preprocess

MAX_BODY_BYTES = 10_000_000
READ_SECONDS = 20  # for a whole request: a client that sends nothing must not hold a connection for ever


class RequestError(Exception):
    """A request that gets a status and a sentence."""


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, str, bytes]:
    """Return method, URL and body of an HTTP/1.1 request."""
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()  # of 64 KiB at most
        method, url, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
    except (asyncio.LimitOverrunError, ValueError) as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, "expected an HTTP/1.1 request, got something else") from error
    if not 0 <= length <= MAX_BODY_BYTES or "transfer-encoding" in headers:
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a length of at most {MAX_BODY_BYTES} bytes")
    if headers.get("expect", "").lower() == "100-continue":  # curl asks before it sends a large picture
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return method, url, await reader.readexactly(length)


async def classify(model: SmartModel, body: bytes, path: str | None) -> dict[str, Any]:
    """Return what ``path``, or without one the path that is active, says about a picture."""
    # Decoding may take longer than the network: neither may hold up the event loop.
    picture = await asyncio.to_thread(preprocess, io.BytesIO(body), model)
    with model.using(path) if path else nullcontext():  # in this task only
        result = await model.arun(picture)
    scores = result.scores[0]
    shares = np.exp(scores - scores.max())  # softmax
    best = int(scores.argmax())
    found = {"class": model.class_names[best], "probability": float(shares[best] / shares.sum())}
    return {**found, "path": result.path, "latency_ms": result.latency_ms}


async def answer(model: SmartModel, method: str, url: str, body: bytes) -> dict[str, Any]:
    """Do what a request asks for."""
    try:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    except ValueError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, "expected an URL, got something else") from error
    if (method, parts.path) == ("POST", "/"):
        return await classify(model, body, query.get("path"))
    if method == "POST" and parts.path.startswith("/path/"):
        model.switch(parts.path.removeprefix("/path/"), reason=query.get("reason", "a request"))
        return {"path": model.path}
    if (method, parts.path) == ("GET", "/stats"):
        stats = model.stats
        paths = {name: {"calls": one.calls, "p99_ms": one.latency.quantile(0.99)} for name, one in stats.paths.items()}
        return {"path": model.path, "switches": stats.switches, "last_reason": stats.last_reason, "paths": paths}
    raise RequestError(HTTPStatus.NOT_FOUND, "expected POST /, POST /path/NAME or GET /stats")


async def serve(model: SmartModel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the one request of a connection."""
    status = HTTPStatus.OK
    try:
        request = await asyncio.wait_for(read_request(reader, writer), READ_SECONDS)
        found = await answer(model, *request)
    except RequestError as error:
        status, found = error.args[0], {"error": error.args[1]}
    except SmartError as error:
        theirs = isinstance(error, InputError | PathError)  # else the engine failed, and may work for the next request
        status = HTTPStatus.BAD_REQUEST if theirs else HTTPStatus.INTERNAL_SERVER_ERROR
        found = {"error": str(error)}
    except (asyncio.TimeoutError, EOFError, ConnectionError):  # the request never came to its end
        writer.close()
        return
    data = json.dumps(found).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    with suppress(ConnectionError):  # whoever asked may have gone
        writer.write(head.encode() + data)
        await writer.drain()
    writer.close()


async def run(bundle: Path, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that have begun get their answers."""
    requests: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(model, reader, writer))
        requests.add(task)
        task.add_done_callback(requests.discard)

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # One thread a call: requests at the same time fill the other cores.
    with SmartModel.load(bundle, threads=1) as model:
        server = await asyncio.start_server(connected, "127.0.0.1", port)
        print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await stop.wait()
        server.close()
        if requests:
            await asyncio.wait(requests)
    print("stopped")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    options = parser.parse_args()
    try:
        asyncio.run(run(options.bundle, options.port))
    except (SmartError, OSError) as error:  # no bundle, or a port that is taken
        sys.exit(f"error: {error}")
