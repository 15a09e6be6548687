"""`SmartModel`: one bundle, its paths ready, one of them answering."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn, cast

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.bundle.signatures import PublicKey, public_key
from smart_runtime.calls import Both, run_on_all, run_on_one
from smart_runtime.classify import Prediction, best_classes
from smart_runtime.engines import AUTO, EngineOptions, Scores
from smart_runtime.engines.engine import MAX_BYTES
from smart_runtime.errors import ClosedError, EngineError, InputError
from smart_runtime.frames import ChannelOrder, Picture, preprocess
from smart_runtime.inputs import Images
from smart_runtime.memory import RESIDENT, MemoryReport, Mode
from smart_runtime.notes import log_notes, notes_on
from smart_runtime.path_state import PathState
from smart_runtime.policies.policy import Policy, name_of
from smart_runtime.scopes import Block, Scope, Scopes
from smart_runtime.serving import Loader, Result
from smart_runtime.stats import Stats
from smart_runtime.steering import Steering, policy_of

if TYPE_CHECKING:
    from smart_runtime.audit.audit_log import AuditLog


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
        self._steering = Steering(state)
        self._audit: AuditLog | None = None
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
        policy: Policy | str | None = None,
        audit: str | os.PathLike[str] | AuditLog | None = None,
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
            policy: Looks at every call and may switch: see `Policy`; one that needs no arguments by its name too, as in
                ``"tripwire"``. None leaves switching to you. On demand the call after which it switches waits for the
                other path to be loaded.
            audit: A file that every switch is written to, or an `AuditLog`, which says more.

        Raises:
            BundleError: Not a bundle, or any byte of it was changed, added or lost; SignatureError, it is not signed
                with the key.
            PathError: The bundle has no such path.
            InputError: ``policy`` is none.
            AuditError: ``audit`` is another file than an audit log, or another model's.
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
        policy = policy_of(policy)
        open_loader = partial(Loader, trust=public_key(trust), engine=engine, options=options)
        state = PathState.load(bundle, path=path, memory=memory, open_loader=open_loader)
        model = None
        try:
            model = cls(state)
            if audit is not None:
                model._keep_audit(audit, policy)
            if policy is not None:
                unobserved = partial(run_on_one, state, scope=model._scopes.path, of_policy=True)
                model._steering.start(policy, run=unobserved, using=model.using)
        except BaseException:
            state.close()
            if model is not None:
                model._end_audit()
            raise
        return model

    def _keep_audit(self, audit: str | os.PathLike[str] | AuditLog, policy: Policy | None) -> None:
        from smart_runtime.audit.audit_log import AuditLog  # noqa: PLC0415  # only for who asks for it

        self._audit = audit if isinstance(audit, AuditLog) else AuditLog(audit)
        self._audit.begin(self._state, engine=self.engine_name, policy=None if policy is None else name_of(policy))

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
        result = run_on_one(self._state, images, scope=self._scopes.path)
        if self._steering.policy is not None:
            self._steering.observe(result, images)
        return result

    def both(self, images: Images) -> Both:
        """Return the scores of every path, mixes not counted, for the same images; arguments and errors as of `run`.

            both = model.both(frames)
            disagree = both.scores["clean"].argmax(1) != both.scores["robust"].argmax(1)

        The images are checked and converted once, on a GPU copied once for each path, and the paths run one after the
        other: on a CPU one call uses all the cores that the engine was given already (benchmarks/bench_both.py).
        Neither the active path nor a scope matters. `stats` count a call on each path, no policy sees it.

        Raises:
            EngineError: Also if paths are loaded on demand.
        """
        return run_on_all(self._state, images)

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

    @property
    def policy(self) -> Policy | None:
        """The policy that `load` was given, None without one; ``model.policy.status()`` says what it sees."""
        return self._steering.policy

    def switch(self, path: str, reason: str = "") -> None:
        """Let ``path`` answer every call that begins after this returns; calls in flight finish on their path.

        ``reason`` is kept in `stats`. Switching to the path that is active already changes and counts nothing. Calls
        inside of `using` stay with their scope's path. A policy is overruled, also where the path stays the same: it
        goes on watching, but what it asks for is only counted, until `follow_policy`.

        Raises:
            PathError: The bundle has no such path; the old one goes on answering.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
            BundleError, EngineError, OSError: On demand only: the path cannot be loaded, or is a mix; the old one goes
                on answering.
        """
        self._steering.switch_by_hand(path, reason)

    def follow_policy(self) -> None:
        """Let the policy switch again, after a path was set by hand; the path stays until it asks for another.

        Raises:
            InputError: There is no policy.
            ClosedError: As for `switch`.
        """
        self._steering.follow()

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
                one of the paths or mixes.
            EngineError: The engine refuses a graph, or there is no room for it, or for all paths while a mix answers.
            ClosedError: The model was closed, or this process was forked from the one that loaded it.
            OSError: The system cannot read a file.

            Whatever is raised, the old bundle goes on serving.
        """
        self._state.reload(bundle)
        log_notes(self.notes)
        self._steering.reloaded()

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
        return replace(
            self._state.recorder.snapshot(),
            overridden=self._steering.overridden,
            audit_failures=0 if self._audit is None else self._audit.failures,
        )

    def metrics(self) -> str:
        """Return `stats`, and what the policy's ``status`` has of numbers, in Prometheus's text format 0.0.4.

        Serve it yourself, as ``text/plain; version=0.0.4``: examples/07_metrics.py shows how. Also after `close`.
        """
        from smart_runtime.metrics import prometheus_text  # noqa: PLC0415  # only for who is asked for them

        facts = {"bundle": self.bundle.digest, "engine": self.engine_name, "policy": self._steering.name or ""}
        status = self._steering.status()  # first: a failure of it counts
        active = self._state.path if self._state.loaded else None
        return prometheus_text(self.stats, paths=self.paths, active=active, facts=facts, status=status)

    def close(self) -> None:
        """Give back engines and files; calls in flight finish, later ones raise ClosedError. May be called again.

        A load that another thread has begun is waited for. The policy is stopped, the audit log is brought to its end.
        """
        try:
            if self._state.close():
                self._steering.stop()
        finally:
            if self._state.unusable:  # else an interrupt came before
                self._end_audit()

    def _end_audit(self) -> None:
        if self._audit is not None:
            self._audit.end(self._state)

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
