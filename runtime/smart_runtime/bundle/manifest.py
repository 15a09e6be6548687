"""The bundle's ``manifest.json`` as frozen values; see docs/formats.md for what each field means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Literal, TypeAlias, cast

from smart_common.documents import JsonObject, Reader, parse_document
from smart_common.errors import shortened
from smart_common.mask_info import MaskInfo, read_mask_info
from smart_common.roles import Role, default_role
from smart_runtime.bundle.mixes import FittedTemperature, MixInfo, read_mixes, read_temperature
from smart_runtime.bundle.package import check_package, file_name
from smart_runtime.errors import BundleError, PathError

FORMAT_VERSION = 1
"""The newest bundle format that this reader understands, and the one that the exporter writes."""

DENSE = "dense"
"""The name of the baseline graph, which no path may have."""

MAX_BYTES = 4 * 1024 * 1024
"""No manifest is larger: one of ResNet-152 with all its layers is below 400 KB."""

PATH_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""What a path's name looks like (match it fully)."""

# A runtime reserves memory by these numbers before it has seen a graph; each is far above what any classifier has.
MAX_PATHS = 16
MAX_CHANNELS = 4096
MAX_SIDE = 65_536
MAX_ELEMENTS = 2**27
"""Of one image: 512 MiB of float32."""
MAX_CLASSES = 2**20
MAX_REFERENCE_IMAGES = 64

