"""The plans of this device: found in the cache, or built into it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, cast, get_args

from smart_devices import detect
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.graph_bytes import GraphBytes, GraphIdentity
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.engine import BatchRange, EngineOptions
from smart_runtime.engines.onnx_inline import inlined
from smart_runtime.engines.plan_keys import Key, plan_key, timing_name
from smart_runtime.engines.plans import Entry, PlanCache, StoredPlan
from smart_runtime.engines.trt.build import BuildRecipe, build_plan
from smart_runtime.engines.trt.library import LibraryName, Precision, load_library
from smart_runtime.errors import DeviceTakenError, DisprovedError, EngineError

LEVEL = 3
"""TensorRT's own default (`IBuilderConfig.builder_optimization_level`)."""

JETSON_BATCH, CARD_BATCH = BatchRange(1, 1, 8), BatchRange(1, 8, 64)
"""What is built for unless somebody says otherwise: a board answers frames as they come, a card serves many."""

PROVED = "proved_ns"
"""The fact of a plan that says when it was proved, in nanoseconds since 1970."""

_log = logging.getLogger(__name__)

OnPhase = Callable[[str, float], None]
"""Told the phase that a build is in, and its seconds so far."""

TryOut = Callable[[StoredPlan], Mapping[str, Any]]
"""Loads a plan that was just built and proves it; returns what to keep with it."""


class PlanRefusedError(EngineError):
    """The library does not take a plan that it built itself."""


