"""Several policies, the most important one first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from smart_runtime.inputs import Images
from smart_runtime.policies.members import Member
from smart_runtime.policies.policy import Policy, PolicyModel, SwitchRequest, check_choice, is_policy
from smart_runtime.serving import Result


class First:
    """Does what the first of several policies asks for.

        First([Tripwire(), Budget(...), Schedule(...)], otherwise="clean")

    All of them see every call, and what each asked for last stands until it asks for something else. To ask for
    ``otherwise`` is to have no wish: then the next one counts, and ``otherwise`` answers where nobody wants anything
    else. So with two paths, ``otherwise`` answers only while every policy agrees to it.
    """

    def __init__(self, policies: Sequence[Policy], *, otherwise: str | None = None) -> None:
        """Decide by ``policies``.

        Args:
            policies: The most important one first; each is in no other model.
            otherwise: Answers where none of them asks for another path; None for the bundle's default path.

        Raises:
            ValueError: There are none, or one of them is none.
        """
        members = list(policies)
        if not members:
            raise ValueError("expected policies, the most important one first, got none")
        for one in members:
            if not is_policy(one):
                raise ValueError(f"expected policies with start, observe and stop, got {one!r:.100} among them")
        self._members = tuple(Member(one, self._decide) for one in members)
        self._named = otherwise
        self._otherwise = ""
        self._model: PolicyModel | None = None

    def start(self, model: PolicyModel) -> None:
        """Start all of them; if one raises, those before it are stopped."""
        self._otherwise = check_choice(self._named or model.manifest.default_path, model)
        started: list[Member] = []
        try:
            for member in self._members:
                member.start(model)
                started.append(member)
        except BaseException:
            _each(started, lambda member: member.policy.stop())
            raise
        self._model = model
        self._decide()

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:
        """Show the call to all; return what the first one asks for. What one raises keeps no other from its say."""
        error = _each(self._members, lambda member: member.observe(result, images))
        if error is not None:
            self._decide()
            raise error
        return self._wanted()

    def _wanted(self) -> SwitchRequest | None:
        yielding = None
        for member in self._members:
            wish = member.wish
            if wish is not None and wish.path != self._otherwise:
                return replace(wish, reason=f"{member.name}: {wish.reason}")
            if yielding is None and wish is not None:
                yielding = replace(wish, reason=f"{member.name}: {wish.reason}")
        return yielding

    def _decide(self) -> None:
        """Switch outside of a call."""
        model, wanted = self._model, self._wanted()
        if model is not None and wanted is not None and wanted.path != model.path:
            model.switch(wanted.path, wanted.reason, wanted.details)

    def reloaded(self, model: PolicyModel) -> None:
        """Tell all of them; raises what the first of them raises."""
        self._otherwise = check_choice(self._named or model.manifest.default_path, model)
        error = _each(self._members, lambda member: member.reloaded())
        if error is not None:
            raise error

    def status(self) -> Mapping[str, Any]:
        """Return what each of them says, by its number and name."""
        return {f"{number}_{member.name}": member.status() for number, member in enumerate(self._members, start=1)}

    def stop(self) -> None:
        """Stop all of them; raises what the first of them raises."""
        error = _each(self._members, lambda member: member.policy.stop())
        if error is not None:
            raise error


def _each(members: Sequence[Member], do: Callable[[Member], None]) -> Exception | None:
    """Do it for all members; return what the first of them raised."""
    first = None
    for member in members:
        try:
            do(member)
        except Exception as error:  # noqa: PERF203  # whatever a policy raises: the others have their turn
            first = first or error
    return first
