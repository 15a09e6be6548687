from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from smart_devices import (
    PRECISIONS,
    DenseSparse,
    Fact,
    Profile,
    UnknownTargetError,
    load_profile,
    parse_profile,
    profile_names,
    profile_of,
    resolve_target,
)
from smart_devices.profiles import SCHEMA_VERSION

FILES = sorted(
    (file for file in resources.files("smart_devices").joinpath("profiles").iterdir() if file.name.endswith(".json")),
    key=lambda file: file.name,
)
Document = dict[str, Any]
ROW: Document = {
    "releases": {"5.1": ["35.2.1"]},
    "socs": ["tegra234"],
    "ubuntu": None,
    "python": "3.8",
    "cuda": None,
    "tensorrt": None,
    "onnx_opset": 17,
    "source": "a test",
}
ODD: Document = {
    precision: {"dense": {"value": 12, "unit": "channels", "source": "a test"}, "sparse": None}
    for precision in PRECISIONS
}


def document(name: str) -> Document:
    """The JSON file of a profile; ``Any`` so that tests can damage it."""
    text = resources.files("smart_devices").joinpath("profiles", f"{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def test_every_file_is_a_profile_that_can_be_loaded_by_name() -> None:
    assert FILES, "the package has no profiles"
    assert profile_names() == tuple(sorted(file.name.removesuffix(".json") for file in FILES))


@pytest.mark.parametrize("name", profile_names())
class TestEveryProfile:
    def test_survives_the_round_trip(self, name: str) -> None:
        profile = load_profile(name)
        written = json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(profile)})
        assert parse_profile(json.loads(written), where=name) == profile

    def test_has_no_number_without_a_source(self, name: str) -> None:
        def walk(node: object, where: str) -> None:
            if isinstance(node, dict):
                if "value" in node:
                    assert set(node) == {"value", "unit", "source"}, where
                    assert len(node["source"]) > 8, f"{where}: {node['source']!r} names no source"
                    return
                for key, child in node.items():
                    walk(child, f"{where}.{key}")
            elif isinstance(node, list):
                for i, child in enumerate(node):
                    walk(child, f"{where}[{i}]")
            else:
                number = isinstance(node, (int, float)) and not isinstance(node, bool)
                # The schema's own version is ours.
                assert not number or where.endswith("schema_version"), f"{where} is a bare number"

        walk(document(name), name)

    def test_computed_figures_are_what_their_sources_compute(self, name: str) -> None:
        """As in ``computed: 16 SM x 2048 MAC x 2 operations x 1.3 GHz``, to the last digit that is printed."""
        profile = load_profile(name)
        for throughput in (profile.throughput, *(mode.throughput for mode in profile.power_modes)):
            for precision, pair in throughput.items():
                product = re.match(r"computed: ([^;]*? x 2 operations x [0-9.]+) GHz", pair.dense.source)
                if product is None or pair.dense.value is None:
                    continue
                factors = [float(factor.split()[0]) for factor in product[1].split(" x ")]
                _, _, digits = str(pair.dense.value).partition(".")
                assert round(math.prod(factors) / 1000, len(digits)) == pair.dense.value, precision

    def test_sparse_peaks_are_twice_the_dense_ones(self, name: str) -> None:
        for precision, pair in load_profile(name).throughput.items():
            if pair.sparse is None or pair.dense.value is None or pair.sparse.value is None:
                continue
            # Vendors print rounded figures: 170 sparse against 85.2 computed dense.
            assert pair.sparse.value == pytest.approx(2 * pair.dense.value, rel=0.01), precision

    def test_sparse_tensor_cores_follow_from_the_compute_capability(self, name: str) -> None:
        profile = load_profile(name)
        if profile.compute_capability is None or profile.compute_capability.value is None:
            assert profile.sparse_tensor_cores.value is False
        else:
            assert profile.sparse_tensor_cores.value is (float(profile.compute_capability.value) >= 8.0)

    def test_alignment_and_opset_are_what_export_can_use(self, name: str) -> None:
        profile = load_profile(name)
        for precision in PRECISIONS:
            for sparse in (False, True):
                multiple = profile.alignment(precision, sparse=sparse)
                assert 1 <= multiple <= 64
                assert multiple & (multiple - 1) == 0
        assert profile.opset == (17 if profile.export_only else 20), "TensorRT 8.5 reads 17, 10.0 and later read 20"
        assert profile.engines[-1] == "onnxruntime-cpu", "every device can fall back to its CPU"

    def test_a_jetson_shares_its_memory_and_says_what_its_releases_install(self, name: str) -> None:
        profile = load_profile(name)
        assert (profile.kind == "jetson") == bool(profile.jetpack)
        if profile.kind == "jetson":
            assert profile.memory.shared_with_host
            releases = [version for row in profile.jetpack for version in row.versions]
            assert len(set(releases)) == len(releases)
            assert any((row.onnx_opset or 0) >= profile.opset for row in profile.jetpack)
            pythons = [tuple(map(int, row.python.split("."))) for row in profile.jetpack if row.python]
            assert (max(pythons) < (3, 10)) == (profile.export_only is not None), "smart-edge needs Python 3.10"
            assert profile.power_modes
            assert all((mode.dla_int8 is None) == (profile.dla is None) for mode in profile.power_modes)