class Installer:
    """Finds and builds the plans of one library on one device.

    Attributes:
        library: The library.
        device: The device.
        options: What decides which plan a graph has, and how it runs.
        cache: Where the plans are.
    """

    def __init__(
        self,
        library: LibraryName,
        device: Device,
        options: EngineOptions,
        *,
        timeout_s: float | None = None,
        on_phase: OnPhase | None = None,
    ) -> None:
        """Take what decides which plan a graph has; ``on_phase`` says that somebody is watching.

        Raises:
            MissingExtraError: The library does not import.
            EngineError: There is no place for a cache.
        """
        self.library = load_library(library)
        self.cache = PlanCache(options.cache_dir)
        self._name = library
        self.device = device
        self.options = options
        self._timeout_s = timeout_s
        self._on_phase = on_phase
        asked = {"batch": options.batch, "level": options.level, "workspace_bytes": options.workspace_bytes}
        self._free = {name for name, value in asked.items() if value is None}

    def key_of(self, graph: GraphBytes | GraphIdentity, *, inputs: InputSpec, outputs: OutputSpec) -> Key:
        """Return all that decides which plan a build of ``graph`` would give here."""
        options = self.options
        return plan_key(
            library=self._name,
            version=self.library.version,
            graph=graph,
            inputs=inputs,
            outputs=outputs,
            batch=options.batch or (JETSON_BATCH if self.device.integrated else CARD_BATCH),
            precision=graph.precision,
            recipe=graph.recipe,
            tf32=options.tf32,
            sparse=graph.two_four > 0,
            level=LEVEL if options.level is None else options.level,
            workspace_bytes=options.workspace_bytes,
            gpu=self.device,
            system=_system(self.device),
        )

    def installed(self, graph: GraphBytes | GraphIdentity, *, inputs: InputSpec, outputs: OutputSpec) -> Entry | None:
        """Return what is known of the plan that ``graph`` has here, of several the newest; None if it has none.

        Whatever the options leave open may be as whoever installed it has chosen.
        """
        return self.cache.newest(self.key_of(graph, inputs=inputs, outputs=outputs), free=self._free)

    def of_paths(self, bundle: Bundle) -> dict[str, Entry | None]:
        """Return what is known of the plans of all paths of ``bundle``; their bytes are not read."""
        manifest = bundle.manifest
        return {
            path: self.installed(bundle.identity(path), inputs=manifest.input, outputs=manifest.output)
            for path in manifest.paths
        }

    def can_use(self, key: Key) -> bool:
        """Say whether this machine could ask for the plan of ``key``."""
        other = self.key_of(_NO_GRAPH, inputs=_NO_INPUT, outputs=_NO_OUTPUT)
        return all(key.get(name) == other[name] for name in ("format", "library", "version", "gpu", "system"))

    def load(
        self,
        graph: GraphBytes,
        *,
        inputs: InputSpec,
        outputs: OutputSpec,
        load: Callable[[StoredPlan], None],
        prove: Callable[[], Mapping[str, Any]],
        anew: bool = False,
    ) -> StoredPlan:
        """Load the plan of ``graph`` and return it: the installed one, or one that is built now.

        What is built is kept only once it was loaded and ``prove`` has returned; meanwhile an older plan stays in its
        place. An installed plan of which no proof is known is proved as well, and set aside if that fails.

        Args:
            graph: The graph.
            inputs: What it takes.
            outputs: What it gives.
            load: Loads a plan; called once more with another one where it raises `PlanRefusedError`.
            prove: Proves what was loaded, see `smart_runtime.engines.engine.Prove`.
            anew: Build in any case.

        Raises:
            EngineError: It cannot be built, see `build_plan`, or loaded; DisprovedError, it computes something else.
        """
        tried = False

        def try_out(built: StoredPlan) -> Mapping[str, Any]:
            nonlocal tried
            load(built)
            tried = True
            return prove()

        stored = None if anew else self._found(graph, inputs=inputs, outputs=outputs)
        if stored is None:
            key = self.key_of(graph, inputs=inputs, outputs=outputs)
            self._say_missing(key)
        else:
            key = stored.key
            try:
                load(stored)
            except PlanRefusedError as error:  # it may be damaged in a way that its checksum does not show
                _log.warning("%s; building it again", str(error))  # not its traceback, which holds the plan
                self.cache.set_aside(key)
                stored = None
        if stored is None:
            stored = self._build(key, graph, inputs=inputs, outputs=outputs, try_out=try_out, anew=anew)
            if not tried:  # another process has built it
                load(stored)
        if not tried and PROVED not in stored.facts:
            self._prove_installed(stored.key, prove)
        return stored

    def _found(self, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec) -> StoredPlan | None:
        entry = self.installed(graph, inputs=inputs, outputs=outputs)
        return None if entry is None else self.cache.find(entry.key)

    def _say_missing(self, key: Key) -> None:
        if self._on_phase is None:
            why = self.cache.explain_missing(key) or "no plan of this graph is installed"
            _log.warning("%s; building it now, which may take minutes: `smart-run install BUNDLE` does it before", why)

    def _prove_installed(self, key: Key, prove: Callable[[], Mapping[str, Any]]) -> None:
        try:
            facts = prove()
        except DisprovedError:
            self.cache.set_aside(key)
            raise
        if facts:
            try:
                self.cache.set_facts(key, facts)
            except EngineError as error:  # a disk that is full, for one: it is proved again next time
                _log.warning("that the plan is proved cannot be kept: %s", str(error))

    def _build(
        self,
        key: Key,
        graph: GraphBytes,
        *,
        inputs: InputSpec,
        outputs: OutputSpec,
        try_out: TryOut,
        anew: bool,
    ) -> StoredPlan:
        def build() -> tuple[bytes, Mapping[str, Any]]:
            plan, facts = self._built(key, graph, inputs=inputs, outputs=outputs)
            return plan, {**facts, **try_out(StoredPlan(key=key, plan=plan, facts=facts))}

        return self.cache.build_once(key, build, on_wait=self._say_waiting, anew=anew)

    def _built(
        self, key: Key, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec
    ) -> tuple[bytes, Mapping[str, Any]]:
        options = self.options
        recipe = BuildRecipe(
            library=self._name,
            batch=batch_of(key),
            inputs=inputs,
            outputs=outputs,
            precision=_precision(graph),
            tf32=options.tf32,
            sparse_weights=graph.two_four > 0,
            workspace_bytes=key["workspace_bytes"],
            level=key["level"],
            device=options.device,
            timing_cache=self.cache.folder / timing_name(key),
        )
        try:
            built = build_plan(inlined(graph), recipe, timeout_s=self._timeout_s, on_phase=self._on_phase)
        except DeviceTakenError as error:
            if not self.device.is_in_use:
                raise
            raise EngineError(  # it is we who have it
                f"{self.device} serves one process at a time and this one has it, but a build is a process of its own; "
                "install each path alone with `smart-run install BUNDLE --path NAME`, or let several processes in with "
                "`nvidia-smi --compute-mode=DEFAULT`"
            ) from error
        if built.version != self.library.version:  # it was upgraded: the child has the new one
            raise EngineError(
                f"{self.library.title} was replaced by {built.version} while this process runs, which cannot use its "
                "plans; start the process again"
            )
        facts = {name: value for name, value in asdict(built).items() if name != "plan"}
        return built.plan, {**facts, "eligible": graph.two_four, "plan_bytes": len(built.plan)}

    def _say_waiting(self, pid: int | None) -> None:
        _log.warning("waiting for another build of this machine%s", "" if pid is None else f", that of process {pid}")


def batch_of(key: Key) -> BatchRange:
    """Return the batch sizes that the plan of ``key`` takes."""
    return BatchRange(**key["batch"])


def _precision(graph: GraphBytes) -> Precision:
    for known in get_args(Precision):
        if graph.precision == known:
            return cast("Precision", known)
    raise EngineError(f"expected a graph in {', '.join(get_args(Precision))}, got {graph.precision!a:.20}")


_NO_GRAPH = GraphIdentity(digests=("", None), precision="", recipe=None, two_four=0)
_NO_INPUT, _NO_OUTPUT = InputSpec(name="", channels=1, height=1, width=1), OutputSpec(name="", classes=1)


@lru_cache(maxsize=1)
def _l4t() -> str | None:
    jetson = detect().jetson
    return None if jetson is None else jetson.l4t


def _system(device: Device) -> str:
    return f"L4T {_l4t()}" if _l4t() else f"CUDA {device.cuda_version.split('.')[0]}"
