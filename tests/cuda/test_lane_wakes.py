"""Who is woken when a lane comes free: with dozens of waiting threads each needless one costs all of them time."""

from __future__ import annotations

from typing import Any, cast

from smart_runtime.engines.cuda.lane_pool import LanePool, Turn


def waiting(pool: LanePool, program: Any) -> Turn:
    turn = Turn(program=program)
    pool.line[turn] = None
    return turn


def test_as_many_are_woken_as_lanes_are_free_in_the_order_of_asking() -> None:
    pool, program = LanePool(cast("Any", None)), cast("Any", object())
    pool._programs[program] = 2
    pool._lanes[:] = lanes = [cast("Any", object()), cast("Any", object())]
    running = waiting(pool, program)
    running.lane = lanes[0]
    turns = [waiting(pool, program) for _ in range(3)]
    pool._wake()
    assert [turn.bell.locked() for turn in turns] == [False, True, True]
    pool.line.pop(running)
    pool._wake()
    assert [turn.bell.locked() for turn in turns] == [False, False, True]


def test_who_waits_in_vain_is_told_though_no_lane_is_free() -> None:
    pool, program = LanePool(cast("Any", None)), cast("Any", object())
    pool._programs[program] = 1
    pool._lanes[:] = [cast("Any", object())]
    running = waiting(pool, program)
    running.lane = pool._lanes[0]
    detached = waiting(pool, cast("Any", object()))
    gone = Turn(wanted=cast("Any", object()))
    pool.line[gone] = None
    patient = waiting(pool, program)
    pool._wake()
    assert [turn.bell.locked() for turn in (detached, gone, patient)] == [False, False, True]
