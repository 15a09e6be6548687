"""The thread that holds the answers of one path against those of the other."""

from __future__ import annotations

import _thread
import queue
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeAlias

import numpy as np

from smart_runtime.engines import Scores
from smart_runtime.inputs import NumpyImages
from smart_runtime.tripwire.watch import Watch

MOST_FRAMES = 8
"""Of one call that are looked at: a batch is one scene, and memory stays bounded."""

_GATHER_S = 0.01  # frames that come in this time are looked at together, which costs a fast stream far less
_BEGIN_S = 1.0


@dataclass(frozen=True, eq=False)
class Job:
    """Frames that a path has answered, copied, (N, ...), with their scores, (N, classes)."""

    watch: Watch
    path: str
    frames: NumpyImages
    scores: Scores


Jobs: TypeAlias = "queue.SimpleQueue[Job | None]"
"""None ends the worker."""


class Judge(Protocol):
    """What the worker works for."""

    def judge(self, job: Job) -> bool:
        """Act on the frames; False if there will never be more to do."""
        ...


class Worker:
    """A thread at work. It is looked for too: an interrupt may strike before it has begun or ended."""

    __slots__ = ("__weakref__", "ended", "ident", "made")

    def __init__(self) -> None:
        self.ended = False
        self.ident = 0
        self.made = time.monotonic()

    def start(self, jobs: Jobs, judge: weakref.ref[Judge]) -> None:
        """Let ``judge`` judge what is put into ``jobs`` until None comes, or it is gone or has no more to do."""
        # Not threading.Thread, whose start waits for ever if an interrupt strikes the new thread too early.
        _thread.start_new_thread(self._work, (jobs, judge))

    @property
    def alive(self) -> bool:
        """Whether it works, or is about to begin."""
        if self.ident:
            return not self.ended and self.ident in sys._current_frames()
        return time.monotonic() - self.made < _BEGIN_S

    def _work(self, jobs: Jobs, reference: weakref.ref[Judge]) -> None:
        try:
            self.ident = threading.get_ident()
            while (job := jobs.get()) is not None:
                waiting = [job]
                if jobs.qsize() < MOST_FRAMES:
                    time.sleep(_GATHER_S)
                while sum(len(one.frames) for one in waiting) < MOST_FRAMES and not jobs.empty():
                    if (job := jobs.get()) is None:
                        return
                    waiting.append(job)
                judge = reference()
                if judge is None or not all(judge.judge(one) for one in _merged(waiting)):
                    return
                del judge, job, waiting
        finally:
            self.ended = True


def _merged(jobs: list[Job]) -> Iterator[Job]:
    """Yield ``jobs`` with the frames of those in one that belong together."""
    for _, same in groupby(jobs, lambda job: (job.watch, job.path, job.frames.dtype, job.frames.shape[1:])):
        one = list(same)
        scores = np.concatenate([job.scores for job in one])
        yield Job(one[0].watch, one[0].path, np.concatenate([job.frames for job in one]), scores)
