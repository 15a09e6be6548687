"""The plans of this device: found in the cache, or built into it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from smart_devices import detect
from smart_runtime.bundle.bundle import Bundle, GraphBytes, GraphIdentity
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines.cuda.device import Device
from smart_runtime.engines.engine import BatchRange, EngineOptions
from smart_runtime.engines.onnx_inline import inlined
from smart_runtime.engines.plan_keys import Key, plan_key
from smart_runtime.engines.plans import PlanCache, StoredPlan
from smart_runtime.engines.trt.build import BuildRecipe, BuiltPlan, build_plan
from smart_runtime.engines.trt.library import LibraryName, load_library
from smart_runtime.errors import EngineError

JETSON_BATCH, CARD_BATCH = BatchRange(1, 1, 8), BatchRange(1, 8, 64)
"""What is built for unless somebody says otherwise: a board answers frames as they come, a card serves many."""

_log = logging.getLogger(__name__)

OnPhase = Callable[[str, float], None]
"""Told the phase that a build is in, and its seconds so far."""


class Installer:
    """Finds and builds the plans of one library on one device.

    Attributes:
        library: The library.
        batch: The batch sizes that plans are built for.
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
        """Take what decides which plan a graph has.

        Raises:
            MissingExtraError: The library does not import.
            EngineError: There is no place for a cache.
        """
        self.library = load_library(library)
        self.batch = options.batch or (JETSON_BATCH if device.integrated else CARD_BATCH)
        self.cache = PlanCache(options.cache_dir)
        self._name = library
        self._device = device
        self._options = options
        self._timeout_s = timeout_s
        self._on_phase = on_phase

    def key_of(self, graph: GraphBytes | GraphIdentity, *, inputs: InputSpec, outputs: OutputSpec) -> Key:
        """Return all that decides which plan ``graph`` has here."""
        options = self._options
        return plan_key(
            engine=self._name,
            library=self._name,
            version=self.library.version,
            graph=graph,
            inputs=inputs,
            outputs=outputs,
            batch=self.batch,
            precision=graph.precision,
            recipe=graph.recipe,
            tf32=options.tf32,
            sparse=graph.two_four > 0,
            level=options.level,
            workspace_bytes=options.workspace_bytes,
            gpu=self._device,
            system=_system(self._device),
        )

    def has_all(self, bundle: Bundle) -> bool:
        """Say whether the plans of all paths of ``bundle`` are there; their bytes are not read."""
        manifest = bundle.manifest
        return all(
            self.cache.has(self.key_of(bundle.identity(path), inputs=manifest.input, outputs=manifest.output))
            for path in manifest.paths
        )

    def plan_of(self, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec) -> StoredPlan:
        """Return the plan of ``graph``, built now if it is not installed.

        Raises:
            EngineError: It cannot be built; see `build_plan`.
        """
        key = self.key_of(graph, inputs=inputs, outputs=outputs)
        found = self.cache.find(key)
        if found is not None:
            return found
        if self._on_phase is None:
            why = self.cache.explain_missing(key) or "no plan of this graph is installed"
            _log.warning("%s; building it now, which may take minutes: `smart-run install BUNDLE` does it before", why)
        return self.cache.build_once(
            key, lambda: self._built(graph, inputs=inputs, outputs=outputs), on_wait=self._say_waiting
        )

    def rebuilt(self, key: Key, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec) -> StoredPlan:
        """Put the plan of ``key`` aside and return a new one."""
        self.cache.set_aside(key)
        return self.cache.build_once(
            key, lambda: self._built(graph, inputs=inputs, outputs=outputs), on_wait=self._say_waiting
        )

    def _built(self, graph: GraphBytes, *, inputs: InputSpec, outputs: OutputSpec) -> tuple[bytes, Mapping[str, Any]]:
        if graph.precision == "int8" and graph.recipe == "cpu":
            raise EngineError(
                f"{self.library.title} takes no int8 graphs of the recipe `cpu`; export for this device, "
                "`smart-export build --target desktop-gpu` for one"
            )
        options = self._options
        started = time.perf_counter()
        built = build_plan(
            inlined(graph),
            BuildRecipe(
                library=self._name,
                batch=self.batch,
                inputs=inputs,
                outputs=outputs,
                precision=graph.precision,
                tf32=options.tf32,
                sparse_weights=graph.two_four > 0,
                workspace_bytes=options.workspace_bytes,
                level=options.level,
                device=options.device,
                capabilities=None,
                timing_cache=None,
            ),
            timeout_s=self._timeout_s,
            on_phase=self._on_phase,
        )
        return built.plan, _facts(built, eligible=graph.two_four, seconds=time.perf_counter() - started)

    def _say_waiting(self, pid: int | None) -> None:
        _log.warning("waiting for another build of this machine%s", "" if pid is None else f", that of process {pid}")


def _facts(built: BuiltPlan, *, eligible: int, seconds: float) -> dict[str, Any]:
    known = {name: value for name, value in asdict(built).items() if name != "plan"}
    return {**known, "eligible": eligible, "seconds": seconds}


@lru_cache(maxsize=1)
def _l4t() -> str | None:
    jetson = detect().jetson
    return None if jetson is None else jetson.l4t


def _system(device: Device) -> str:
    return f"L4T {_l4t()}" if _l4t() else f"CUDA {device.cuda_version.split('.')[0]}"
