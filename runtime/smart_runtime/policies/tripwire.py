"""The two paths watch each other: where they disagree more than clean frames let them, the robust one takes over."""

from __future__ import annotations

import logging
import math
import os
import queue
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from smart_common.errors import shortened
from smart_runtime import forks
from smart_runtime.engines import Scores
from smart_runtime.errors import ClosedError, EngineError, InputError
from smart_runtime.inputs import Images, NumpyImages
from smart_runtime.memory import RESIDENT
from smart_runtime.policies.policy import PolicyModel, SwitchRequest
from smart_runtime.serving import Result
from smart_runtime.tripwire import exits
from smart_runtime.tripwire.cusum import Cusum
from smart_runtime.tripwire.operating_point import shadow_frames_between
from smart_runtime.tripwire.run_lengths import LONGEST
from smart_runtime.tripwire.shadow_worker import MOST_FRAMES, Job, Jobs, Worker
from smart_runtime.tripwire.watch import Watch, watch_of

ALARM = "the paths disagree: tripwire alarm"
CALM = "the paths agree again: tripwire calm"

_QUEUE = 16  # calls that may wait for the worker
_HOUR = 3600.0
_POLL_S = 0.001

_log = logging.getLogger(__name__)


class Tripwire:
    """Serves the path for clean images until the one for attacked images disagrees, and that one until it is calm.

        model = SmartModel.load("bundle/", policy=Tripwire(every=10, false_alarms_per_day=0.1))

    One of ``every`` frames, drawn at random, is run on the other path too, later and in a thread of its own; no call
    waits for it. How far the two answers are apart and how sure the clean path is go into a CUSUM of log-likelihood
    ratios, whose distributions the bundle brings along. It sees no attack that both paths fall for alike, and it is as
    good as the robust path is. Frames before the alarm are answered by the clean path. Those two paths are all that it
    watches: frames that a mix or a third path answers, by a hand or another policy, are passed over, and it asks for
    one of its own two again.
    """

    def __init__(
        self,
        every: int = 10,
        false_alarms_per_day: float = 1.0,
        *,
        rate_hz: float = 30.0,
        score: str | None = None,
        calibration: str | os.PathLike[str] | None = None,
        hold_s: float = 60.0,
        calm_frames: int = 20,
        max_switches_per_hour: int = 6,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        """Watch one in ``every`` frames.

        Args:
            every: 1 or more.
            false_alarms_per_day: How many to expect on clean frames, at ``rate_hz`` all day, if they were independent.
            rate_hz: Frames a second of the stream.
            score: One of those of the bundle, as `smart-run info` lists them; None for the default.
            calibration: A file of `smart-run calibrate`, made with this very bundle on frames of your own. A reload
                reads it again, and needs one of the new bundle.
            hold_s: The robust path goes on answering for this many seconds after the test was last at its threshold.
            calm_frames: It also does until this many shadow frames in a row left the test below half of it.
            max_switches_per_hour: After so many alarms within an hour the robust path stays until the hour is over.
            clock: Returns seconds. A jump back lengthens no hold beyond ``hold_s``, one forward may end it.
            seed: Of the draws. None takes the system's randomness: an attacker must not know the draws.

        Raises:
            ValueError: An argument is out of range.
        """
        for name, value, low, high in (
            ("every", every, 1, 1_000_000),
            ("false_alarms_per_day", false_alarms_per_day, 1e-6, 1e6),
            ("rate_hz", rate_hz, 1e-3, 1e6),
            ("hold_s", hold_s, 0, 1e9),
            ("calm_frames", calm_frames, 1, 1_000_000),
            ("max_switches_per_hour", max_switches_per_hour, 1, 1_000_000),
        ):
            if not low <= value <= high:
                raise ValueError(f"expected {name} from {low:g} to {high:g}, got {value:g}")
        self._every, self._score = every, score
        # A reload reads it again, by then perhaps in another directory.
        self._calibration = None if calibration is None else Path(calibration).absolute()
        self._frames_between = shadow_frames_between(
            rate_hz=rate_hz, every=every, false_alarms_per_day=false_alarms_per_day
        )
        if self._frames_between > LONGEST:
            least = false_alarms_per_day * self._frames_between / LONGEST
            raise ValueError(
                f"{false_alarms_per_day:g} false alarms a day are {self._frames_between:.0e} shadow frames apart, and "
                f"{LONGEST:.0e} is the most that can be promised; allow {least:.0e} a day"
            )
        self._hold_s, self._calm_frames, self._most = hold_s, calm_frames, max_switches_per_hour
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311  # seeded by the system unless asked otherwise, and never shown
        self._model: PolicyModel | None = None
        self._watch: Watch | None = None
        self._watched_from = 0.0
        self._off = "not started"
        self._stopped = False
        self._cusum = Cusum(1.0)
        self._alarm = False
        self._since: float | None = None
        self._held_until = -math.inf
        self._calm = 0
        self._alarms: deque[float] = deque(maxlen=max_switches_per_hour)
        self._last: dict[str, float] = {}
        self._seen = self._runs = self._dropped = self._unreadable = 0
        self._failures = self._disagreements = self._alarm_count = self._restarts = 0
        self._last_failure = ""
        self._skip = self._gap()
        self._worker: weakref.ref[Worker] | None = None  # the last one
        self._renew()
        forks.guard(self)
        exits.guard(self)

    def _renew(self) -> None:
        self._jobs: Jobs = queue.SimpleQueue()  # C, so that no interrupt leaves a lock of it locked
        self._lock = threading.RLock()  # held for a few assignments; signal handlers may come again
        # The worker keeps no forgotten policy alive, and ends with it.
        weakref.finalize(self, self._jobs.put, None).atexit = False

    def start(self, model: PolicyModel) -> None:
        """Watch ``model``, from its path for clean images on.

        Raises:
            BundleError: The bundle has no such pair of paths, no operating points, or damaged ones.
            InputError: It has none for the score; or the calibration is missing, damaged or another bundle's.
            EngineError: Not all paths are resident.
        """
        if self._model is not None:
            raise InputError("this Tripwire watches another model already; make one for each")
        watch = self._watch_of(model)
        self._model = model
        self._begin(watch)
        if model.path != watch.clean:
            model.switch(watch.clean, CALM)

    def reloaded(self, model: PolicyModel) -> None:
        """Begin again with another bundle; where that cannot be watched the tripwire is off and the path stays."""
        try:
            watch = self._watch_of(model)
        except Exception as error:
            with self._lock:
                self._watch, self._off = None, shortened(str(error))
            _log.warning("the tripwire is off: %s", error)
            raise
        self._begin(watch, keep_alarm=self._alarm)

    def _begin(self, watch: Watch, *, keep_alarm: bool = False) -> None:
        with self._lock:
            self._cusum = Cusum(watch.threshold)
            self._calm, self._last = 0, {}
            self._alarm = keep_alarm
            self._watched_from = time.perf_counter()  # before the watch: no call sees this one with the last one's time
            self._watch, self._off = watch, ""

    def _watch_of(self, model: PolicyModel) -> Watch:
        if model.memory().mode != RESIDENT:
            raise EngineError("the tripwire runs both paths all the time; load the model with memory='resident'")
        return watch_of(
            model.bundle, score=self._score, calibration=self._calibration, frames_between=self._frames_between
        )

    # In the threads of the calls.

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:
        """Draw the frames that the worker is to look at, and copy those; it is the worker that switches.

        Only where something answers that it cannot watch it asks for one of its paths at once.
        """
        watch, model = self._watch, self._model
        began = time.perf_counter() - result.latency_ms / 1e3
        if watch is None or model is None or self._stopped or began < self._watched_from:  # of the bundle before
            return None
        if watch.other(result.path) is None:
            return self._wish(watch)
        drawn = self._draw(len(result.scores))
        if not drawn:
            return None
        if not isinstance(images, np.ndarray):  # on a GPU: copying it would make this call wait
            with self._lock:
                self._unreadable += len(drawn)
            return None
        self._keep_working()  # first: a queue that is full because nobody works must not stay so
        taken = drawn[:MOST_FRAMES]
        full = self._jobs.qsize() >= _QUEUE
        with self._lock:
            self._dropped += len(drawn) if full else len(drawn) - len(taken)
        if full or model.bundle is not watch.bundle:  # reloaded since: the scores may be those of either
            return None
        frames = cast("NumpyImages", images[taken])
        self._jobs.put(Job(watch, result.path, frames, result.scores[taken]))
        return None

    def _wish(self, watch: Watch) -> SwitchRequest:
        """Return which path is to answer as things stand."""
        return SwitchRequest(watch.robust, ALARM) if self._alarm else SwitchRequest(watch.clean, CALM)

    def _draw(self, count: int) -> list[int]:
        """Return which of ``count`` frames are drawn, each with probability 1/every."""
        drawn = []
        with self._lock:
            self._seen += count
            while self._skip < count:
                drawn.append(self._skip)
                self._skip += 1 + self._gap()
            self._skip -= count
        return drawn

    def _gap(self) -> int:
        """Return how many frames are passed over before the next one: geometric, as by a draw for each."""
        if self._every == 1:
            return 0
        return int(math.log(1.0 - self._random.random()) / math.log1p(-1.0 / self._every))

    def _keep_working(self) -> None:
        """See to it that there is a worker: the first one, or the next if it has died."""
        if self._working:
            return
        with self._lock:
            if self._working or self._stopped:
                return
            self._restarts += self._worker is not None
            worker = Worker()
            self._worker = weakref.ref(worker)
            worker.start(self._jobs, weakref.ref(self))

    @property
    def _working(self) -> bool:
        worker = None if self._worker is None else self._worker()
        return worker is not None and worker.alive

    # In the worker.

    def judge(self, job: Job) -> bool:
        """Run the other path on the frames of a job and act on it; False once the model is closed."""
        model, other = self._model, job.watch.other(job.path)
        if model is None or other is None or self._stopped:
            return False
        try:
            with model.using(other):
                shadow = model.run(job.frames)
            # Frames or answers of two bundles are not held against each other.
            if job.watch is self._watch and model.bundle is job.watch.bundle and shadow.path == other:
                self._decide(job, shadow.scores, model)
        except ClosedError:
            return False
        except Exception as error:  # an engine's, or of a switch: the next frames are tried again
            with self._lock:
                self._failures += 1
                count, self._last_failure = self._failures, shortened(f"{type(error).__name__}: {error}")
            if count & (count - 1) == 0:
                _log.exception("the tripwire failed on a frame, %d failures so far; calls go on", count)
        return True

    def _decide(self, job: Job, shadow: Scores, model: PolicyModel) -> None:
        watch = job.watch
        clean, robust = (job.scores, shadow) if job.path == watch.clean else (shadow, job.scores)
        scores, confidences, ratios = watch.point.judged(clean, robust)
        apart = clean.argmax(axis=1) != robust.argmax(axis=1)
        for number, ratio in enumerate(ratios):
            with self._lock:
                self._disagreements += int(apart[number])
                self._last = {"score": float(scores[number]), "confidence": float(confidences[number])}
                self._step(float(ratio))
                wish, details = self._wish(watch), self.status()
            if model.path != wish.path:
                model.switch(wish.path, wish.reason, details)
            with self._lock:
                self._runs += 1  # last: who waits for it finds the path switched

    def _step(self, ratio: float) -> None:
        """Add a frame to the test and turn the alarm on or off; ``_lock`` is held."""
        now, cusum = self._clock(), self._cusum
        at_threshold = cusum.add(ratio)
        self._calm = self._calm + 1 if cusum.value < cusum.threshold / 2 else 0
        if at_threshold:
            if not self._alarm:
                self._alarm, self._since = True, now
                self._alarm_count += 1
                self._alarms.append(now)
            self._held_until = now + self._hold_s
        if not self._alarm:
            return
        self._held_until = min(self._held_until, now + self._hold_s)  # after a jump back of the clock
        self._alarms = deque((min(one, now) for one in self._alarms), maxlen=self._most)
        if now >= self._held_until and self._calm >= self._calm_frames and not self._too_many(now):
            self._alarm, self._since = False, None
            cusum.reset()

    def _too_many(self, now: float) -> bool:
        return len(self._alarms) == self._most and now - self._alarms[0] < _HOUR

    def status(self) -> dict[str, Any]:
        """Return what it sees, as plain numbers and texts; ``off`` says why it watches nothing, "" while it does.

        ``S`` and ``threshold`` are in nats, ``since`` is the time of the alarm by the clock. ``score`` and
        ``confidence`` are those of the last shadow frame, None before it. Counts end in ``_total``: frames seen, shadow
        runs by frames, frames dropped since the worker was behind, frames on a GPU, which are not looked at, failures
        of the worker, labels of the paths that differed, alarms, and workers that died and were replaced.
        """
        with self._lock:
            watch = self._watch
            return {
                "off": self._off,
                "alarm": self._alarm,
                "since": self._since,
                "S": self._cusum.value,
                "threshold": None if watch is None else watch.threshold,
                "score_name": None if watch is None else watch.point.score,
                "score": self._last.get("score"),
                "confidence": self._last.get("confidence"),
                "stays_robust": self._alarm and self._too_many(self._clock()),
                "frames_total": self._seen,
                "shadow_runs_total": self._runs,
                "dropped_total": self._dropped,
                "on_gpu_total": self._unreadable,
                "shadow_failures_total": self._failures,
                "disagreements_total": self._disagreements,
                "alarms_total": self._alarm_count,
                "restarts_total": self._restarts,
                "last_failure": self._last_failure,
            }

    def stop(self) -> None:
        """Watch no more; the worker ends after the frames that it is at, which nobody waits for."""
        with self._lock:
            self._stopped, self._watch, self._off = True, None, "the model is closed"
        self._jobs.put(None)

    def end(self, timeout: float) -> None:
        """Stop, and wait until the worker has left its engine: see `exits`."""
        self.stop()
        until = time.monotonic() + timeout
        while self._working and time.monotonic() < until:
            time.sleep(_POLL_S)

    def after_fork_in_child(self) -> None:
        """Watch nothing in a forked child, where the model is unusable and the worker does not exist: see `forks`."""
        self._renew()
        self._worker = None
        self._stopped, self._watch, self._off = True, None, "this process was forked from the one that loaded the model"
