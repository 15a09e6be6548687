"""Device profiles: what a target can do, each number with its unit and its source.

The files are ``profiles/*.json``; what many devices share (JetPack releases, the alignment of tensor cores) stands once
in ``profiles/shared/``. A number is ``{"value": 204.8, "unit": "GB/s", "source": "..."}``; a value of null means that
nobody has verified it, and its source says why. A whole entry that is null does not apply to the device (a graphics
card has no deep learning accelerator). Peaks are the vendor's at the highest clock, not what an engine reaches.

    target = resolve_target("jetson-orin")
    target.profile.name                                 # jetson-agx-orin-64gb
    target.profile.alignment("fp16", sparse=True)       # 16
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import cast

from smart_common.documents import parse_document
from smart_common.errors import shortened
from smart_devices.device_profile import (
    PRECISIONS,
    DenseSparse,
    Dla,
    Identity,
    Kind,
    Memory,
    PowerMode,
    Profile,
    Target,
)
from smart_devices.engine_rows import engine_names
from smart_devices.errors import UnknownTargetError
from smart_devices.facts import Node, is_positive
from smart_devices.jetpack import JetPack, is_opset, jetpack_table, parse_jetpack

SCHEMA_VERSION = 1
_MAX_BYTES = 2**20  # of a profile of the user's own: ours are below 10 KB

# Peak throughput knows more kinds of arithmetic: GeForce cards halve their rate when fp16 products accumulate in fp32.
_THROUGHPUT_UNITS = {
    "fp32": "TFLOPS",
    "fp16": "TFLOPS",
    "fp16_acc32": "TFLOPS",
    "int8": "TOPS",
    "fp8": "TFLOPS",
    "fp4": "TFLOPS",
}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_COMPUTE_CAPABILITY = re.compile(r"\d{1,2}\.\d")


def resolve_target(name: str | os.PathLike[str], *, jetpack: str | None = None) -> Target:
    """Return the target that ``name`` stands for: a profile's name, an alias, or a profile of the user's own.

    Args:
        name: The device, or a file that ends in ``.json`` and is a profile like those in ``profiles/``.
        jetpack: The JetPack release on it, as in ``6.0``; only a Jetson has one.

    Raises:
        UnknownTargetError: No profile has that name, the file is none, or there is no such JetPack release for it.
    """
    if str(name).endswith(".json"):
        profile = _read_profile(Path(name))
        name = profile.name
    else:
        known = _profiles_by_name()
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise UnknownTargetError(f"unknown target {str(name)!a:.100}; {remedy}")
        profile = known[str(name)]
    if jetpack is not None and not any(jetpack in row.versions for row in profile.jetpack):
        releases = ", ".join(version for row in profile.jetpack for version in row.versions)
        raise UnknownTargetError(
            f"expected a JetPack release for {name}, {f'one of {releases}' if releases else 'which has none'}, got "
            f"{jetpack!r}; leave it out, or see `smart-devices show {name}`"
        )
    return Target(name=str(name), profile=profile, jetpack=jetpack)


def _read_profile(file: Path) -> Profile:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UnknownTargetError(f"no profile at {file}: {error.strerror}; check the path") from error
    if len(content) > _MAX_BYTES:
        raise UnknownTargetError(f"{file} is larger than any profile; give a profile of up to {_MAX_BYTES} bytes")
    remedy = f"see `smart-devices show` for what a profile holds, and {file} for the entry"

    def damaged(message: str) -> UnknownTargetError:
        return UnknownTargetError(f"{file} is no profile: {message}; {remedy}")

    document = dict(parse_document(content, damaged=damaged).raw)
    try:
        return parse_profile(document, where=file.name)
    except ValueError as error:  # what the parser says of a wrong entry
        raise damaged(shortened(str(error))) from error


def load_profile(name: str | os.PathLike[str]) -> Profile:
    """Return the profile that ``name`` stands for, as ``resolve_target`` reads it, and raise as it does."""
    return resolve_target(name).profile


def profile_of(identity: str) -> Profile | None:
    """Return the profile of the device that calls itself ``identity``, ``None`` when there is none."""
    return _profiles_by_identity().get(identity)


def profile_names() -> tuple[str, ...]:
    """Return the names of all profiles, sorted, aliases left out."""
    return tuple(sorted({profile.name for profile in _profiles_by_name().values()}))


@lru_cache(maxsize=1)
def _profiles_by_name() -> Mapping[str, Profile]:
    known: dict[str, Profile] = {}
    files = resources.files("smart_devices").joinpath("profiles")
    for file in sorted(files.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".json"):
            continue
        profile = parse_profile(json.loads(file.read_text(encoding="utf-8")), where=f"profiles/{file.name}")
        if file.name != f"{profile.name}.json":
            raise ValueError(f"profiles/{file.name}: name: expected the file's own name, got {profile.name!r}")
        for name in (profile.name, *profile.aliases):
            if name in known:
                raise ValueError(f"profiles/{file.name}: expected names of its own, got {name!r} of {known[name].name}")
            known[name] = profile
    return known


@lru_cache(maxsize=1)
def _profiles_by_identity() -> Mapping[str, Profile]:
    known: dict[str, Profile] = {}
    for profile in (load_profile(name) for name in profile_names()):
        for name in profile.identity.names:
            if name in known:
                raise ValueError(
                    f"profiles/{profile.name}.json: expected an identity of its own, got {name!r} of {known[name].name}"
                )
            known[name] = profile
    return known


@lru_cache(maxsize=1)
def _shared_alignments() -> Mapping[str, Mapping[str, DenseSparse]]:
    file = resources.files("smart_devices").joinpath("profiles").joinpath("shared").joinpath("channel-alignment.json")
    where = "shared/channel-alignment.json"
    return {
        name: _alignment(Node(rows, f"{where}: {name}")) for name, rows in json.loads(file.read_text("utf-8")).items()
    }


def parse_profile(document: object, *, where: str) -> Profile:
    """Return the profile in a decoded JSON document, every key, type and range checked.

    Args:
        document: What ``json.loads`` returned.
        where: The document's name, for the message of an error.

    Raises:
        ValueError: One sentence that names the place, what was expected there and what was got.
    """
    root = Node(document, where)
    version = root.take("schema_version")
    if version != SCHEMA_VERSION:
        raise root.wrong("schema_version", str(SCHEMA_VERSION), version)
    kind = cast("Kind", root.choice("kind", ("jetson", "gpu", "cpu")))
    sparse_tensor_cores = root.child("sparse_tensor_cores").fact(_is_bool, "true, false or null", None)
    identity, memory, dla = root.child("identity"), root.child("memory"), root.optional("dla")
    profile = Profile(
        name=root.text("name", _NAME),
        aliases=root.texts("aliases", _NAME),
        title=root.text("title"),
        kind=kind,
        identity=identity.close(Identity(names=identity.texts("names"), source=identity.text("source"))),
        export_only=root.text_or_none("export_only"),
        compute_capability=root.fact_or_none(
            "compute_capability", _is_compute_capability, 'text like "8.7" or null', None
        ),
        sparse_tensor_cores=sparse_tensor_cores,
        memory=memory.close(
            Memory(
                size=memory.child("size").number("GB"),
                bandwidth=memory.child("bandwidth").number("GB/s"),
                shared_with_host=bool(memory.choice("shared_with_host", (True, False))),
            )
        ),
        throughput=_throughput(root.child("throughput")),
        dla=None if dla is None else _dla(dla),
        channel_alignment=_own_or_shared_alignment(root),
        onnx_opset=root.child("onnx_opset").fact(is_opset, "an opset between 9 and 30", None),
        engines=root.texts("engines", _NAME),
        power_modes=tuple(_power_mode(node) for node in root.children("power_modes")),
        jetpack=_own_or_shared_jetpack(root),
    )
    root.close(profile)
    _check_whole(profile, root)
    return profile


def _check_whole(profile: Profile, root: Node) -> None:
    """Check what only the fields together can show."""
    if (profile.compute_capability is None) != (profile.kind == "cpu"):
        raise root.wrong(
            "compute_capability", "null for a cpu and a value for anything else", profile.compute_capability
        )
    if profile.jetpack and profile.kind != "jetson":
        raise root.wrong("jetpack", f"no rows for a {profile.kind}", [row.versions for row in profile.jetpack])
    if profile.onnx_opset.value is None:
        raise root.wrong("onnx_opset", "a verified value, since export cannot do without", None)
    if not profile.engines or not set(profile.engines) <= set(engine_names()):
        raise root.wrong("engines", f"at least one of {', '.join(engine_names())}", profile.engines)
    if tuple(profile.channel_alignment) != PRECISIONS:
        raise root.wrong("channel_alignment", f"entries for {', '.join(PRECISIONS)}", [*profile.channel_alignment])
    names = [mode.name for mode in profile.power_modes]
    if len(set(names)) != len(names) or sum(mode.default for mode in profile.power_modes) != min(1, len(names)):
        raise root.wrong("power_modes", "names that differ and one default", names)
    if not profile.identity.names:
        raise root.wrong("identity", "at least one name", profile.identity.names)
    if profile.sparse_tensor_cores.value is False:
        for key, pairs in (("throughput", profile.throughput), ("channel_alignment", profile.channel_alignment)):
            for precision, pair in pairs.items():
                if pair.sparse is not None:
                    raise root.wrong(f"{key}.{precision}.sparse", "null without sparse tensor cores", pair.sparse)


def _own_or_shared_alignment(root: Node) -> Mapping[str, DenseSparse]:
    value, shared = root.take("channel_alignment"), _shared_alignments()
    if not isinstance(value, str):
        return _alignment(root.child("channel_alignment"))
    if value not in shared:
        raise root.wrong("channel_alignment", f"entries or one of {', '.join(shared)}", value)
    return shared[value]


def _own_or_shared_jetpack(root: Node) -> tuple[JetPack, ...]:
    value = root.take("jetpack")
    if not isinstance(value, str):
        return tuple(parse_jetpack(node) for node in root.children("jetpack"))
    rows = tuple(row for row in jetpack_table() if value in row.socs)
    if not rows:
        raise root.wrong("jetpack", "rows or a system on chip that shared/jetpack.json has rows for", value)
    return rows


def _throughput(node: Node) -> dict[str, DenseSparse]:
    for precision in node.keys:
        if precision not in _THROUGHPUT_UNITS:
            raise node.wrong(precision, f"one of {', '.join(_THROUGHPUT_UNITS)}", precision)
    return node.close({key: _dense_sparse(node.child(key), _THROUGHPUT_UNITS[key], is_positive) for key in node.keys})


def _alignment(node: Node) -> dict[str, DenseSparse]:
    return node.close({key: _dense_sparse(node.child(key), "channels", _is_power_of_two) for key in node.keys})


def _dense_sparse(node: Node, unit: str, valid: Callable[[object], bool]) -> DenseSparse:
    expected = "a power of two or null" if valid is _is_power_of_two else "a positive number or null"
    sparse = node.optional("sparse")
    return node.close(
        DenseSparse(
            dense=node.child("dense").fact(valid, expected, unit),
            sparse=None if sparse is None else sparse.fact(valid, expected, unit),
        )
    )


def _dla(node: Node) -> Dla:
    return node.close(
        Dla(
            engines=node.child("engines").fact(_is_count, "a positive whole number or null", None),
            int8=_dense_sparse(node.child("int8"), "TOPS", is_positive),
        )
    )


def _power_mode(node: Node) -> PowerMode:
    dla, bandwidth = node.optional("dla_int8"), node.optional("bandwidth")
    return node.close(
        PowerMode(
            name=node.text("name"),
            default=bool(node.choice("default", (True, False))),
            power=node.child("power").number("W"),
            throughput=_throughput(node.child("throughput")),
            dla_int8=None if dla is None else _dense_sparse(dla, "TOPS", is_positive),
            bandwidth=None if bandwidth is None else bandwidth.number("GB/s"),
            requires_l4t=node.text_or_none("requires_l4t"),
        )
    )


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and is_positive(value)


def _is_power_of_two(value: object) -> bool:
    return isinstance(value, int) and _is_count(value) and value & (value - 1) == 0


def _is_compute_capability(value: object) -> bool:
    return isinstance(value, str) and _COMPUTE_CAPABILITY.fullmatch(value) is not None
