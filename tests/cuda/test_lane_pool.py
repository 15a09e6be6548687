"""The lanes of a GPU by themselves: who gets one, how many there are, and what they take of its memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.fakes import Thread
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.lane import Lane, Seat
from smart_runtime.engines.cuda.lane_pool import LanePool, Turn
from smart_runtime.errors import ClosedError, EngineError, OutOfMemoryError

KIB = 1024


class Copying:
    """A program that copies its images on the GPU; they are as large as its scores."""

    keeps = ()

    def __init__(self, size: int, *, activation: int = KIB) -> None:
        self.input_bytes = self.output_bytes = size
        self.activation_bytes = activation
        self.released = False

    def new_context(self, stream: int) -> object:  # noqa: ARG002
        return object()

    def bind(self, seat: Seat, lane: Lane) -> None:
        assert seat.context is not None
        assert lane.activation.bytes >= self.activation_bytes

    def warm(self, lane: Lane) -> None:
        self.run(lane, 0)

    def release(self) -> None:
        self.released = True

    def run(self, lane: Lane, value: int) -> None:
        size, stream = self.input_bytes, lane.stream
        assert self in lane.seats
        lane.clean = False
        lane.host_in.array[:size] = value
        stream.copy_in(lane.device_in.address, lane.host_in.address, size)
        stream.copy_on_device(lane.device_out.address, lane.device_in.address, size)
        stream.copy_out(lane.host_out.address, lane.device_out.address, size)
        stream.synchronize()
        assert np.all(lane.host_out.array[:size] == value)
        lane.clean = True

    def bytes(self, lanes: int) -> int:
        return lanes * (2 * self.input_bytes + self.activation_bytes)


@contextmanager
def taken(pool: LanePool, turn: Turn) -> Iterator[Lane]:
    """What an engine does around a call."""
    with pool.device.use():
        try:
            lane = pool.take(turn)
            assert lane is not None
            yield lane
        finally:
            pool.line.pop(turn, None)
            pool.left()


def call(pool: LanePool, program: Copying, value: int = 7) -> Lane:
    with taken(pool, Turn(program=program)) as lane:
        program.run(lane, value)
        return lane


def attach(pool: LanePool, program: Copying, *, lanes: int = 2) -> Copying:
    with pool.device.use():
        pool.attach(program, lanes=lanes)
    return program


def detach(pool: LanePool, program: Copying) -> None:
    with pool.device.use():
        pool.detach(program)


@pytest.fixture
def pool(stand_in: StandInDriver) -> Iterator[LanePool]:
    device = Device.shared()
    one = LanePool(device)
    yield one
    for program in tuple(one._programs):
        detach(one, program)  # type: ignore[arg-type]
    assert (one.lanes, one.line) == (0, {})
    assert stand_in.leaks() == {}


class Line(dict[Turn, None]):
    """The line of a pool, which notes who comes."""

    def __init__(self) -> None:
        self.came: list[Turn] = []
        self._coming = threading.Lock()

    def __setitem__(self, turn: Turn, _: None) -> None:
        with self._coming:
            super().__setitem__(turn, None)
            self.came.append(turn)


def test_who_asked_first_is_served_first(pool: LanePool) -> None:
    """Eight threads that never pause share one lane: nobody is passed over."""
    program = attach(pool, Copying(64), lanes=1)
    pool.line = line = Line()
    served: list[Turn] = []

    def work(number: int) -> None:
        for _ in range(25):
            turn = Turn(program=program)
            with taken(pool, turn) as lane:
                served.append(turn)
                program.run(lane, number)

    for thread in [Thread(partial(work, number)) for number in range(8)]:
        thread.outcome()
    assert len(served) == 200
    assert served == line.came


def test_the_second_lane_does_not_fit(
    pool: LanePool, stand_in: StandInDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls share the one that does, which is said once."""
    program = Copying(64 * KIB)
    stand_in.total(program.bytes(1) + 10 * KIB)
    with caplog.at_level(logging.WARNING):
        attach(pool, program)
        threads = [Thread(partial(call, pool, program, number)) for number in range(8)]
        lanes = {id(thread.outcome()) for thread in threads}
    assert (pool.lanes, len(lanes), stand_in.used()) == (1, 1, program.bytes(1))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("the GPU has room for one lane only, which calls share (GPU 0 (Stand-in) has no memory left")


def test_not_even_one_lane_fits(pool: LanePool, stand_in: StandInDriver) -> None:
    program = Copying(64 * KIB)
    stand_in.total(program.bytes(1) - 1)
    with pytest.raises(OutOfMemoryError, match="has no memory left"):
        attach(pool, program)
    assert (pool.lanes, pool.device_bytes, stand_in.used()) == (0, 0, 0)
    assert program.released
    stand_in.total(program.bytes(2))
    call(pool, attach(pool, program))


