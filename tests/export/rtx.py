"""TensorRT-RTX as a test's judge: what it cannot parse or build is no graph for NVIDIA's engines."""

from __future__ import annotations

from pathlib import Path

import pytest


def assert_builds(file: Path, *, shape: tuple[int, int, int], sparse_weights: bool = False) -> None:
    """Build a plan for compute capability 8.9, which needs no GPU, with batches of 1 to 64."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the TensorRT-RTX library (extra tensorrt-rtx) is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(file)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    if sparse_weights:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        assert config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, *shape), (8, *shape), (64, *shape))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 0
