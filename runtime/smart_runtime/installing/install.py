"""Build the plans that a bundle has on this device, and prove each of them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from smart_common.errors import MissingExtraError
from smart_devices.engine_rows import AUTO, REFERENCE_ENGINE, engine_info, engine_names
from smart_devices.engines import engine_status
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.engines import check_available, class_of, create_engine, resolve_engine
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.engine import Engine, EngineOptions
from smart_runtime.engines.plan_keys import FORMAT, Key
from smart_runtime.engines.plan_pruning import Pruned
from smart_runtime.engines.plans import PlanCache
from smart_runtime.engines.trt.installed import Installer, OnPhase, batch_of
from smart_runtime.engines.trt.tensorrt_engine import TensorRtEngine
from smart_runtime.errors import EngineError
from smart_runtime.proofs import NOT_USED, Proof, facts_of, proof, proofs_by_export
from smart_runtime.reference import StoredScores, tolerance_of

RANDOM_IMAGES = 64
_SEED = 0

_KEPT = "it was proved before and stays: look where this bundle comes from, or build it anew with --force"


@dataclass(frozen=True, kw_only=True)
class InstalledPlan:
    """The plan of one graph.

    Attributes:
        name: The path, or ``dense``.
        was_there: Whether it was installed before.
        seconds: What the build took.
        plan_bytes: Its size.
        device_bytes: What it takes of the GPU's memory, other programs' doing meanwhile included.
        layers: Its layers; None where the library does not say.
        sparse: Those that use 2:4 weights; None where the library does not say.
        eligible: Layers of the graph whose weights are 2:4, as the export found.
        batch: The batch sizes that it takes.
        proofs: What it was held against; empty if there was nothing.
    """

    name: str
    was_there: bool
    seconds: float | None
    plan_bytes: int
    device_bytes: int | None
    layers: int | None
    sparse: int | None
    eligible: int
    batch: tuple[int, int, int]
    proofs: tuple[Proof, ...]

    @property
    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        proofs = [{"against": proof.against, **asdict(proof.result)} for proof in self.proofs]
        return {
            "path": self.name,
            "was_there": self.was_there,
            "seconds": self.seconds,
            "plan_bytes": self.plan_bytes,
            "device_bytes": self.device_bytes,
            "layers": self.layers,
            "sparse_layers": self.sparse,
            "eligible_layers": self.eligible,
            "batch": list(self.batch),
            "proofs": proofs,
        }


def installing_engine(name: str) -> type[TensorRtEngine]:
    """Return the engine that ``name`` means, which must be one that has plans; for ``auto`` the best that is here.

    Raises:
        EngineError: It has no plans, or no engine is called that.
        MissingExtraError: It cannot run here.
    """
    meant = _with_plans(name)
    chosen = next((known for known in meant if engine_status(known).available), meant[0])
    check_available(chosen)
    return _class_of(chosen)


def _with_plans(name: str) -> tuple[str, ...]:
    """Return the engines that ``name`` may mean, best first, all of which have plans."""
    having = tuple(known for known in engine_names() if engine_info(known).has_plans)
    if name == AUTO:
        return having
    if name not in engine_names():
        resolve_engine(name)  # which says what there is
    if name not in having:
        raise EngineError(f"{name} needs no installing; load the bundle with it, or choose among {', '.join(having)}")
    return (name,)


def _class_of(name: str) -> type[TensorRtEngine]:
    found = class_of(name)
    assert issubclass(found, TensorRtEngine), "it has plans"  # for the type checker
    return found


def install(
    bundle: Bundle,
    *,
    engine: type[TensorRtEngine],
    names: Sequence[str],
    options: EngineOptions,
    timeout_s: float | None = None,
    force: bool = False,
    on_phase: Callable[[str], OnPhase] = lambda _: lambda _, __: None,
) -> Iterator[InstalledPlan]:
    """Build the plans of the graphs ``names`` that are missing, prove each on the device, and yield it.

    Args:
        bundle: An open bundle.
        engine: From `installing_engine`.
        names: Paths, or ``dense``.
        options: What decides which plans are built.
        timeout_s: What the build of one may take; None for as long as it takes.
        force: Build those anew that are there.
        on_phase: Takes the name of a graph and returns what is told the phases of its build.

    Raises:
        PathError: The bundle has no such graph.
        BundleError: A file of it was changed.
        EngineError: A graph is refused, a build was killed or took too long, or a plan computes something else.
        MissingExtraError: The library or the driver is missing.
    """
    device = Device.shared(options.device)
    for name in names:
        installer = Installer(engine.LIBRARY, device, options, timeout_s=timeout_s, on_phase=on_phase(name))
        yield _install(bundle, name, installer, engine=engine, force=force)


def _install(
    bundle: Bundle,
    name: str,
    installer: Installer,
    *,
    engine: type[TensorRtEngine],
    force: bool,
) -> InstalledPlan:
    manifest = bundle.manifest
    graph = bundle.graph_bytes(name)
    was_there = not force and installer.installed(graph, inputs=manifest.input, outputs=manifest.output) is not None
    proofs: list[Proof] = []

    def prove(running: Engine, *, remedy: str = NOT_USED) -> dict[str, Any]:
        proofs.extend(_proofs(bundle, name, running, graph, options=installer.options))
        return facts_of(name, proofs, remedy=remedy)

    running = engine.of(installer, graph, inputs=manifest.input, outputs=manifest.output, prove=prove, anew=force)
    try:
        assert running.plan is not None, "it was loaded"
        key, facts = running.plan
        measured = {"device_bytes": running.device_bytes}
        if not proofs:  # it was proved before, which may be long ago and by another bundle
            measured |= prove(running, remedy=_KEPT)
    finally:
        running.close()
    installer.cache.set_facts(key, measured)
    batch = batch_of(key)
    return InstalledPlan(
        name=name,
        was_there=was_there,
        seconds=facts.get("seconds"),
        plan_bytes=facts["plan_bytes"],
        device_bytes=measured["device_bytes"],
        layers=facts.get("layers"),
        sparse=facts.get("sparse"),
        eligible=graph.two_four,
        batch=(batch.min, batch.opt, batch.max),
        proofs=tuple(proofs),
    )


def _proofs(bundle: Bundle, name: str, engine: Engine, graph: GraphBytes, *, options: EngineOptions) -> Iterator[Proof]:
    """Hold an engine against the scores in the bundle, and against the reference engine where that is installed."""
    yield from proofs_by_export(engine, bundle, name, options=options)
    if not engine_status(REFERENCE_ENGINE).available:
        return
    manifest = bundle.manifest
    reference = create_engine(REFERENCE_ENGINE, graph, inputs=manifest.input, outputs=manifest.output)
    try:
        images = np.random.default_rng(_SEED).random((RANDOM_IMAGES, *manifest.input.shape), dtype=np.float32)
        expected = np.concatenate([reference.run(images[i : i + 8]) for i in range(0, RANDOM_IMAGES, 8)])
    finally:
        reference.close()
    answered = StoredScores(name=name, images=images, scores=expected, tolerance=tolerance_of(manifest, name))
    yield proof(engine, answered, against=REFERENCE_ENGINE, options=options)


def prune(name: str, *, options: EngineOptions) -> tuple[tuple[Pruned, ...], dict[str, str]]:
    """Remove plans that nothing on this machine can use any more, damaged ones, and timings that no plan needs.

    The plans of an engine that cannot run now, for want of its driver or library, stay, unless they are of a format of
    before: with the driver back they may be of use.

    Args:
        name: The engine whose plans are judged; ``auto`` for every one.
        options: Which GPU, and where plans are kept.

    Returns:
        What went, and the engines whose plans were not judged, each with the reason.
    """
    judges: dict[str, Installer] = {}
    not_judged: dict[str, str] = {}
    for known in _with_plans(name):
        library = _class_of(known).LIBRARY
        try:
            check_available(known)
            judges[library] = Installer(library, Device.shared(options.device), options)
        except (EngineError, MissingExtraError) as error:
            not_judged[known] = str(error)

    def usable(key: Key) -> bool:
        judge = judges.get(key.get("library", ""))
        return key.get("format") == FORMAT and (judge is None or judge.can_use(key))

    return PlanCache(options.cache_dir).prune(usable=usable), not_judged
