"""Build the plans that a bundle has on this device, and prove each of them there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from smart_devices.engine_rows import AUTO, REFERENCE_ENGINE, engine_info, engine_names
from smart_devices.engines import engine_status
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.engines import check_available, class_of, create_engine, resolve_engine
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.engine import Engine, EngineOptions
from smart_runtime.engines.plans import Pruned
from smart_runtime.engines.trt.installed import Installer, OnPhase, batch_of
from smart_runtime.engines.trt.tensorrt_engine import TensorRtEngine
from smart_runtime.errors import EngineError
from smart_runtime.reference import TOLERANCES, ParityResult, StoredScores, compare, stored_scores

RANDOM_IMAGES = 64
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How well a plan agreed with ``against``: ``bundle`` for the scores in it, or an engine that ran here too."""

    against: str
    result: ParityResult


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
    having = [known for known in engine_names() if engine_info(known).has_plans]
    if name != AUTO and name in engine_names() and name not in having:
        raise EngineError(f"{name} needs no installing; load the bundle with it, or choose among {', '.join(having)}")
    if name == AUTO:
        name = next((known for known in having if engine_status(known).available), having[0])
        check_available(name)
    found = class_of(resolve_engine(name))
    assert issubclass(found, TensorRtEngine)  # for the type checker
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
        yield _install(bundle, name, installer, engine=engine, options=options, force=force)


def _install(
    bundle: Bundle,
    name: str,
    installer: Installer,
    *,
    engine: type[TensorRtEngine],
    options: EngineOptions,
    force: bool,
) -> InstalledPlan:
    inputs, outputs = bundle.manifest.input, bundle.manifest.output
    graph = bundle.graph_bytes(name)
    was_there = not force and installer.installed(graph, inputs=inputs, outputs=outputs) is not None
    stored = installer.plan_of(graph, inputs=inputs, outputs=outputs, anew=force)
    key, facts, plan_bytes = stored.key, stored.facts, len(stored.plan)
    del stored  # its bytes
    running = engine.create(graph, inputs=inputs, outputs=outputs, options=options)
    try:
        proofs = tuple(_proofs(bundle, name, running, graph))
        device_bytes = running.device_bytes
    finally:
        running.close()
    for proof in proofs:
        if not proof.result.holds:
            # What was proved before is another bundle's too, and this one's scores may be anybody's.
            kept = bool(facts.get("proofs"))
            if not kept:
                installer.cache.set_aside(key)
            raise EngineError(_disproved(name, proof, kept=kept))
    proved = {"device_bytes": device_bytes, "proved_ns": time.time_ns(), "proofs": [one.against for one in proofs]}
    installer.cache.update(key, proved)
    batch = batch_of(key)
    return InstalledPlan(
        name=name,
        was_there=was_there,
        seconds=facts.get("seconds"),
        plan_bytes=plan_bytes,
        device_bytes=device_bytes,
        layers=facts.get("layers"),
        sparse=facts.get("sparse"),
        eligible=graph.two_four,
        batch=(batch.min, batch.opt, batch.max),
        proofs=proofs,
    )


def _disproved(name: str, proof: Proof, *, kept: bool) -> str:
    result = proof.result
    then = (
        "it was proved before and stays: look where this bundle comes from, or build it anew with --force"
        if kept
        else "it was set aside: try --level 2, and report this with what `smart-run selftest --json` prints"
    )
    return (
        f"the plan of {name!r} computes something else on this device: its scores differ by {result.max_rel_diff:.2g} "
        f"of the largest from {proof.against}, {result.tolerance:.2g} are allowed, or another class is best; {then}"
    )


def _proofs(bundle: Bundle, name: str, engine: Engine, graph: GraphBytes) -> Iterator[Proof]:
    """Hold an engine against the scores in the bundle, and against the reference engine where that is installed."""
    stored = stored_scores(bundle, name)
    if stored is not None:
        yield Proof(against="bundle", result=compare(engine, stored))
    if not engine_status(REFERENCE_ENGINE).available:
        return
    manifest = bundle.manifest
    reference = create_engine(REFERENCE_ENGINE, graph, inputs=manifest.input, outputs=manifest.output)
    try:
        images = np.random.default_rng(_SEED).random((RANDOM_IMAGES, *manifest.input.shape), dtype=np.float32)
        expected = np.concatenate([reference.run(images[i : i + 8]) for i in range(0, RANDOM_IMAGES, 8)])
    finally:
        reference.close()
    tolerance = TOLERANCES[graph.precision] if stored is None else stored.tolerance
    answered = StoredScores(name=name, images=images, scores=expected, tolerance=tolerance)
    yield Proof(against=REFERENCE_ENGINE, result=compare(engine, answered))


def prune(*, engine: type[TensorRtEngine], options: EngineOptions) -> tuple[Pruned, ...]:
    """Remove the plans of ``engine``'s library, and damaged ones, that nothing on this machine can use any more.

    Those of the other library stay: they are its own business.
    """
    installer = Installer(engine.LIBRARY, Device.shared(options.device), options)
    return installer.cache.prune(usable=lambda key: key.get("library") != engine.LIBRARY or installer.can_use(key))
