"""Engine plans by TensorRT-RTX, NVIDIA's engine for GeForce and RTX cards: built from a bundle's graphs without a GPU.

    for plan in build_plans("clean", file, two_four=False, folder=bundle, inputs=image, capabilities=("8.6", "8.9")):
        print(plan.file, plan.bytes)

A plan is the library's own bytes in a file, nothing before or after them; what it is stands in the manifest. It runs
with the very version of the library that built it. One plan serves all compute capabilities asked for, as NVIDIA's
default does (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html): it holds the
weights once and is 8 bytes larger than one for 8.6 alone (benchmarks/results/rtx.json). Only Turing, 7.5, has one of
its own, since the same page advises against plans that serve it and others. The rest of the work, compiling kernels for
the very card, the library does there when an engine is first used. Jetsons are none of its devices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smart_common.errors import few, shortened
from smart_devices import MissingExtraError, Profile, Target, load_profile, profile_names
from smart_export.errors import ExportError
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec
from smart_runtime.engines import BatchRange
from smart_runtime.engines.onnx_inline import inlined
from smart_runtime.engines.onnx_weights import external_locations
from smart_runtime.engines.trt.build import BuildRecipe, BuildRefusedError, plan_in_process
from smart_runtime.engines.trt.library import Library, LibraryName, load_library
from smart_runtime.errors import EngineError

FOLDER = "engines"
_ALONE = "7.5"
_LIBRARY: LibraryName = "tensorrt-rtx"


BATCH = BatchRange()
"""The batch sizes that a plan takes, and the one that it is tuned for."""


@dataclass(frozen=True)
class Plan:
    """One plan in the bundle.

    Attributes:
        graph: the path, or ``dense``.
        file: relative to the bundle.
        compute_capabilities: of the GPUs that it runs on, such as ``8.6``.
        tensorrt_rtx: the version of the library that built it, and that it needs.
        sparse_weights: whether the library was told to look for 2:4 weights.
        seconds: what the build took.
    """

    graph: str
    file: str
    compute_capabilities: tuple[str, ...]
    tensorrt_rtx: str
    batch: BatchRange
    sparse_weights: bool
    bytes: int
    seconds: float

    @property
    def record(self) -> dict[str, Any]:
        """What stands of it in the manifest."""
        found = {**asdict(self), "compute_capabilities": list(self.compute_capabilities)}
        del found["seconds"]
        return found


def library() -> Library:
    """Return the library; raises MissingExtraError if it is not installed."""
    try:
        return load_library(_LIBRARY)
    except MissingExtraError as error:
        raise MissingExtraError(
            "--rtx needs the TensorRT-RTX library, which is not installed; pip install 'smart-edge[tensorrt-rtx]'"
        ) from error


def known_capabilities() -> dict[str, Any]:
    """Return what the installed library builds for: its constants by compute capability, lowest first."""
    return library().capabilities()


def parse_capabilities(text: str, *, target: Target) -> tuple[str, ...]:
    """Return the compute capabilities that ``text``, such as ``8.6,8.9,12.0``, names, lowest first and each once.

    Raises:
        ExportError: the library does not build for one of them, or the target has no graphics card.
        MissingExtraError: the library is not installed.
    """
    if target.profile.kind != "gpu":
        remedy = {
            "jetson": "TensorRT-RTX supports no Jetson; leave out --rtx: a Jetson builds its engine from the bundle's "
            "ONNX graphs (docs/jetson.md)",
            "cpu": "graphs for a CPU are made in other ways; use --target desktop-gpu, or leave out --rtx",
        }
        raise ExportError(
            f"--rtx needs a target with a graphics card, which {target.name} is not: {remedy[target.profile.kind]}"
        )
    known = known_capabilities()
    found = {part.strip() for part in text.split(",")}
    for name in sorted(found - known.keys()):
        jetsons = [p.title for p in map(load_profile, profile_names()) if p.kind == "jetson" and _is_of(p, name)]
        if jetsons:
            raise ExportError(
                f"expected compute capabilities out of {', '.join(known)} for --rtx, got {name}, which is that of "
                f"{jetsons[0]}, and TensorRT-RTX supports no Jetson; export for it with its own --target, without --rtx"
            )
        raise ExportError(
            f"expected compute capabilities out of {', '.join(known)} for --rtx, got {name!a:.40}; `smart-devices "
            f"show` says which one a card has"
        )
    return tuple(name for name in known if name in found)


def _is_of(profile: Profile, capability: str) -> bool:
    return profile.compute_capability is not None and profile.compute_capability.value == capability


def target_note(target: Target, capabilities: Sequence[str]) -> str | None:
    """Return a note if none of the plans would run on the target's own card."""
    if any(_is_of(target.profile, name) for name in capabilities):
        return None
    own = target.profile.compute_capability
    return f"no plan is for {target.name} itself, whose compute capability is {own or 'unknown'}"


