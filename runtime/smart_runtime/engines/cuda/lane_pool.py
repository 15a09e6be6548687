"""The few lanes that all engines of a process share on one GPU, and the line of the calls that want one.

An exception may strike a call anywhere, Ctrl-C for one. So who holds what is said in one place, the line, which a call
leaves by one operation of C; and a lane whose call did not end well is made anew by the next call that gets it.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.cuda.lane import Lane, Program
from smart_runtime.errors import ClosedError, EngineError, OutOfMemoryError

_LOOK_AGAIN_SECONDS = 0.05  # who leaves wakes who waits, unless an exception strikes just between the two

_log = logging.getLogger(__name__)


class Turn:
    """A call's place in the line; ``lane`` is what it was dealt, None while it waits."""

    __slots__ = ("bell", "lane", "program", "thread", "wanted")

    def __init__(self, *, program: Program | None = None, wanted: Lane | None = None) -> None:
        """Take what is to run, or the one lane that is wanted."""
        self.lane: Lane | None = None
        self.program = program
        self.wanted = wanted
        self.thread = threading.get_ident()
        self.bell = threading.Lock()
        self.bell.acquire()


class LanePool:
    """The lanes of one device, for all engines of this process.

    turn = Turn()
    try:
        lane = pool.take(turn)
        ...
        lane.clean = True
    finally:
        pool.line.pop(turn, None)       # the first thing, and one operation of C
        pool.left()
    """

    def __init__(self, device: Device) -> None:
        """Use `shared`."""
        self.device = device
        self.line: dict[Turn, None] = {}
        self._programs: dict[Program, int] = {}  # and how many lanes each asked for
        self._lanes: list[Lane] = []
        # Re-entrant, both: a signal handler may come to them while its thread holds them.
        self._claiming = threading.RLock()
        self._attaching = threading.RLock()
        self._attacher: int | None = None

    @classmethod
    def shared(cls, device: Device) -> LanePool:
        """Return the pool of ``device``, which is the same for all its users."""
        with _registering:
            pool = _pools.get(device.ordinal)
            if pool is None or pool.device is not device:
                pool = _pools[device.ordinal] = cls(device)
            return pool

    @property
    def lanes(self) -> int:
        """How many lanes there are now."""
        return len(self._lanes)

    @property
    def device_bytes(self) -> int:
        """What all lanes take of the GPU's memory together."""
        return sum(lane.device_bytes for lane in tuple(self._lanes))

    def take(self, turn: Turn) -> Lane | None:
        """Wait for a lane, in the order of asking, and return it, fit for use; inside of `Device.use`.

        Returns:
            The lane; None only if ``turn.wanted`` is gone.

        Raises:
            ClosedError: ``turn.program`` is not attached any more.
            EngineError: It could not be made anew after a call that failed, or every lane is held by this very thread,
                which a signal handler interrupted.
        """
        self.line[turn] = None
        while True:
            while not self._claim(turn):
                if turn.wanted is not None and turn.wanted not in self._lanes:
                    return None
                if turn.program is not None and turn.program not in self._programs:
                    raise _closed()
                self._check_not_waiting_for_itself(turn)
                turn.bell.acquire(timeout=_LOOK_AGAIN_SECONDS)
            lane = turn.lane
            if lane is None or lane.clean or self._renew(turn, lane):
                if turn.program is not None and turn.lane is not None and turn.program not in turn.lane.seats:
                    raise _closed()  # just before the lane was claimed
                return turn.lane

    def left(self) -> None:
        """Let others have the lane of a call that has left the line; inside of `Device.use`."""
        self._wake()
        if self._untidy():
            self._tidy_lanes()

    def _wake(self) -> None:
        """Wake those who can have a lane now, and those who wait in vain; to wake dozens of others takes long."""
        ready = self._ready()
        for turn in tuple(self.line):
            known = turn.wanted in self._lanes if turn.program is None else turn.program in self._programs
            if turn in ready or not known:
                with suppress(RuntimeError):  # it was rung already
                    turn.bell.release()

    def _ready(self, claimant: Turn | None = None) -> dict[Turn, Lane]:
        """Return what those who wait can have now, in the order of asking.

        With ``claimant`` those alone who come before it; a signal handler's call stands in for the one that it
        interrupted, which waits in the same thread.
        """
        turns = tuple(self.line)
        held = {id(turn.lane) for turn in turns}
        free = [lane for lane in tuple(self._lanes) if id(lane) not in held]
        found: dict[Turn, Lane] = {}
        for turn in turns:
            if turn.lane is not None:
                continue
            asks = claimant if claimant is not None and turn.thread == claimant.thread else turn
            lane = next((lane for lane in free if asks.wanted is None or asks.wanted is lane), None)
            if lane is not None:
                free.remove(lane)
                found[asks] = lane
            if not free or asks is claimant:
                break
        return found

    def _claim(self, turn: Turn) -> bool:
        """Let ``turn`` hold a lane if one is free that nobody wants who asked before.

        Each claims for itself alone: a signal handler may call from the middle of this, and its call is over, and its
        lane free again, before this goes on. So its call goes first, in the place of the one that it interrupted.
        """
        with self._claiming:
            turn.lane = self._ready(turn).get(turn)
        return turn.lane is not None

    def _check_not_waiting_for_itself(self, turn: Turn) -> None:
        own = {id(other.lane) for other in tuple(self.line) if other.thread == turn.thread and other is not turn}
        wanted = tuple(self._lanes) if turn.wanted is None else (turn.wanted,)
        if wanted and all(id(lane) in own for lane in wanted):
            raise EngineError(
                "this thread is in the middle of a call, which a signal handler interrupted; "
                "let the handler only note the signal, and act on it outside"
            )

    def _renew(self, turn: Turn, lane: Lane) -> bool:
        """Let ``turn`` hold a new lane in the place of ``lane``, whose call did not end well; False if there is none.

        Without room for it there is one lane less; the last one stays, and its next call tries again.
        """
        lane.release()
        try:
            fresh = Lane(self.device, tuple(self._programs))
        except OutOfMemoryError as error:
            if len(self._lanes) == 1:
                raise
            self._give_up(lane)
            turn.lane = None
            self._say_fewer(error)
            return False
        try:
            self._lanes[self._lanes.index(lane)] = turn.lane = fresh
        except BaseException:
            fresh.release()
            raise
        return True

    def _give_up(self, lane: Lane) -> None:
        """Do without a lane, which is in the list as long as anything of it is left."""
        lane.clean = False
        lane.release()
        self._lanes.remove(lane)

    def attach(self, program: Program, *, lanes: int) -> None:
        """Let calls run ``program``: seat it on every lane, and make lanes up to ``lanes``, as many as fit.

        Calls of other programs go on meanwhile, but for the lane that is just being changed. Inside of `Device.use`.

        Raises:
            OutOfMemoryError: Not even one lane fits; nothing has changed.
            EngineError: The library refuses.
        """
        if self._attacher == threading.get_ident():
            raise EngineError(
                "an engine is being loaded, which a signal handler interrupted; "
                "let the handler only note the signal, and act on it outside"
            )
        with self._attaching:
            self._attacher, before = threading.get_ident(), len(self._lanes)
            try:
                with self._claiming:
                    self._programs[program] = lanes
                self._seat_everywhere(program)
            except BaseException as error:
                self.detach(program)
                if isinstance(error, OutOfMemoryError):
                    self._restore(before)
                raise
            finally:
                self._attacher = None

    def _seat_everywhere(self, program: Program) -> None:
        while standing := [lane for lane in self._lanes if program not in lane.seats]:
            self._seat(program, standing[0])
        try:
            while len(self._lanes) < max(self._programs.values()):
                self._add(program)
        except OutOfMemoryError as error:
            if not self._lanes:
                raise
            self._say_fewer(error)

    def _restore(self, lanes: int) -> None:
        """Make lanes again that were given up for the sake of a program that fits nowhere."""
        with suppress(EngineError):
            while self._programs and len(self._lanes) < lanes:
                self._add(next(iter(self._programs)))

    def _add(self, program: Program) -> None:
        lane = Lane(self.device, tuple(self._programs))
        try:
            program.warm(lane)
            self._lanes.append(lane)
        except BaseException:
            lane.release()
            raise

    def _seat(self, program: Program, lane: Lane) -> None:
        """Give ``program`` a seat on ``lane`` when its call has ended; do without a lane that has no room for it."""
        turn = Turn(wanted=lane)
        try:
            held = self.take(turn)  # not ``lane`` itself if the last call on that did not end well
            if held is None:
                return
            held.fit(tuple(self._programs))
            program.warm(held)
        except OutOfMemoryError as error:
            if turn.lane is None or len(self._lanes) == 1:
                raise
            self._give_up(turn.lane)
            self._say_fewer(error)
        finally:
            self.line.pop(turn, None)
            self.left()

    def _say_fewer(self, error: OutOfMemoryError) -> None:
        lanes = "one lane" if len(self._lanes) == 1 else f"{len(self._lanes)} lanes"
        _log.warning("the GPU has room for %s only, which calls share (%s)", lanes, str(error))

    def detach(self, program: Program) -> None:
        """Forget ``program`` and release it; runs of it that hold a lane finish. Never raises; may be called again."""
        self._programs.pop(program, None)
        self._tidy_lanes()
        program.release()

    def forsake(self, program: Program) -> None:
        """Do what `detach` does, for a finalizer: its thread may hold anything, so this waits for no lock.

        What cannot be done now is done by the next call.
        """
        self._programs.pop(program, None)
        try:
            if self._claiming.acquire(blocking=False):  # within the block: an interrupt may come as it returns
                self.detach(program)
        finally:
            try:  # noqa: SIM105  # no call of Python's may come before it: an interrupt would leave it locked for good
                self._claiming.release()
            except RuntimeError:  # another thread has it
                pass

    def _untidy(self) -> bool:
        """Whether a lane has a seat for a program that is not attached any more."""
        lanes = tuple(self._lanes)
        return any(program not in self._programs for lane in lanes for program in tuple(lane.seats))

    def _tidy_lanes(self) -> None:
        """Give back what no attached program needs, of the lanes that no call holds; who holds one does it on leaving.

        Without any program the lanes themselves go.
        """
        for lane in tuple(self._lanes):
            turn = Turn(wanted=lane)
            try:
                self.line[turn] = None
                if self._claim(turn):
                    self._tidy_lane(turn, lane)
            finally:
                self.line.pop(turn, None)
                self._wake()
        self.device.give_back_orphans()

    def _tidy_lane(self, turn: Turn, lane: Lane) -> None:
        programs = tuple(self._programs)
        if not programs:
            self._give_up(lane)
            return
        with suppress(EngineError):  # no room for smaller buffers beside the old ones: these serve on
            if lane.clean:
                lane.fit([program for program in programs if program in lane.seats])
            else:
                self._renew(turn, lane)


def _closed() -> ClosedError:
    return ClosedError("the engine is closed; load the model again")


_pools: dict[int, LanePool] = {}
_registering = threading.Lock()
