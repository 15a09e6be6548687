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

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from smart_common.documents import Reader, parse_document, read_limited
from smart_common.errors import alternatives
from smart_devices.device_profile import (
    PRECISIONS,
    DenseSparse,
    Dla,
    Identity,
    Memory,
    PowerMode,
    Profile,
    Target,
    is_positive,
    read_fact,
    read_number,
)
from smart_devices.engine_rows import engine_names
from smart_devices.errors import UnknownTargetError
from smart_devices.jetpack import MAX_OPSET, MIN_OPSET, SHARED, JetPack, jetpack_table, parse_jetpack

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


def profile_file(name: str | os.PathLike[str]) -> Path | None:
    """Return the profile's file that ``name`` names, None for the name of a device."""
    return Path(name) if str(name).endswith(".json") else None


def resolve_target(name: str | os.PathLike[str] | Profile | Target, *, jetpack: str | None = None) -> Target:
    """Return the target that ``name`` stands for: a profile's name, an alias, or a profile of the user's own.

    Args:
        name: The device, or a file that ends in ``.json`` and is a profile like those in ``profiles/``; a profile that
            is read already is a target by its own name, and a target stays what it is.
        jetpack: The JetPack release on it, as in ``6.0``; only a Jetson has one.

    Raises:
        UnknownTargetError: No profile has that name, the file is none, or there is no such JetPack release for it.
    """
    if isinstance(name, Target):
        return name
    if isinstance(name, Profile):
        profile, name = name, name.name
    elif (file := profile_file(name)) is not None:
        profile = _read_profile(file)
        name = profile.name
    else:
        known = _profiles_by_name()
        if name not in known:
            raise UnknownTargetError(f"unknown target {alternatives(str(name), sorted(known))}")
        profile = known[str(name)]
    if jetpack is not None and not any(jetpack in row.versions for row in profile.jetpack):
        releases = ", ".join(version for row in profile.jetpack for version in row.versions)
        raise UnknownTargetError(
            f"unknown JetPack release {jetpack!a:.40} for {name}, which has {releases or 'none'}; leave it out, or see "
            f"`smart-devices show {name}`"
        )
    return Target(name=str(name), profile=profile, jetpack=jetpack)


def _read_profile(file: Path) -> Profile:
    def damaged(what: str) -> UnknownTargetError:
        return UnknownTargetError(
            f"{file} is no profile: {what}; see `smart-devices show` for what a profile holds, and {file} for the entry"
        )

    content = read_limited(file, what="profile", max_bytes=_MAX_BYTES, error=UnknownTargetError)
    return _profile(parse_document(content, damaged=damaged))


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
    for file in sorted(SHARED.parent.glob("*.json")):
        profile = _profile(_our_document(file))
        if file.name != f"{profile.name}.json":
            raise ValueError(f"profiles/{file.name}: expected the file's own name at name, got {profile.name!r}")
        for name in (profile.name, *profile.aliases):
            if name in known:
                raise ValueError(f"profiles/{file.name}: expected names of its own, got {name!r} of {known[name].name}")
            known[name] = profile
    return known


def _our_document(file: Path) -> Reader:
    return parse_document(file.read_bytes(), damaged=lambda what: ValueError(f"profiles/{file.name}: {what}"))


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
    root = _our_document(SHARED / "channel-alignment.json")
    return {name: _alignment(root.object(name)) for name in root.keys}


def parse_profile(document: object, *, where: str) -> Profile:
    """Return the profile in a decoded JSON document, every key, type and range checked.

    Args:
        document: What ``json.loads`` returned.
        where: The document's name, for the message of an error.

    Raises:
        ValueError: One sentence that names the place, what was expected there and what was got.
    """
    return _profile(Reader(document, where="", damaged=lambda what: ValueError(f"{where}: {what}")))


def _profile(root: Reader) -> Profile:
    root.exactly("schema_version", *Profile.__dataclass_fields__)
    root.integer("schema_version", low=SCHEMA_VERSION, high=SCHEMA_VERSION)
    identity, memory, dla = root.object("identity"), root.object("memory"), root.object_or_none("dla")
    compute_capability = root.object_or_none("compute_capability")
    identity.exactly("names", "source")
    memory.exactly("size", "bandwidth", "shared_with_host")
    profile = Profile(
        name=_texts(root, "name", [root.string("name")])[0],
        aliases=_texts(root, "aliases", root.strings("aliases")),
        title=root.string("title"),
        kind=root.choice("kind", ("jetson", "gpu", "cpu")),
        identity=Identity(names=identity.strings("names"), source=identity.string("source")),
        export_only=root.optional_string("export_only"),
        compute_capability=None
        if compute_capability is None
        else read_fact(compute_capability, _is_compute_capability, 'text like "8.7"', None),
        sparse_tensor_cores=read_fact(
            root.object("sparse_tensor_cores"), lambda value: isinstance(value, bool), "true, false", None
        ),
        memory=Memory(
            size=read_number(memory.object("size"), "GB"),
            bandwidth=read_number(memory.object("bandwidth"), "GB/s"),
            shared_with_host=memory.boolean("shared_with_host"),
        ),
        throughput=_throughput(root.object("throughput")),
        dla=None if dla is None else _dla(dla),
        channel_alignment=_own_or_shared_alignment(root),
        onnx_opset=read_fact(root.object("onnx_opset"), _is_opset, f"an opset from {MIN_OPSET} to {MAX_OPSET}", None),
        engines=_texts(root, "engines", root.strings("engines")),
        power_modes=tuple(map(_power_mode, root.objects("power_modes"))),
        jetpack=_own_or_shared_jetpack(root),
    )
    _check_whole(profile, root)
    return profile


