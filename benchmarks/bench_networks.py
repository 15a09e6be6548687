"""Which networks of torchvision and timm go the whole way: trained one step, folded, exported, equal to themselves.

    pip install torchvision timm
    .venv/bin/python benchmarks/bench_networks.py

Each network untrained, at 3x64x64 and density 0.5, in a process of its own: made with two paths, trained for one epoch
of two batches, exported for a CPU with its dense baseline, every graph verified in ONNX Runtime. What is refused says
why. Writes benchmarks/results/networks.json with the environment, prints the table and ends with status 1 if a goal is
missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from outcome import finish

from smart_common.errors import SmartError
from smart_runtime.bench.environment import read_environment

RESULT = Path(__file__).resolve().parent / "results/networks.json"
NETWORKS = (
    *("torchvision:resnet18", "torchvision:resnet50", "torchvision:resnext50_32x4d", "torchvision:densenet121"),
    *("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0"),
    *("torchvision:mnasnet1_0", "torchvision:shufflenet_v2_x1_0", "torchvision:squeezenet1_1"),
    *("torchvision:vgg11_bn", "torchvision:regnet_y_400mf", "torchvision:convnext_tiny", "torchvision:googlenet"),
    *("timm:resnet18", "timm:repvgg_a0", "timm:mobileone_s0", "timm:mobilenetv4_conv_small"),
    *("timm:efficientnet_lite0", "timm:convnext_atto"),
)
LEAST = 18  # that are to be exported
SIDE, CLASSES, IMAGES, DENSITY = 64, 5, 40, 0.5
MAX_SECONDS = 900  # for one network, on a busy machine


def whole_way(name: str) -> dict[str, Any]:
    """Take one network the whole way; return what became of it."""
    from smart_export import build_bundle  # noqa: PLC0415  # the process that starts the others needs none of this
    from smart_train import Attack, Structure, TrainConfig, Trainer  # noqa: PLC0415
    from smart_train.architectures.custom import import_factory  # noqa: PLC0415
    from smart_train.data.images import make_image_set  # noqa: PLC0415
    from smart_train.data.source import Arrays  # noqa: PLC0415

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(IMAGES) % CLASSES
    data = make_image_set(Arrays(images, labels, images[:10], labels[:10]), kind="noise", where="noise")
    found: dict[str, Any] = {"network": name, "scope": None, "trained": False, "exported": False, "reason": None}
    with tempfile.TemporaryDirectory() as folder:
        try:
            factory = import_factory(name)
            for scope in ("block", "all"):  # some have nothing to mask inside of blocks
                config = TrainConfig(
                    model="custom",
                    structure=Structure(density=DENSITY, scope=scope),
                    attack=Attack(steps=1),
                    epochs=1,
                    batch_size=16,
                    learning_rate=1e-4,
                )
                try:
                    trainer = Trainer(config, data, output=Path(folder, "ckpt.pt"), factory=factory)
                except SmartError:
                    if scope == "all":
                        raise
                else:
                    break
            found["scope"] = scope
            checkpoint = trainer.run().checkpoint
            found["trained"] = True
            from smart_train import load_checkpoint  # noqa: PLC0415

            built = build_bundle(
                load_checkpoint(checkpoint, factory=factory), output=Path(folder, "bundle"), target="cpu"
            )
            found["exported"] = True
            found["max_rel_diff"] = {path: graph.agreement.max_rel_diff for path, graph in built.paths.items()}
        except SmartError as error:
            found["reason"] = str(error)
    return found


def in_a_process(name: str) -> dict[str, Any]:
    """Do `whole_way` in a process of its own; what it prints beside its result is its own affair."""
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=MAX_SECONDS)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, json.JSONDecodeError, IndexError) as error:
        reason = f"a fault: {type(error).__name__}"
        found = {"network": name, "scope": None, "trained": False, "exported": False, "reason": reason}
    print(f"{name}: {'exported' if found['exported'] else found['reason']}", file=sys.stderr, flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return what became of each network as a Markdown table."""
    lines = [
        "| network | masked | trained | exported | largest difference | reason |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        difference = f"{max(row['max_rel_diff'].values()):.1e}" if row["exported"] else ""
        yes = {True: "yes", False: "**no**"}
        done = [yes[row["trained"]], yes[row["exported"]]]
        cells = [row["network"], row["scope"] or "", *done, difference, row["reason"] or ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark; exit with status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", metavar="NAME", help="take this network the whole way, and print what became of it")
    parser.add_argument("--output", type=Path, default=RESULT, help="the file of results")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(whole_way(options.one)))
        return
    environment = asdict(read_environment())
    environment["versions"] |= {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "onnx")}
    rows = [in_a_process(name) for name in NETWORKS]
    exported = sum(row["exported"] for row in rows)
    goal = {"goal": f"at least {LEAST} of {len(NETWORKS)} networks are exported", "value": exported}
    found = {
        "command": "python benchmarks/bench_networks.py",
        "method": "a process each; untrained, one epoch of two batches of noise, then exported for a CPU and verified",
        "network": {"input_shape": [3, SIDE, SIDE], "classes": CLASSES, "density": DENSITY},
        "goals": [{**goal, "reached": exported >= LEAST}],
        "rows": rows,
        "environment": environment,
    }
    finish(found, output=options.output, lines=[table(rows)])


if __name__ == "__main__":
    main()
