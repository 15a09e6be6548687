"""`SmartModel`: one bundle, its paths ready, one of them answering."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import NoReturn, cast

from smart_runtime.both import Both, run_on_all
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.bundle.signatures import PublicKey, public_key
from smart_runtime.classify import Prediction, best_classes
from smart_runtime.engines import AUTO, EngineOptions, Scores
from smart_runtime.engines.engine import MAX_BYTES
from smart_runtime.errors import ClosedError, EngineError, InputError
from smart_runtime.frames import ChannelOrder, Picture, preprocess
from smart_runtime.inputs import Images
from smart_runtime.memory import RESIDENT, MemoryReport, Mode
from smart_runtime.notes import log_notes, notes_on
from smart_runtime.path_state import PathState
from smart_runtime.policies.policy import Policy
from smart_runtime.scopes import Block, Scope, Scopes
from smart_runtime.serving import Call, Loader, Result
from smart_runtime.stats import Stats

_log = logging.getLogger(__name__)


class SmartModel:
    """An image classifier whose path can be changed in place; safe to use from any number of threads and tasks.

        with SmartModel.load("bundle/") as model:
            scores = model(frames)
            model.path = "robust"
            result = model.run(frames)

    Every call runs, to its end, on the path that was active when it began. Calls wait for no switch and no reload, with
    one exception: under a budget that has room for one path only, see `load`. `switch` and `path` may be used in a
    signal handler as long as all paths are resident.
    """

    def __init__(self, state: PathState) -> None:
        """Use `load`; this takes paths that are loaded."""
        self._state = state
        self._scopes = Scopes()
        self._policy: Policy | None = None
        self._observing: set[int] = set()  # the threads in which the policy is looking at a call
        log_notes(self.notes)

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        *,
        path: str | None = None,
        engine: str = AUTO,
        threads: int | None = None,
        options: EngineOptions | None = None,
        memory: Mode | int = RESIDENT,
        trust: str | os.PathLike[str] | PublicKey | None = None,
        policy: Policy | None = None,
    ) -> SmartModel:
        """Load the bundle in the directory ``bundle``, every byte checked, its paths warm.

        Args:
            bundle: The directory.
            path: The path that answers first; None for the manifest's default path.
            engine: An engine's name; ``auto`` takes the best one of this device.
            threads: Threads that one call may use; None leaves it to the engine. Short for ``options`` with them.
            options: How the engine is to run, instead of ``threads``.
            memory: ``resident`` keeps all paths loaded. ``on-demand`` keeps one: a switch loads the other one while the
                old one answers, then drops the old one. A number is a budget in bytes for the paths' graphs and
                weights: resident if all fit, else on demand; and if not even two fit at a time, a switch drops the old
                path first, calls wait until the new one is up, and the old one comes back if that fails.
            trust: An Ed25519 public key, or its PEM file, which is read here only: no bundle is loaded, or reloaded,
                unless it is signed with the private half.
            policy: Looks at every call and may switch: see `Policy`. None leaves switching to you. On demand the call
                after which it switches waits for the other path to be loaded.

        Raises:
            BundleError: Not a bundle, or any byte of it was changed, added or lost; SignatureError, it is not signed
                with the key.
            PathError: The bundle has no such path.
            InputError: ``policy`` is none.
            EngineError: No such engine, or both ``threads`` and ``options``, or it refuses a graph, or the budget is
                too small; OutOfMemoryError, there is not enough memory.
            MissingExtraError: The engine's library is not installed, or with ``trust`` cryptography.
            OSError: The system cannot read a file.
            Exception: Whatever the policy's `start` raises.
        """
        if threads is not None and options is not None:
            raise EngineError("threads and options cannot be combined: say EngineOptions(threads=...)")
        options = EngineOptions(threads=threads) if options is None else options
        if not isinstance(options, EngineOptions):
            raise EngineError(f"expected options as EngineOptions(...), got {options!r:.100}")
        if isinstance(memory, int) and options.memory_limit_bytes is None:
            options = replace(options, memory_limit_bytes=min(max(1, memory), MAX_BYTES))
        if policy is not None and (isinstance(policy, type) or not hasattr(policy, "observe")):
            raise InputError(
                f"expected a policy with start, observe and stop, got {policy!r:.100}; make one, as in Hysteresis(...)"
            )
        open_loader = partial(Loader, trust=public_key(trust), engine=engine, options=options)
        state = PathState.load(bundle, path=path, memory=memory, open_loader=open_loader)
        try:
            model = cls(state)
            if policy is not None:
                policy.start(model)
            model._policy = policy
        except BaseException:
            state.close()
            raise
        return model

    def __call__(self, images: Images) -> Scores:
        """Return the scores of ``images``; `run` says the path and the latency too.

        Args:
            images: float32 (N, channels, height, width) in [0, 1], or uint8 (N, height, width, channels); N at least 1.
                For engines of TensorRT float32 may lie on the model's own GPU: see `run`.

        Returns:
            float32 logits, (N, classes); the array is the caller's own.

        Raises:
            InputError: Another type, dtype, shape or range, or NaN.
            EngineError: The engine failed, or gave what are no scores: another shape, NaN or infinity.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
        """
        return self.run(images).scores

    def run(self, images: Images) -> Result:
        """Return scores with the path that made them and the latency; arguments and errors are those of a call.

            images = torch.rand(8, 3, 224, 224, device="cuda")
            result = model.run(images)

        Images that are on the GPU already stay there. An engine of TensorRT takes contiguous float32
        (N, channels, height, width) arrays on its own GPU by DLPack, as PyTorch and CuPy have it, or by
        ``__cuda_array_interface__`` of version 2 or 3. They are copied once, within the GPU. Their values are not
        looked at: that they are in [0, 1] is yours to see to, and NaN shows only in the scores, where it is refused.

        The GPU reads them when it has done what was queued before this call on the stream where they are made: with
        PyTorch and CuPy the stream that is current in this thread, else the ``stream`` of the interface. With None
        there, as in version 2, which has none, nothing is waited for: synchronise first. When this returns the images
        were read and are yours to change. The scores are a NumPy array, as always.
        """
        start_ns = time.perf_counter_ns()
        call = Call()
        try:
            loaded = self._state.enter(call, self._scopes.path)
            try:
                scores = loaded.scores_of(images)
            except BaseException:  # whatever it was, it is counted and goes on to the caller
                self._state.recorder.error(loaded.name)
                raise
        finally:
            # Nothing of Python's may come before the call has left: an exception that is sent to this thread, by Ctrl-C
            # for one, strikes where a function begins or has ended, and a call that never leaves keeps its engine.
            if call.loaded is not None:
                call.loaded.calls.discard(call)
                call.loaded.close_if_idle()
        latency_ns = time.perf_counter_ns() - start_ns
        self._state.recorder.call(loaded.name, images=len(scores), latency_ns=latency_ns)
        result = Result(scores, loaded.name, latency_ns / 1e6, loaded.temperature)
        if self._policy is not None:
            self._observe(self._policy, result, images)
        return result

    def both(self, images: Images) -> Both:
        """Return the scores of every path, mixes not counted, for the same images; arguments and errors as of `run`.

            both = model.both(frames)
            disagree = both.scores["clean"].argmax(1) != both.scores["robust"].argmax(1)

        The images are checked and converted once, and the paths run one after the other: on a CPU one call uses all
        the cores that the engine was given already (benchmarks/bench_both.py). Neither the active path nor a scope
        matters. `stats` count a call on each path, no policy sees it.

        Raises:
            EngineError: Also if paths are loaded on demand.
        """
        return run_on_all(self._state, images)

    def _observe(self, policy: Policy, result: Result, images: Images) -> None:
        """Show a call to the policy and do what it asks for; whatever fails, the caller gets the result."""
        thread = threading.get_ident()
        if thread in self._observing:  # the policy itself made this call
            return
        try:
            self._observing.add(thread)
            request = policy.observe(result, images)
            if request is not None and request.path != self._state.path:
                self.switch(request.path, request.reason)
        except ClosedError:  # between the call and here, by another thread
            pass
        except Exception:  # whatever a policy raises, and whatever its switch runs into: the call has succeeded
            self._policy_failed("observe")
        finally:
            self._observing.discard(thread)

    def _policy_failed(self, method: str) -> None:
        """Count the exception that is being handled; log the first, second, fourth, eighth and so on."""
        count = self._state.recorder.policy_failure()
        if count & (count - 1) == 0:  # not each: it may come with every frame
            _log.exception("the policy failed in %s, %d failures so far; calls go on", method, count)

    def classify(self, image: Picture, *, top: int = 1, channel_order: ChannelOrder = "RGB") -> tuple[Prediction, ...]:
        """Return the ``top`` classes of one picture, best first.

            best = model.classify("cat.jpg")[0]
            print(best.name, best.probability)

        Args:
            image: A file's name, a Pillow image, or a frame of any size; see `preprocess`, which takes several too.
            top: How many classes, 1 or more; all of them if there are fewer.
            channel_order: ``BGR`` for frames as OpenCV reads them.

        Raises:
            InputError: Not one picture, or ``top`` below 1.
            MissingExtraError: Pillow is needed and not installed.
            EngineError, ClosedError: As for a call.
        """
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise InputError(f"expected top of 1 or more, got {top!r:.40}")
        images = preprocess(image, self, channel_order=channel_order)
        if len(images) != 1:
            raise InputError(f"expected one picture, got {len(images)}; call classify for each")
        result = self.run(images)
        return best_classes(result.scores[0], self.class_names, top=top, temperature=result.temperature)

    async def arun(self, images: Images) -> Result:
        """Do what `run` does in a thread of asyncio's pool, while the event loop goes on; `using` holds there too.

        A call that waits for a free thread takes the path that is active when it gets one. If the task is cancelled,
        the call goes on in its thread, to no one's use; do not change ``images`` before it has ended. Images on a GPU
        must be finished, or made on the default stream: the stream that is current here is not current in that thread.
        """
        import asyncio  # noqa: PLC0415  # a fifth of the time of importing this package, and only tasks need it

        return await asyncio.to_thread(self.run, images)

    @property
    def path(self) -> str:
        """The path that answers the next call in this thread or task; assign another to switch."""
        self._state.check_usable()
        return self._scopes.path() or self._state.path

    @path.setter
    def path(self, name: str) -> None:
        self.switch(name)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths to choose from, and the mixes between them."""
        return self.manifest.choices

    def switch(self, path: str, reason: str = "") -> None:
        """Let ``path`` answer every call that begins after this returns; calls in flight finish on their path.

        ``reason`` is kept in `stats`. Switching to the path that is active already changes and counts nothing. Calls
        inside of `using` stay with their scope's path.

        Raises:
            PathError: The bundle has no such path; the old one goes on answering.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
            BundleError, EngineError, OSError: On demand only: the path cannot be loaded; the old one goes on answering.
        """
        self._state.switch(path, reason)

    def using(self, path: str) -> AbstractContextManager[SmartModel]:
        """Let ``path`` answer the calls of this thread or asyncio task until the block ends, whatever others switch to.

            with model.using("robust"):
                scores = model(frames)

        Tasks and `arun` calls that are started in the block take the path too, until the block ends: wait for them in
        it. On demand a path that is not active is loaded at the beginning of the block and dropped at its end.

        Raises:
            PathError: The bundle has no such path.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
            BundleError, EngineError, OSError: On demand only: the path cannot be loaded, or not within the budget.
        """
        return cast("AbstractContextManager[SmartModel]", Block(self._block(path)))

    def _block(self, path: str) -> Generator[SmartModel, None, None]:
        scope, token = Scope(path), None
        try:
            self._state.pin(scope)
            token = self._scopes.enter(scope)
            yield self
        finally:
            scope.ended = True  # the first thing, and no call: an interrupt cannot come before it
            if token is not None:
                self._scopes.leave(token)
            self._state.unpin(scope)

    def reload(self, bundle: str | os.PathLike[str]) -> None:
        """Serve from another bundle, or from this one's directory anew, without an interruption.

        It is loaded beside the old one, checked, and warm before it takes over, so for a moment there must be memory
        for both. The active path keeps its name, options of `load` hold on (``trust`` too), and `stats` go on.

        Raises:
            BundleError: Not a bundle, changed, not signed with the key, or for another input, other classes or without
                one of the paths.
            EngineError: The engine refuses a graph, or there is no room for it.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
            OSError: The system cannot read a file.

            Whatever is raised, the old bundle goes on serving.
        """
        self._state.reload(bundle)
        log_notes(self.notes)

    def memory(self) -> MemoryReport:
        """Return what each path costs, and whether it is loaded."""
        return self._state.memory()

    @property
    def bundle(self) -> Bundle:
        """The bundle that is served."""
        return self._state.bundle

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the bundle on this engine, a sentence each; logged as warnings when it is loaded."""
        return notes_on(self.manifest, engine_name=self.engine_name) + self._state.loader.notes

    @property
    def engine_name(self) -> str:
        """The engine that runs the bundle."""
        return self._state.loader.choice.engine

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the scores."""
        return self.manifest.class_names

    @property
    def stats(self) -> Stats:
        """What the model did so far, a snapshot; stays readable after `close`."""
        return self._state.recorder.snapshot()

    def close(self) -> None:
        """Give back engines and files; calls in flight finish, later ones raise ClosedError. May be called again.

        A load that another thread has begun is waited for. The policy is stopped.
        """
        if self._state.close() and self._policy is not None:
            try:
                self._policy.stop()
            except Exception:  # as above; the model is closed
                self._policy_failed("stop")

    def __repr__(self) -> str:
        try:
            path = self.path
        except ClosedError:
            path = "none, closed"
        return (
            f"SmartModel({self.manifest.package_name}, paths {', '.join(self.paths)}, {self.engine_name}; path {path})"
        )

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a SmartModel cannot be pickled or copied, its engine lives in one process; load the bundle there"
        )

    def __enter__(self) -> SmartModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