def _check_whole(profile: Profile, root: Reader) -> None:
    """Check what only the fields together can show."""
    if (profile.compute_capability is None) != (profile.kind == "cpu"):
        raise root.wrong("compute_capability", "null for a cpu and a value for anything else")
    if profile.jetpack and profile.kind != "jetson":
        raise root.wrong("jetpack", f"no rows for a {profile.kind}")
    if profile.onnx_opset.value is None:
        raise root.wrong("onnx_opset", "a verified value, since export cannot do without,")
    if not profile.engines or not set(profile.engines) <= set(engine_names()):
        raise root.wrong("engines", f"at least one of {', '.join(engine_names())}")
    if tuple(profile.channel_alignment) != PRECISIONS:
        raise root.wrong("channel_alignment", f"entries for {', '.join(PRECISIONS)}")
    names = [mode.name for mode in profile.power_modes]
    if len(set(names)) != len(names) or sum(mode.default for mode in profile.power_modes) != min(1, len(names)):
        raise root.wrong("power_modes", "names that differ and one default")
    if not profile.identity.names:
        raise root.wrong("identity", "at least one name")
    if profile.sparse_tensor_cores.value is False:
        for key, pairs in (("throughput", profile.throughput), ("channel_alignment", profile.channel_alignment)):
            if any(pair.sparse is not None for pair in pairs.values()):
                raise root.wrong(key, "null for everything sparse without sparse tensor cores")


def _texts(root: Reader, key: str, found: Sequence[str]) -> tuple[str, ...]:
    """Return ``found``, which stands under ``key``, if these are names, none twice."""
    if len(set(found)) != len(found) or not all(map(_NAME.fullmatch, found)):
        raise root.wrong(key, f"names like {_NAME.pattern}, each once,")
    return tuple(found)


def _own_or_shared_alignment(root: Reader) -> Mapping[str, DenseSparse]:
    value, shared = root.value("channel_alignment"), _shared_alignments()
    if not isinstance(value, str):
        return _alignment(root.object("channel_alignment"))
    if value not in shared:
        raise root.wrong("channel_alignment", f"entries or one of {', '.join(shared)}")
    return shared[value]


def _own_or_shared_jetpack(root: Reader) -> tuple[JetPack, ...]:
    value = root.value("jetpack")
    if not isinstance(value, str):
        return tuple(map(parse_jetpack, root.objects("jetpack")))
    rows = tuple(row for row in jetpack_table() if value in row.socs)
    if not rows:
        raise root.wrong("jetpack", "rows or a system on chip that shared/jetpack.json has rows for")
    return rows


def _throughput(node: Reader) -> dict[str, DenseSparse]:
    node.only(*_THROUGHPUT_UNITS)
    return {
        key: _dense_sparse(node.object(key), _THROUGHPUT_UNITS[key], is_positive, "a positive number")
        for key in node.keys
    }


def _alignment(node: Reader) -> dict[str, DenseSparse]:
    return {key: _dense_sparse(node.object(key), "channels", _is_power_of_two, "a power of two") for key in node.keys}


def _dense_sparse(node: Reader, unit: str, valid: Callable[[object], bool], expected: str) -> DenseSparse:
    node.exactly("dense", "sparse")
    sparse = node.object_or_none("sparse")
    return DenseSparse(
        dense=read_fact(node.object("dense"), valid, expected, unit),
        sparse=None if sparse is None else read_fact(sparse, valid, expected, unit),
    )


def _dla(node: Reader) -> Dla:
    node.exactly("engines", "int8")
    return Dla(
        engines=read_fact(node.object("engines"), _is_count, "a positive whole number", None),
        int8=_dense_sparse(node.object("int8"), "TOPS", is_positive, "a positive number"),
    )


def _power_mode(node: Reader) -> PowerMode:
    node.exactly(*PowerMode.__dataclass_fields__)
    dla, bandwidth = node.object_or_none("dla_int8"), node.object_or_none("bandwidth")
    return PowerMode(
        name=node.string("name"),
        default=node.boolean("default"),
        power=read_number(node.object("power"), "W"),
        throughput=_throughput(node.object("throughput")),
        dla_int8=None if dla is None else _dense_sparse(dla, "TOPS", is_positive, "a positive number"),
        bandwidth=None if bandwidth is None else read_number(bandwidth, "GB/s"),
        requires_l4t=node.optional_string("requires_l4t"),
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and is_positive(value)


def _is_opset(value: object) -> bool:
    return isinstance(value, int) and _is_count(value) and MIN_OPSET <= value <= MAX_OPSET


def _is_power_of_two(value: object) -> bool:
    return isinstance(value, int) and _is_count(value) and value & (value - 1) == 0


def _is_compute_capability(value: object) -> bool:
    return isinstance(value, str) and _COMPUTE_CAPABILITY.fullmatch(value) is not None