def test_every_device_that_is_promised_has_a_profile() -> None:
    assert set(profile_names()) == {
        *("jetson-agx-orin-64gb", "jetson-agx-orin-32gb", "jetson-orin-nx-16gb", "jetson-orin-nx-8gb"),
        *("jetson-orin-nano-8gb", "jetson-orin-nano-4gb", "jetson-agx-thor", "jetson-agx-xavier", "jetson-xavier-nx"),
        *("rtx-3060", "rtx-3090", "rtx-4070", "rtx-4090", "rtx-5090"),
        *("l4", "t4", "a100-40gb", "a100-80gb", "h100-sxm", "h100-pcie", "x86-cpu", "arm-cpu"),
    }


def test_names_and_aliases_each_name_one_profile() -> None:
    names = [name for profile in map(load_profile, profile_names()) for name in (profile.name, *profile.aliases)]
    assert sorted(names) == sorted(set(names))


def test_an_identity_is_that_of_one_profile() -> None:
    for profile in map(load_profile, profile_names()):
        for name in profile.identity.names:
            assert profile_of(name) == profile
            if profile.kind == "jetson":
                assert re.fullmatch(r"p\d{4}-\d{4}", name)
    assert profile_of("p0000-0000") is None


# Module totals as printed (devices are advertised with GPU and DLA together, sparse): 5% for what vendors round.
@pytest.mark.parametrize(
    ("name", "total_tops"),
    [
        ("jetson-agx-orin-64gb", 275),
        ("jetson-agx-orin-32gb", 200),
        ("jetson-orin-nx-16gb", 100),
        ("jetson-orin-nx-8gb", 70),
        ("jetson-orin-nano-8gb", 40),
        ("jetson-orin-nano-4gb", 20),
    ],
)
def test_gpu_and_dla_add_up_to_what_the_module_is_sold_with(name: str, total_tops: int) -> None:
    profile = load_profile(name)
    gpu = profile.throughput["int8"].sparse
    assert gpu is not None
    assert gpu.value is not None
    dla = 0.0
    if profile.dla is not None:
        assert profile.dla.int8.sparse is not None
        dla = profile.dla.int8.sparse.value or 0
    assert gpu.value + dla == pytest.approx(total_tops, rel=0.05)


