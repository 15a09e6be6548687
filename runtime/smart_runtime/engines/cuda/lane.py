"""A lane: what a call on a GPU holds from its first copy to its last; one call at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.resources import DeviceMemory, PinnedMemory

_LEAST_BYTES = 256  # no block is empty; and activation memory must be aligned to as much

_BLOCKS = ("host_in", "host_out", "device_in", "device_out", "activation")
_EVENTS = ("start", "copied", "computed", "end")

_Block = TypeVar("_Block", DeviceMemory, PinnedMemory)


class Program(Protocol):
    """A graph that a library has loaded onto a GPU; its ``..._bytes`` are of the largest batch that one run takes."""

    input_bytes: int
    output_bytes: int
    activation_bytes: int
    keeps: tuple[Any, ...]
    """What its contexts need as long as they live."""

    def new_context(self, stream: int) -> Any:
        """Return a new execution context for runs in ``stream``, which has no memory of its own for activations."""
        ...

    def bind(self, seat: Seat, lane: Lane) -> None:
        """Let the context of ``seat`` work in the buffers of ``lane`` from now on."""
        ...

    def warm(self, lane: Lane) -> None:
        """Run on ``lane``, on which it has a seat: libraries load what they need when they first run."""
        ...

    def release(self) -> None:
        """Let go of what was loaded; contexts that are there still keep it."""
        ...


@dataclass(frozen=True)
class _Sizes:
    """Bytes of a lane's buffers."""

    input: int
    output: int
    activation: int

    @classmethod
    def for_all(cls, programs: Collection[Program]) -> _Sizes:
        return cls(
            max((program.input_bytes for program in programs), default=_LEAST_BYTES),
            max((program.output_bytes for program in programs), default=_LEAST_BYTES),
            max((*(program.activation_bytes for program in programs), _LEAST_BYTES)),
        )

    @property
    def of_device(self) -> int:
        return self.input + self.output + self.activation


class Seat:
    """A program's context on one lane, and the batch size that it is set to, 0 before its first run."""

    def __init__(self, program: Program, *, stream: int) -> None:
        self.images = 0
        self.log: Any = None  # the program's own
        self.context: Any = None  # before what it needs: whatever drops this, drops them in this order
        self._keeps = program.keeps
        try:
            self.context = program.new_context(stream)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go of the context, then of what it needs; now, since the traceback of an exception may hold this."""
        self.context = None
        self._keeps = ()


class Lane:
    """A stream, buffers for one batch, one block for activations, and a context of every program.

    A call holds it alone, so the block is never in use twice, though all programs share it: two paths cost the weights
    of both, and for each lane the larger of their activations.

    Attributes:
        stream: Where everything of a call is queued.
        start: An event, as are ``copied``, ``computed`` and ``end``: what a run that is timed records.
        host_in: Page-locked memory for the images of a batch; ``host_out`` for its scores.
        device_in: The same on the GPU; ``device_out``.
        activation: What a running graph works in.
        seats: The context of each program.
        clean: Whether nothing of a call is left on it; a lane that is not is made anew.
    """

    def __init__(self, device: Device, programs: Collection[Program]) -> None:
        """Make a lane for ``programs``, inside of `Device.use`; errors are those of `fit`, and leave nothing behind."""
        self._device = device
        self._sizes = sizes = _Sizes.for_all(programs)
        self.seats: dict[Program, Seat] = {}
        self.clean = True
        try:
            self.stream = device.stream()
            self.start, self.copied, self.computed, self.end = (device.event(timing=True) for _ in range(4))
            self.host_in, self.host_out = device.pinned(sizes.input), device.pinned(sizes.output)
            self.device_in, self.device_out = device.memory(sizes.input), device.memory(sizes.output)
            self.activation = device.memory(sizes.activation)
            self.fit(programs)
        except BaseException:
            self.release()
            raise

    @property
    def device_bytes(self) -> int:
        """What the lane takes of the GPU's memory."""
        return self._sizes.of_device

    def fit(self, programs: Collection[Program]) -> None:
        """Give every one of ``programs`` a seat, take them from all others, and fit the buffers to the largest.

        Raises:
            OutOfMemoryError: There is no room; the lane goes on as it was.
            EngineError: Anything else.
        """
        for program in [program for program in self.seats if program not in programs]:
            self._unseat(program)
        sizes = _Sizes.for_all(programs)
        if sizes != self._sizes:
            self._resize(sizes)
        for program in programs:
            if program not in self.seats:
                self.seats[program] = seat = Seat(program, stream=self.stream.handle)
                program.bind(seat, self)

    def _unseat(self, program: Program) -> None:
        self.seats[program].release()  # first: what an interrupt has left here is found by whoever tidies up next
        self.seats.pop(program, None)

    def _resize(self, sizes: _Sizes) -> None:
        """Take the new buffers first, then let the contexts know, then give back the old ones."""
        device, was = self._device, self._sizes

        def resized(block: _Block, make: Callable[[int], _Block], before: int, after: int) -> _Block:
            return block if before == after else make(after)  # what was made goes with its last reference

        old = (self.host_in, self.host_out, self.device_in, self.device_out, self.activation)
        new = (
            resized(self.host_in, device.pinned, was.input, sizes.input),
            resized(self.host_out, device.pinned, was.output, sizes.output),
            resized(self.device_in, device.memory, was.input, sizes.input),
            resized(self.device_out, device.memory, was.output, sizes.output),
            resized(self.activation, device.memory, was.activation, sizes.activation),
        )
        self.clean = False
        self.host_in, self.host_out, self.device_in, self.device_out, self.activation = new
        self._sizes = sizes
        for program, seat in self.seats.items():
            program.bind(seat, self)
        for before, after in zip(old, new, strict=True):
            if before is not after:
                before.release()
        self.clean = True

    def release(self) -> None:
        """Give everything back once the GPU has finished with it; never raises, may be called again."""
        made = vars(self)  # it may have been interrupted while it was made
        if "stream" in made:
            self.stream.release()  # first: it waits for what is queued
        for program in tuple(self.seats):
            self._unseat(program)
        for name in _BLOCKS + _EVENTS:
            if name in made:
                made[name].release()