Colour: TypeAlias = Literal["RGB", "L"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """The device that a bundle was made for; ``kind`` is ``jetson``, ``gpu`` or ``cpu``, None where it is not said."""

    name: str
    profile: str
    kind: str | None


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """A graph's one input: float32, (N, channels, height, width), values in [0, 1], N free."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image: (channels, height, width)."""
        return (self.channels, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """A graph's one output: float32 logits, (N, classes)."""

    name: str
    classes: int


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture of any size becomes an input; ``colour`` is None where pictures cannot be read, only arrays."""

    colour: Colour | None
    resize: Literal["shorter-side"]
    interpolation: Literal["bilinear"]
    crop: Literal["center"]


@dataclass(frozen=True, kw_only=True)
class GraphInfo:
    """One graph of the bundle: a path, or the dense baseline.

    ``macs`` and ``parameters`` are of one image and of the folded network; ``bytes`` is the size of the graph and
    weights files together. ``tolerance``, ``max_rel_diff`` and ``argmax_agreement`` say how it was verified at export;
    these and the densities are None where the manifest has none. ``role`` is what a path is for; the baseline has none.
    ``calibration`` says how its scores become probabilities.
    ``layers``, ``metrics`` and ``gate`` (what the path's accuracies lost in the export) are the manifest's own JSON
    objects.
    """

    name: str
    role: Role | None
    file: str
    weights: str | None
    parameters: int
    macs: int
    bytes: int
    density: float | None
    parameter_density: float | None
    tolerance: float | None
    max_rel_diff: float | None
    argmax_agreement: float | None
    layers: tuple[JsonObject, ...]
    metrics: JsonObject | None
    gate: JsonObject | None
    calibration: FittedTemperature | None = None

    @property
    def temperature(self) -> float:
        """What divides its scores before they become probabilities; 1 where none was fitted."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def files(self) -> tuple[str, ...]:
        """The files of this graph, relative to the bundle: the graph, then its weights if it has any."""
        return (self.file,) if self.weights is None else (self.file, self.weights)

    @property
    def two_four(self) -> int:
        """How many layers have weights that an engine takes for 2:4 sparse, as the export found."""
        return sum(layer.get("why_not_two_four", "") is None for layer in self.layers)

    @property
    def weights_name(self) -> str | None:
        """What the graph's external tensors call the weights file: its name in the graph's own directory."""
        return None if self.weights is None else PurePosixPath(self.weights).name


@dataclass(frozen=True, kw_only=True)
class ReferenceFiles:
    """The file of ``images`` images, and by graph the file of what it answered at export: `smart_runtime.reference`."""

    images: int
    inputs: str
    scores: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle says about itself.

    ``reference`` is None in bundles of before smart-edge kept scores in them, ``masks`` of before it described masks.
    ``recipe`` is the one that its int8 graphs were quantised by, None for other precisions. ``paths`` keeps the
    manifest's order; ``shares`` is what they have in common: ``weights``, or ``nothing`` where each is a network of its
    own; ``quantization``, ``gate`` (what judged the export), ``tripwire`` and ``training`` are its own JSON objects.
    """

    package_name: str
    package_version: str
    format_version: int
    created_by: str
    target: Target
    precision: str
    recipe: str | None
    quantization: JsonObject | None
    gate: JsonObject | None
    default_path: str
    shares: str
    input: InputSpec
    output: OutputSpec
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    paths: Mapping[str, GraphInfo]
    mixes: Mapping[str, MixInfo]
    baseline: GraphInfo | None
    reference: ReferenceFiles | None
    masks: MaskInfo | None
    tripwire: JsonObject | None
    training: JsonObject

    @property
    def choices(self) -> tuple[str, ...]:
        """What a model can answer by: the paths, then the mixes."""
        return (*self.paths, *self.mixes)

    @property
    def graphs(self) -> tuple[GraphInfo, ...]:
        """Every graph: the baseline first where there is one, then the paths."""
        baseline = () if self.baseline is None else (self.baseline,)
        return (*baseline, *self.paths.values())

    def reference_files(self, name: str) -> tuple[str, ...]:
        """Return the files that say what the graph ``name`` answered at export; empty if there are none."""
        if self.reference is None or name not in self.reference.scores:
            return ()
        return self.reference.inputs, self.reference.scores[name]

    def graph(self, name: str) -> GraphInfo:
        """Return the path, or the baseline, that is called ``name``.

        Raises:
            PathError: No graph is called that.
        """
        for graph in self.graphs:
            if graph.name == name:
                return graph
        names = ", ".join(repr(graph.name) for graph in self.graphs)
        raise PathError(f"unknown graph {name!r}; the bundle has {names} (`smart-run info` lists them)")


def parse_manifest(data: bytes) -> Manifest:
    """Return what the bytes of a ``manifest.json`` say.

    Unknown keys of ours are ignored; in the rest, which ONNX Runtime's own reader would act on, they are refused.
    ``data`` may come from anyone: only BundleError comes out.

    Raises:
        BundleError: Not JSON, a newer format, or a field that is missing, of the wrong type or out of range.
    """
    if len(data) > MAX_BYTES:
        raise _damaged(f"expected at most {MAX_BYTES} bytes, got {len(data)}")
    root = parse_document(data, damaged=_damaged)
    ours = root.object("additional_metadata").object("smart_edge")
    version = ours.integer("format_version", low=1)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"expected bundle format {FORMAT_VERSION} or older, got {version}; "
            "install a newer smart-edge on this device or export the bundle again with this one"
        )
    manifest = _parse_ours(root, ours, version)
    check_package(root, files={name: graph.file for name, graph in manifest.paths.items()})
    return manifest


def _parse_ours(root: Reader, ours: Reader, version: int) -> Manifest:
    target, image, scores = ours.object("target"), ours.object("input"), ours.object("output")
    pictures, paths = ours.object("preprocessing"), ours.object("paths")
    masks = ours.object_or_none("masks")
    baseline, quantization = ours.object_or_none("baseline"), ours.object_or_none("quantization")

    # Format 1 has one kind of input; the words are in the manifest so that a reader need not know that.
    image.choice("dtype", ["float32"])
    image.choice("layout", ["NCHW"])
    if image.value("range") != [0.0, 1.0]:
        raise image.wrong("range", "[0.0, 1.0]")
    classes = scores.integer("classes", low=1, high=MAX_CLASSES)
    channels = image.integer("channels", low=1, high=MAX_CHANNELS)
    height, width = (image.integer(side, low=1, high=MAX_SIDE) for side in ("height", "width"))
    if channels * height * width > MAX_ELEMENTS:
        raise _damaged(f"expected images of at most {MAX_ELEMENTS} numbers, got {channels} x {height} x {width}")

    names = ours.strings("class_names")
    if len(names) != classes:
        raise ours.wrong("class_names", f"{classes} names, one a class")
    if len(paths.keys) > MAX_PATHS:
        raise _damaged(f"expected at most {MAX_PATHS} paths, got {len(paths.keys)}")
    for name in paths.keys:
        if not _is_path_name(name):
            raise paths.wrong(name, f"a path name like 'clean' (up to 64 of a-z, 0-9, _ and -; {DENSE!r} is reserved)")
    default_path = ours.choice("default_path", paths.keys)
    colour = pictures.choice("colour", ["RGB", "L", None])
    if colour is not None and channels != {"RGB": 3, "L": 1}[colour]:
        raise pictures.wrong("colour", f"null or what has {channels} channels")
    return Manifest(
        package_name=root.string("package_name"),
        package_version=root.string("package_version"),
        format_version=version,
        created_by=ours.string("created_by"),
        target=Target(
            name=target.string("name"), profile=target.string("profile"), kind=target.optional_string("kind")
        ),
        precision=ours.string("precision"),
        recipe=None if quantization is None else quantization.string("recipe"),
        quantization=None if quantization is None else quantization.raw,
        gate=ours.optional_object("gate"),
        default_path=default_path,
        shares=ours.choice("shares", ["weights", "nothing", None]) or "weights",  # older ones do not say
        input=InputSpec(
            name=image.string("name"),
            channels=channels,
            height=height,
            width=width,
        ),
        output=OutputSpec(name=scores.string("name"), classes=classes),
        preprocessing=Preprocessing(
            colour=cast("Colour | None", colour),
            resize=cast("Literal['shorter-side']", pictures.choice("resize", ["shorter-side"])),
            interpolation=cast("Literal['bilinear']", pictures.choice("interpolation", ["bilinear"])),
            crop=cast("Literal['center']", pictures.choice("crop", ["center"])),
        ),
        class_names=names,
        paths=MappingProxyType({name: _parse_graph(paths.object(name), name) for name in paths.keys}),
        mixes=read_mixes(ours.object_or_none("mixes"), paths=paths.keys, is_name=_is_path_name),
        baseline=None if baseline is None else _parse_graph(baseline, baseline.choice("name", [DENSE])),
        reference=_parse_reference(ours.object_or_none("reference"), [*paths.keys, *([DENSE] if baseline else [])]),
        masks=None if masks is None else read_mask_info(masks),
        tripwire=ours.optional_object("tripwire"),
        training=ours.object("training").raw,
    )


def _parse_reference(reference: Reader | None, graphs: list[str]) -> ReferenceFiles | None:
    if reference is None:
        return None
    scores = reference.object("scores")
    scores.only(*graphs)
    return ReferenceFiles(
        images=reference.integer("images", low=2, high=MAX_REFERENCE_IMAGES),
        inputs=file_name(reference, "inputs"),
        scores=MappingProxyType({name: file_name(scores, name) for name in scores.keys}),
    )


def _parse_graph(graph: Reader, name: str) -> GraphInfo:
    file = file_name(graph, "file")
    weights = None if graph.value("weights") is None else file_name(graph, "weights")
    if weights is not None and PurePosixPath(weights).parent != PurePosixPath(file).parent:
        raise graph.wrong("weights", f"a file beside {file!r}")
    return GraphInfo(
        name=name,
        role=None if name == DENSE else _parse_role(graph, name),
        file=file,
        weights=weights,
        parameters=graph.integer("parameters", low=0),
        macs=graph.integer("macs", low=0),
        bytes=graph.integer("bytes", low=0),
        density=graph.fraction("density"),
        parameter_density=graph.fraction("parameter_density"),
        tolerance=graph.optional_number("tolerance"),
        max_rel_diff=graph.optional_number("max_rel_diff"),
        argmax_agreement=graph.fraction("argmax_agreement"),
        layers=tuple(layer.raw for layer in graph.objects("layers")),
        metrics=graph.optional_object("metrics"),
        gate=graph.optional_object("gate"),
        calibration=read_temperature(graph.object_or_none("calibration")),
    )


def _is_path_name(name: str) -> bool:
    return PATH_NAME.fullmatch(name) is not None and name != DENSE


def _parse_role(graph: Reader, path: str) -> Role:
    if "role" not in graph.keys:  # written before there were roles
        return default_role(path)
    return Role(graph.choice("role", [role.value for role in Role]))


def check_path(path: str, paths: Iterable[str]) -> str:
    """Return ``path`` if it is one of the names ``paths``, else raise PathError."""
    is_text = isinstance(path, str)  # a list cannot be looked up, and an array is equal in its own way
    names = tuple(paths)
    if is_text and path in names:
        return path
    is_dense = is_text and path == DENSE
    remedy = "the dense baseline is for smart-bench only" if is_dense else "`smart-run info` describes them"
    raise PathError(f"unknown path {path!r}; the bundle has {', '.join(map(repr, names))} ({remedy})")


def check_replaces(new: Manifest, old: Manifest) -> None:
    """Check that what callers rely on stays: they go on with the same arrays, classes and paths."""
    for what, theirs, ours in (
        ("input", new.input.shape, old.input.shape),
        ("pictures' preprocessing", new.preprocessing, old.preprocessing),
        ("classes", new.class_names, old.class_names),
    ):
        if theirs != ours:
            raise BundleError(
                f"expected a bundle with the {what} of the one that it replaces, {shortened(str(ours))}, "
                f"got {shortened(str(theirs))}; load it as a model of its own"
            )
    if lost := [name for name in old.choices if name not in new.choices]:
        raise BundleError(
            f"the new bundle has no path {lost[0]!r}, which the one that it replaces has; load it as a model of its own"
        )


def _damaged(what: str) -> BundleError:
    return BundleError(f"the manifest is damaged: {what}; export the bundle again")