# fp16 peak in TFLOPS that follows from multiprocessors x clock in GHz x operations a clock, by architecture: NVIDIA's
# A100 whitepaper (Turing 1024, GA100 2048), GA102 and Ada whitepapers (1024 with fp16 accumulation), Hopper 4096.
@pytest.mark.parametrize(
    ("name", "multiprocessors", "ghz", "operations"),
    [
        ("t4", 40, 1.59, 1024),
        ("a100-40gb", 108, 1.41, 2048),
        ("a100-80gb", 108, 1.41, 2048),
        ("rtx-3060", 28, 1.777, 1024),
        ("rtx-3090", 82, 1.695, 1024),
        ("rtx-4070", 46, 2.475, 1024),
        ("rtx-4090", 128, 2.52, 1024),
        ("rtx-5090", 170, 2.407, 1024),
        ("l4", 58, 2.04, 1024),
        ("h100-sxm", 132, 1.83, 4096),
    ],
)
def test_peaks_follow_from_the_architecture(name: str, multiprocessors: int, ghz: float, operations: int) -> None:
    throughput = load_profile(name).throughput
    expected = multiprocessors * ghz * operations / 1000
    assert throughput["fp16"].dense.value == pytest.approx(expected, rel=0.01)
    assert throughput["int8"].dense.value == pytest.approx(2 * expected, rel=0.01)
    if "fp16_acc32" in throughput:
        assert throughput["fp16_acc32"].dense.value == pytest.approx(expected / 2, rel=0.01)


@pytest.mark.parametrize("name", ["x86-cpu", "arm-cpu"])
def test_no_peak_is_claimed_for_a_cpu(name: str) -> None:
    profile = load_profile(name)
    assert all(pair.dense.value is None for pair in profile.throughput.values())
    assert profile.memory.bandwidth.value is None


def test_super_modes_name_the_release_that_has_them() -> None:
    nano = {mode.name: mode for mode in load_profile("jetson-orin-nano").power_modes}
    assert (nano["15W"].default, nano["15W"].requires_l4t) == (True, None)
    fastest = nano["MAXN_SUPER"]
    assert fastest.requires_l4t == "36.4.3"
    assert str(fastest.bandwidth) == "102 GB/s"
    assert str(fastest.throughput["int8"].sparse) == "67 TOPS"


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("cpu", "x86-cpu"),
        ("jetson-orin", "jetson-agx-orin-64gb"),
        ("jetson-orin-nx", "jetson-orin-nx-16gb"),
        ("jetson-orin-nano", "jetson-orin-nano-8gb"),
        ("jetson-thor", "jetson-agx-thor"),
        ("desktop-gpu", "rtx-4070"),
        ("a100", "a100-80gb"),
        ("h100", "h100-sxm"),
    ],
)
def test_an_alias_resolves_to_its_profile_and_both_names_are_reported(alias: str, name: str) -> None:
    target = resolve_target(alias)
    assert (target.name, target.profile.name) == (alias, name)
    assert resolve_target(name).profile == target.profile == load_profile(alias)


def own_profile(folder: Path, **changes: object) -> Path:
    """Write a profile of a user's own: that of an RTX 4070 under another name."""
    document = json.loads(resources.files("smart_devices").joinpath("profiles/rtx-4070.json").read_text("utf-8"))
    file = folder / "my-card.json"
    file.write_text(json.dumps(document | {"name": "my-card", "aliases": []} | changes), encoding="utf-8")
    return file


def test_a_file_is_a_target_too(tmp_path: Path) -> None:
    target = resolve_target(own_profile(tmp_path))
    assert target.name == target.profile.name == "my-card"
    assert target.profile.throughput == load_profile("rtx-4070").throughput


def test_a_file_that_is_no_profile_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnknownTargetError, match=r"my-card.json is no profile: .*memory.*; see `smart-devices show`"):
        resolve_target(own_profile(tmp_path, memory=3))
    with pytest.raises(UnknownTargetError, match=r"no profile at .*absent.json: No such file or directory; check"):
        resolve_target(str(tmp_path / "absent.json"))
    (tmp_path / "deep.json").write_text("[" * 10**5)
    with pytest.raises(UnknownTargetError, match=r"deep.json is no profile: expected JSON"):
        resolve_target(tmp_path / "deep.json")