def together(capabilities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return which capabilities share a plan: all but Turing's."""
    groups = (tuple(name for name in capabilities if (name == _ALONE) is alone) for alone in (True, False))
    return [group for group in groups if group]


def build_plans(
    name: str, onnx_file: Path, *, two_four: bool, folder: Path, inputs: InputSpec, capabilities: Sequence[str]
) -> Iterator[Plan]:
    """Write the plans of the graph ``name`` into ``folder / "engines"`` and yield them as they are done.

    ``two_four`` says whether any of its weights are 2:4; ``capabilities`` are from :func:`parse_capabilities`.

    Raises:
        ExportError: the library cannot read or build a graph; the message names the operators.
        MissingExtraError: the library is not installed.
        OSError: the system cannot write a file.
    """
    version = library().version
    (folder / FOLDER).mkdir(exist_ok=True)  # a path may have that name
    for group in together(capabilities):
        started = time.perf_counter()
        plan = plan_from_onnx(onnx_file, inputs=inputs, capabilities=group, sparse_weights=two_four)
        file = f"{FOLDER}/{name}-{'-'.join(group)}.plan"
        (folder / file).write_bytes(plan)
        yield Plan(
            graph=name,
            file=file,
            compute_capabilities=group,
            tensorrt_rtx=version,
            batch=BATCH,
            sparse_weights=two_four,
            bytes=plan.nbytes,
            seconds=time.perf_counter() - started,
        )


def plan_from_onnx(
    file: Path,
    *,
    inputs: InputSpec,
    capabilities: Sequence[str],
    sparse_weights: bool = False,
    weightless: bool = False,
) -> memoryview:
    """Return the plan of an ONNX file, whose weights lie beside it, for batches of ``BATCH``.

    Args:
        file: the graph.
        inputs: its one input.
        capabilities: of the GPUs that the one plan is for, out of :func:`known_capabilities`.
        sparse_weights: let the library look for 2:4 weights (``SPARSE_WEIGHTS``).
        weightless: leave the weights out, to be filled in from the ONNX file on the device (``STRIP_PLAN``). The
            library compiles on a GPU for that: without one it refuses (1.5, 1.6 and 1.7.1 were tried).

    Raises:
        ExportError: the library cannot read or build the graph.
        MissingExtraError: the library is not installed.
    """
    library()  # says in our words that it is missing
    recipe = BuildRecipe(
        library=_LIBRARY,
        batch=BATCH,
        inputs=inputs,
        outputs=None,
        sparse_weights=sparse_weights,
        capabilities=tuple(capabilities),
        weightless=weightless,
    )
    try:
        return memoryview(plan_in_process(inlined(_graph_bytes(file)), recipe).plan)
    except BuildRefusedError as error:
        raise _refused(file, capabilities, error.reason) from error
    except EngineError as error:
        raise _refused(file, capabilities, str(error)) from error


def _graph_bytes(file: Path) -> GraphBytes:
    model = file.read_bytes()
    beside = external_locations(model)
    if len(beside) > 1:
        raise ExportError(f"expected the weights of {file} in one file, got {few(beside)}; save it with one")
    weights = (file.parent / beside[0]).read_bytes() if beside else None
    return GraphBytes(model=model, weights=weights, weights_name=beside[0] if beside else None)


def _refused(file: Path, capabilities: Sequence[str], why: str) -> ExportError:
    return ExportError(
        f"{library().title} refuses {file.parent.name}/{file.name} for compute capability "
        f"{', '.join(capabilities)}: {shortened(why)}; leave out --rtx, or the capability, to export without"
    )
