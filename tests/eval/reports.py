"""Reports of small figures for tests of the page, each part as smart-eval makes it, and the page as it is read."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from smart_eval.page.included import Included
from smart_eval.page.pictures import Attacked, Picture, Pictures
from smart_eval.page.subject import Report

VOID = {"meta", "img", "br", "input"}


class Parsed(HTMLParser):
    """A page as a browser takes it: elements, attributes and text; refuses what is not balanced."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        return [(name, sorted(attributes)) for name, attributes in self.elements]


def marks(page: Parsed, class_: str) -> list[dict[str, str | None]]:
    return [attributes for _, attributes in page.elements if attributes.get("class") == class_]


def figure(correct: int, total: int = 10) -> dict[str, Any]:
    value = correct / total
    return {"accuracy": value, "interval": [max(0, value - 0.1), min(1, value + 0.1)], "correct": correct}


def path_record(clean: int, robust: int) -> dict[str, Any]:
    return {
        "clean_accuracy": clean / 10,
        "clean_interval": [clean / 10 - 0.05, clean / 10],
        "robust_accuracy": robust / 10,
        "robust_interval": [robust / 10, robust / 10 + 0.05],
    }


def model(name: str = "ckpt.pt", classes: tuple[str, ...] = ("cat", "dog"), **more: Any) -> dict[str, Any]:
    paths = {"clean": path_record(9, 1), "robust": path_record(8, 5)}
    attacks = [{"name": name, "eps": 8 / 255, "description": f"{name} in words"} for name in ("pgd20x1", "autoattack")]
    return {
        "model": name,
        "kind": "checkpoint",
        "digest": "ab" * 32,
        "attacks": attacks,
        "eps": 8 / 255,
        "threat_model": "White-box & friends.",
        "examples": 10,
        "example_indices": None,
        "seed": 0,
        "chunk": 512,
        "paths": {
            path: {**row, "attacks": {attack["name"]: figure(5) for attack in attacks}} for path, row in paths.items()
        },
        "classes": [{"name": one, "label": i, "examples": 5, "paths": paths} for i, one in enumerate(classes)],
        **more,
    }


def some_pictures(classes: tuple[str, ...] = ("cat", "dog")) -> Pictures:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    says = {"clean": 0, "robust": 1}
    attacked = {path: Attacked(pixels=pixels, perturbation=pixels, says=says) for path in says}
    return Pictures(
        class_names=classes,
        attack="pgd20x1",
        eps=8 / 255,
        pictures=[Picture(pixels=pixels, label=0, says=says, attacked=attacked)],
    )


def report(*models: dict[str, Any], **changes: Any) -> Report:
    given_ = models or (model(),)
    found = Report(
        models=given_,
        pictures=[None] * len(given_),
        included=Included(),
        command="smart-eval ckpt.pt",
        environment={"device": "a processor"},
    )
    return replace(found, **changes)


def check(name: str, *, passed: bool | None) -> dict[str, Any]:
    return {"name": name, "path": "clean", "passed": passed, "figures": {}, "sentence": f"Of {name}: so & so."}


THREATS: dict[str, Any] = {
    "attack": {"name": "pgd20x1", "eps": 8 / 255},
    "worst": {"threat_model": "Worst!", "paths": {"clean": figure(0), "robust": figure(3)}},
}


def corruption_rows() -> list[dict[str, Any]]:
    return [
        {
            "set": "our own set",
            "name": kind,
            "severity": severity,
            "parameter": severity / 8,
            "parameter_meaning": "how much",
            "paths": {"clean": figure(9 - worse - severity), "robust": figure(8 - worse - severity)},
        }
        for worse, kind in enumerate(("gaussian-noise", "jpeg"))
        for severity in (1, 2)
    ]


def curve() -> dict[str, Any]:
    rows = {"accuracy": [0.9, 0.5, 0.125], "interval": [[0.8, 1.0], [0.4, 0.6], [0.1, 0.2]]}
    return {"attack": "pgd50x1", "examples": 10, "eps": [0.0, 0.1, 0.2], "paths": {"clean": rows, "robust": rows}}