@pytest.mark.parametrize("name", ["zzz", "", "CPU"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        UnknownTargetError, match=f"unknown target {name!r}; there are .*jetson-orin.*x86-cpu"
    ) as caught:
        resolve_target(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"), [("jetson-orn", "jetson-orin"), ("../x86-cpu", "x86-cpu"), ("rtx4070", "rtx-4070")]
)
def test_a_misspelt_name_is_guessed(name: str, meant: str) -> None:
    with pytest.raises(UnknownTargetError, match=rf"unknown target '{re.escape(name)}'; did you mean {meant}\?"):
        resolve_target(name)


def test_the_orin_says_what_was_verified_and_what_was_not() -> None:
    orin = load_profile("jetson-orin")
    assert str(orin.memory.bandwidth) == "204.8 GB/s"
    assert str(orin.throughput["fp16"].dense) == "unknown"
    assert [mode.name for mode in orin.power_modes if mode.default] == ["MODE_30W"]
    assert {precision: orin.alignment(precision) for precision in PRECISIONS} == {"fp32": 4, "fp16": 8, "int8": 32}
    assert orin.alignment("fp16", sparse=True) == 16
    assert orin.alignment("fp32", sparse=True) == 1, "unverified: nothing to pad to"


def test_alignment_refuses_a_precision_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"expected one of fp32, fp16, int8, got 'fp8'"):
        load_profile("cpu").alignment("fp8")


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        (Fact(value=None, unit="GB", source="s"), "unknown"),
        (Fact(value=64, unit="GB", source="s"), "64 GB"),
        (Fact(value=85.2, unit="TOPS", source="s"), "85.2 TOPS"),
        (Fact(value=20, unit=None, source="s"), "20"),
        (Fact(value="8.7", unit=None, source="s"), "8.7"),
        (Fact(value=True, unit=None, source="s"), "yes"),
        (Fact(value=False, unit=None, source="s"), "no"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fact_reads_well(fact: Fact[object], text: str) -> None:
    assert str(fact) == text


def set_at(*path: str | int, to: object) -> Callable[[Document], None]:
    def damage(data: Document) -> None:
        node: Any = data
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to

    return damage


def drop(*path: str | int) -> Callable[[Document], None]:
    def damage(data: Document) -> None:
        node: Any = data
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return damage


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        pytest.param(set_at("schema_version", to=2), "schema_version", id="newer schema"),
        pytest.param(set_at("name", to="Orin 64"), "name", id="name with a space"),
        pytest.param(set_at("aliases", to=["a", "a"]), "aliases", id="alias twice"),
        pytest.param(set_at("aliases", to="jetson-orin"), "aliases", id="aliases not a list"),
        pytest.param(set_at("title", to=" "), "title", id="blank title"),
        pytest.param(set_at("kind", to="tpu"), "kind", id="unknown kind"),
        pytest.param(set_at("kind", to="cpu"), "compute_capability", id="CPU with compute capability"),
        pytest.param(set_at("compute_capability", "value", to=8.7), "compute_capability", id="number for text"),
        pytest.param(set_at("memory", "size", "value", to=-64), "memory.size", id="negative"),
        pytest.param(set_at("memory", "size", "value", to="64"), "memory.size", id="text for number"),
        pytest.param(set_at("memory", "size", "value", to=True), "memory.size", id="bool for number"),
        pytest.param(set_at("memory", "size", "value", to=float("nan")), "memory.size", id="nan"),
        pytest.param(set_at("memory", "size", "unit", to="GiB"), "memory.size", id="wrong unit"),
        pytest.param(set_at("memory", "size", "source", to=""), "memory.size", id="no source"),
        pytest.param(drop("memory", "bandwidth"), "bandwidth", id="missing key"),
        pytest.param(set_at("memory", "shared_with_host", to=1), "shared_with_host", id="1 for true"),
        pytest.param(set_at("memory", "sized", to=1), "sized", id="unknown key"),
        pytest.param(set_at("memory", to=[]), "memory", id="list for object"),
        pytest.param(set_at("extra", to=1), "extra", id="unknown key at the top"),
        pytest.param(set_at("throughput", "fp12", to={}), "fp12", id="unknown precision"),
        pytest.param(set_at("sparse_tensor_cores", "value", to=False), "sparse", id="sparse peak without sparse cores"),
        pytest.param(set_at("channel_alignment", to=ODD), "fp32", id="not a power of two"),
        pytest.param(
            set_at("channel_alignment", to={"fp32": ODD["fp32"]}), "channel_alignment", id="precision without"
        ),
        pytest.param(set_at("onnx_opset", "value", to=None), "onnx_opset", id="unverified opset"),
        pytest.param(set_at("onnx_opset", "value", to=8), "onnx_opset", id="opset out of range"),
        pytest.param(set_at("engines", to=[]), "engines", id="no engine"),
        pytest.param(set_at("engines", to=["openvino"]), "engines", id="unknown engine"),
        pytest.param(set_at("power_modes", 0, "default", to=True), "power_modes", id="two default modes"),
        pytest.param(set_at("power_modes", 0, "name", to="MODE_15W"), "power_modes", id="mode twice"),
        pytest.param(set_at("jetpack", to="tegra999"), "jetpack", id="system without releases"),
        pytest.param(set_at("jetpack", to=[{**ROW, "onnx_opset": 20.0}]), "jetpack[0]", id="float for opset"),
        pytest.param(set_at("jetpack", to=[{**ROW, "releases": {}}]), "jetpack[0]", id="no release"),
        pytest.param(set_at("jetpack", to=[{**ROW, "releases": {"5.1": "35.2.1"}}]), "jetpack[0]", id="text for list"),
        pytest.param(set_at("jetpack", to=[{**ROW, "releases": {"5.1": ["35.2"]}}]), "jetpack[0]", id="short release"),
        pytest.param(set_at("jetpack", to=[{**ROW, "extra": 1}]), "jetpack[0]", id="unknown key in a row"),
        pytest.param(set_at("channel_alignment", to="toes"), "channel_alignment", id="unknown shared alignment"),
        pytest.param(
            set_at("channel_alignment", to={"fp32": None}), "channel_alignment", id="alignment without figures"
        ),
        pytest.param(set_at("identity", "names", to=[]), "identity", id="no identity"),
        pytest.param(set_at("identity", "source", to=None), "identity", id="identity without source"),
        pytest.param(set_at("export_only", to=""), "export_only", id="blank reason"),
    ],
)
def test_a_damaged_profile_is_refused_with_the_place(damage: Callable[[Document], None], place: str) -> None:
    data = copy.deepcopy(document("jetson-agx-orin-64gb"))
    damage(data)
    with pytest.raises(ValueError, match=r"^here\b.*expected .*, got ") as caught:
        parse_profile(data, where="here")
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "x", 1])
def test_a_document_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="expected an object"):
        parse_profile(data, where="here")