def test_a_larger_program_that_fits_nowhere_changes_nothing(pool: LanePool, stand_in: StandInDriver) -> None:
    small = attach(pool, Copying(KIB))
    before = stand_in.used()
    stand_in.total(before + 20 * KIB)
    with pytest.raises(OutOfMemoryError):
        attach(pool, Copying(64 * KIB))
    assert (pool.lanes, stand_in.used()) == (2, before)
    call(pool, small)


def test_a_larger_program_that_fits_on_one_lane_takes_the_room_of_the_other(
    pool: LanePool, stand_in: StandInDriver
) -> None:
    small = attach(pool, Copying(KIB))
    large = Copying(64 * KIB)
    stand_in.total(large.bytes(1) + small.bytes(1))
    attach(pool, large)
    assert pool.lanes == 1
    call(pool, small)
    call(pool, large)
    detach(pool, large)
    attach(pool, Copying(KIB))
    assert pool.lanes == 2, "there is room again"


def test_lanes_grow_and_shrink_while_calls_run(pool: LanePool, stand_in: StandInDriver) -> None:
    stand_in.delay(50)
    small = attach(pool, Copying(KIB))
    before = stand_in.used()
    stop = threading.Event()

    def work(number: int) -> int:
        calls = 0
        while not stop.is_set():
            call(pool, small, number)
            calls += 1
        return calls

    threads = [Thread(partial(work, number)) for number in range(4)]
    try:
        for _ in range(5):
            large = attach(pool, Copying(16 * KIB, activation=8 * KIB))
            assert stand_in.used() == large.bytes(2), "the sizes of the larger one, not the sum"
            call(pool, large)
            detach(pool, large)
    finally:
        stop.set()
    assert all(thread.outcome() for thread in threads)
    call(pool, small)
    assert (stand_in.used(), pool.lanes) == (before, 2)


def test_a_detached_program_runs_no_more_and_its_call_ends(pool: LanePool, stand_in: StandInDriver) -> None:
    program, other = attach(pool, Copying(8 * KIB)), attach(pool, Copying(KIB))
    with taken(pool, Turn(program=program)) as lane:
        Thread(partial(detach, pool, program)).outcome()  # waits for nobody
        assert program.released
        program.run(lane, 5)
        with pytest.raises(ClosedError, match="load the model again"):
            Thread(partial(call, pool, program)).outcome()
    assert stand_in.used() == other.bytes(2), "who held the lane has given back what is needed no more"


def fail(pool: LanePool, program: Copying) -> Lane:
    """A call that does not end well."""
    with taken(pool, Turn(program=program)) as lane:
        lane.clean = False
        return lane


def test_a_lane_that_failed_is_made_anew(pool: LanePool, stand_in: StandInDriver) -> None:
    program = attach(pool, Copying(KIB))
    before = stand_in.live(), stand_in.used()
    failed = {id(lane): lane for lane in (fail(pool, program), fail(pool, program))}
    for number in range(4):
        assert id(call(pool, program, number)) not in failed
    assert (stand_in.live(), stand_in.used(), pool.lanes) == (*before, 2)


def test_a_lane_that_cannot_be_made_anew_is_done_without(pool: LanePool, stand_in: StandInDriver) -> None:
    program = attach(pool, Copying(64 * KIB))
    fail(pool, program)
    stand_in.total(program.bytes(1) + KIB)  # somebody else has taken the rest
    for number in range(3):
        call(pool, program, number)
    assert pool.lanes == 1
    fail(pool, program)
    stand_in.total(KIB)
    with pytest.raises(OutOfMemoryError):
        call(pool, program)
    stand_in.total(program.bytes(2))
    call(pool, program)
    assert pool.lanes == 1, "the last one stays, and its next call has tried again"


def test_a_thread_that_holds_every_lane_is_not_left_waiting_for_itself(pool: LanePool) -> None:
    """As a signal handler would, in the middle of its thread's own call."""
    program = attach(pool, Copying(KIB), lanes=1)
    with taken(pool, Turn(program=program)) as lane:
        for refused in (partial(call, pool, program), partial(attach, pool, Copying(2 * KIB), lanes=1)):
            with pytest.raises(EngineError, match="which a signal handler interrupted; let the handler only note"):
                refused()
        program.run(lane, 3)
    call(pool, program)


def test_threads_that_attach_at_once(pool: LanePool, stand_in: StandInDriver) -> None:
    sizes = [KIB * size for size in (1, 5, 3, 8)]
    works: list[Callable[[], Copying]] = [partial(attach, pool, Copying(size)) for size in sizes]
    programs = [thread.outcome() for thread in [Thread(work) for work in works]]
    assert stand_in.used() == max(program.bytes(2) for program in programs)
    for program in programs:
        call(pool, program)
    detach(pool, programs[3])
    assert stand_in.used() == programs[1].bytes(2)
