"""Builds in child processes, watched: what they are, and that nothing of them is left."""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx.parser
import pytest

from runtime.bundles import CHANNELS, CLASSES, HEIGHT, WIDTH, graph_files
from runtime.fakes import TIMEOUT
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.engine import BatchRange
from smart_runtime.engines.onnx_inline import inlined
from smart_runtime.engines.trt.build import BuildRecipe

INPUTS = InputSpec(name="image", channels=CHANNELS, height=HEIGHT, width=WIDTH)
OUTPUTS = OutputSpec(name="scores", classes=CLASSES)
RECIPE = BuildRecipe(
    library="tensorrt-rtx", batch=BatchRange(1, 2, 4), inputs=INPUTS, outputs=OUTPUTS, capabilities=("8.9",)
)

_IN_OPEN = 0x20  # sys/inotify.h
_IN_NONBLOCK = os.O_NONBLOCK


def small_graph(name: str = "clean") -> bytes:
    """One of the tests' tiny graphs with its weights inside."""
    model, weights = graph_files(name)
    return inlined(GraphBytes(model=model, weights=weights, weights_name="weights.bin"))


def graph_of(text: str, *, output: str | None = None, **tensors: Any) -> bytes:
    """A graph from images to scores, by default of the same shape, given as text, with its tensors."""
    shape = f"N, {CHANNELS}, {HEIGHT}, {WIDTH}"
    signature = f"g (float[{shape}] image) => (float[{output or shape}] scores)"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> {signature} {{{text}}}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in tensors.items())
    return bytes(model.SerializeToString())


class Children:
    """The child processes that were started while this was in place of `subprocess.Popen`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pids: list[int] = []
        children = self

        class Recorded(subprocess.Popen[bytes]):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                children.pids.append(self.pid)

        monkeypatch.setattr("smart_runtime.engines.trt.build.subprocess.Popen", Recorded)

    @property
    def pid(self) -> int:
        return self.pids[-1]


def open_files() -> dict[str, str]:
    """What this process has open, by number."""
    found = {}
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208  # names alone
        with suppress(FileNotFoundError):  # what the listing itself had open
            found[number] = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115  # no file
    return found


def processes() -> set[int]:
    """The processes that this one has started and not waited for, dead or alive."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found.update(map(int, (task / "children").read_text().split()))
    return found


def no_child_is_left(before: set[int]) -> bool:
    """Wait for children beside those of ``before`` that have ended; say whether none is left."""
    for pid in processes() - before:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return processes() <= before


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that the block leaves neither an open file nor a process, dead or alive."""
    before = open_files(), processes()
    yield
    assert open_files() == before[0]
    assert no_child_is_left(before[1])


def wait_until_dead(pid_file: int) -> None:
    """Wait for a process that need not be ours, by its pidfd."""
    poll = select.poll()
    poll.register(pid_file, select.POLLIN)
    assert poll.poll(1000 * TIMEOUT), "it lives on"


@contextmanager
def files_opened_in(folder: Path) -> Iterator[list[bytes]]:
    """Yield a list that has, at the end, the names of the files in ``folder`` that any process has opened."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(_IN_NONBLOCK)
    found: list[bytes] = []
    try:
        assert libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN) >= 0
        yield found
        try:
            events = os.read(descriptor, 2**16)
        except BlockingIOError:
            events = b""
        while events:
            size = int.from_bytes(events[12:16], "little")
            found.append(events[16 : 16 + size].rstrip(b"\0"))
            events = events[16 + size :]
    finally:
        os.close(descriptor)
