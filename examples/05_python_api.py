"""Train, evaluate, export and run handwritten digits with Python alone, through the functions that are public.

``python examples/05_python_api.py FOLDER`` takes about a minute; the folder is python-api-out by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

from smart_eval import EvalOptions, evaluate
from smart_export import build_bundle, check_bundle
from smart_runtime import SmartModel
from smart_train import Attack, TrainConfig, Trainer, load_data

out = Path(sys.argv[1] if len(sys.argv) > 1 else "python-api-out")
out.mkdir(parents=True, exist_ok=True)

digits = load_data("digits")
config = TrainConfig(model_arguments={"width": 16}, attack=Attack(eps=0.2, steps=3), epochs=4, learning_rate=0.2)
trained = Trainer(config, digits, output=out / "ckpt.pt").run()

attacked = evaluate(trained.checkpoint, options=EvalOptions(attack="pgd10x1", examples=100, checks=False))
for path in ("clean", "robust"):
    print(f"{path}: {attacked.accuracy(path, 'clean')} clean, {attacked.worst(path)} under PGD")

built = build_bundle(trained.checkpoint, output=out / "bundle", target="cpu", force=True)
checked = check_bundle(built.bundle, source=trained.checkpoint)
print(f"{len(checked.findings)} checks of {built.bundle} hold")

with SmartModel.load(built.bundle) as model:
    for path in model.paths:
        model.path = path
        right = (model(digits.test.images).argmax(axis=1) == digits.test.labels).mean()
        print(f"{path}: {right:.1%} of {len(digits.test)} digits right on the device")
