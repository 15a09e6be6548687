"""Results of smart-bench and smart-export as those commands print them, for what reads them."""

from __future__ import annotations

from typing import Any


def bench_result(*, digest: str = "11" * 32, bundle: str = "bundle") -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "bundle": bundle,
            "precision": "fp32",
            "median_ms": ms,
            "p90_ms": ms * 1.01,
            "p99_ms": ms * 1.5,
            "solo_median_ms": ms,
            "solo_agrees": True,
            "macs": macs,
            "parameters": 1000,
            "bytes": 4000,
            "speedup": speedup,
            "speedup_low": max(speedup - 0.1, 1.0),
            "speedup_high": speedup + 0.1 * (speedup != 1),
            "mac_ratio": 4000 / macs,
            "expected_ms": None,
            "power_w": 3.5,
            "energy_mj": 1.25,
            "energy_above_idle_mj": 0.5,
        }
        for name, ms, macs, speedup in (
            ("dense", 0.0825, 4000, 1.0),
            ("clean", 0.033, 1000, 2.5),
            ("robust", 0.034, 1000, 2.4),
        )
    ]
    return {
        "bundle_digest": digest,
        "bundles": [{"bundle": bundle, "digest": digest, "precision": "fp32"}],
        "baseline": None,
        "reference": {"bundle": bundle, "name": "dense"},
        "engine": "onnxruntime-cpu",
        "batch": 1,
        "threads": 1,
        "rows": rows,
        "switch": {"median_us": 0.8, "p99_us": 2.0, "first_result_ms": 0.04, "cold_load_ms": 4.0},
        "energy": {"source": "rapl", "measures": "the processor", "phase_s": 2.0, "idle_w": 1.0, "unknown": None},
        "environment": {
            "cpu": "A processor",
            "machine": "x86_64",
            "usable_cores": 2,
            "governor": None,
            "power_mode": None,
            "versions": {"smart-edge": "0.1.0", "numpy": "2.0"},
        },
    }


def export_result(*, checkpoint: str = "ab" * 32, bundle: str = "11" * 32) -> dict[str, Any]:
    cost = {"macs": 1000, "dense_macs": 4000, "parameters": 1000, "bytes": 4000}
    drop = {"before": 0.9, "after": 0.89, "drop": 0.01, "low": -0.01, "high": 0.03, "examples": 100}
    return {
        "bundle": "bundle",
        "target": "x86-cpu",
        "profile": "x86-cpu",
        "precision": "int8",
        "gate": {"clean": {"clean_accuracy": drop, "robust_accuracy": drop}},
        "paths": {name: {"density": 0.5, **cost} for name in ("clean", "robust")},
        "baseline": {"name": "dense", **cost, "macs": 4000},
        "checkpoint_digest": checkpoint,
        "bundle_digest": bundle,
    }
