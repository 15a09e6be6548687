"""How one policy holds another: what the inner one asks for is a wish, which the outer one may grant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.inputs import Images
from smart_runtime.memory import MemoryReport
from smart_runtime.policies.policy import Policy, PolicyModel, SwitchRequest, name_of
from smart_runtime.serving import Result


class Member:
    """A policy within another: it sees all calls, and ``wish`` is what it asked for last."""

    def __init__(self, policy: Policy, on_wish: Callable[[], None]) -> None:
        self.policy = policy
        self.wish: SwitchRequest | None = None
        self._on_wish = on_wish
        self._model: _Model | None = None

    def start(self, model: PolicyModel) -> None:
        """Start the policy; raises whatever it raises."""
        self._model = _Model(model, self)
        self.policy.start(self._model)

    def observe(self, result: Result, images: Images) -> None:
        """Show it a call; raises whatever it raises."""
        self.wish = self.policy.observe(result, images) or self.wish

    def ask(self, request: SwitchRequest) -> None:
        """Take a wish that comes outside of a call."""
        self.wish = request
        self._on_wish()

    def reloaded(self) -> None:
        """Tell it of another bundle, if it wants to know."""
        reloaded = getattr(self.policy, "reloaded", None)
        if reloaded is not None:
            reloaded(self._model)

    def status(self) -> Mapping[str, Any]:
        """Return what it says of itself, and what it wishes."""
        status = getattr(self.policy, "status", None)
        return {**({} if status is None else status()), "wish": None if self.wish is None else self.wish.path}

    @property
    def name(self) -> str:
        """See `name_of`."""
        return name_of(self.policy)


class _Model:
    """A model whose switches are wishes of a member."""

    def __init__(self, model: PolicyModel, member: Member) -> None:
        self._model = model
        self._member = member

    @property
    def path(self) -> str:
        return self._model.path

    @property
    def paths(self) -> tuple[str, ...]:
        return self._model.paths

    @property
    def manifest(self) -> Manifest:
        return self._model.manifest

    @property
    def bundle(self) -> Bundle:
        return self._model.bundle

    def memory(self) -> MemoryReport:
        return self._model.memory()

    def run(self, images: Images) -> Result:
        return self._model.run(images)

    def using(self, path: str) -> AbstractContextManager[object]:
        return self._model.using(path)

    def switch(self, path: str, reason: str = "", details: Mapping[str, Any] | None = None) -> None:
        self._member.ask(SwitchRequest(path, reason, details))