def test_profiles_are_frozen() -> None:
    profile: Profile = load_profile("cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.name = "other"  # type: ignore[misc]  # what the test is about
    pair: DenseSparse = profile.channel_alignment["fp32"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.sparse = None  # type: ignore[misc]  # what the test is about


@pytest.mark.parametrize(
    ("name", "jetpack", "opset"),
    [
        ("jetson-orin", None, 20),
        ("jetson-orin", "6.2.1", 20),
        ("jetson-orin", "6.0", 17),
        ("jetson-orin", "5.1.2", 17),
        ("jetson-orin", "5.0.2", 20),  # what its TensorRT reads was not read anywhere
        ("jetson-agx-xavier", "4.6", 13),
        ("jetson-thor", "7.2", 20),
    ],
)
def test_the_opset_is_one_that_the_jetpack_release_reads(name: str, jetpack: str | None, opset: int) -> None:
    assert resolve_target(name, jetpack=jetpack).opset == opset


@pytest.mark.parametrize(("name", "jetpack"), [("jetson-orin", "7.1"), ("jetson-thor", "6.2"), ("cpu", "6.2")])
def test_a_jetpack_release_that_the_device_has_not_is_refused(name: str, jetpack: str) -> None:
    with pytest.raises(UnknownTargetError, match=f"unknown JetPack release '{jetpack}' for {name}"):
        resolve_target(name, jetpack=jetpack)
