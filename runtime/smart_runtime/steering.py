"""What lets a policy see calls and switch, and a hand overrule it."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeAlias

from smart_common.errors import alternatives
from smart_runtime import policies
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.causes import HAND, Cause
from smart_runtime.errors import ClosedError, InputError
from smart_runtime.inputs import Images
from smart_runtime.path_state import PathState
from smart_runtime.policies.policy import Policy, PolicyModel, SwitchRequest, is_policy, name_of
from smart_runtime.serving import Result

_Using: TypeAlias = Callable[[str], AbstractContextManager[object]]

_log = logging.getLogger(__name__)


class Steering:
    """The policy of one model, from its start to its end; ``policy`` is None where switching is left to hands."""

    def __init__(self, state: PathState) -> None:
        self.policy: Policy | None = None
        self._state = state
        self._model: PolicyModel | None = None
        self._name = ""
        self._observing: set[int] = set()  # the threads in which the policy is looking at a call
        self._said = False  # that a hand has set the path

    def start(self, policy: Policy, *, run: Callable[[Images], Result], using: _Using) -> None:
        """Let ``policy`` see calls from now on; raises whatever its `start` raises.

        Args:
            policy: The policy.
            run: Classifies images for it, unobserved.
            using: The model's.
        """
        self._name = name_of(policy)
        self._model = _Facade(self, self._state, run=run, using=using)
        policy.start(self._model)
        self.policy = policy

    @property
    def name(self) -> str | None:
        """The policy's name; None without one."""
        return None if self.policy is None else self._name

    @property
    def overridden(self) -> bool:
        """Whether a hand has set the path, so that what the policy asks for is not done."""
        return self.policy is not None and self._state.overridden

    def observe(self, result: Result, images: Images) -> None:
        """Show a call to the policy and do what it asks for; whatever fails, the caller gets the result."""
        policy, thread = self.policy, threading.get_ident()
        if policy is None or thread in self._observing:  # the policy itself made this call
            return
        try:
            self._observing.add(thread)
            request = policy.observe(result, images)
            if request is not None and request.path != self._state.path:
                self.switch(request)
        except ClosedError:  # between the call and here, by another thread
            pass
        except (
            Exception
        ) as error:  # whatever a policy raises, and whatever its switch runs into: the call has succeeded
            self._failed("observe", error)
        finally:
            self._observing.discard(thread)

    def switch(self, request: SwitchRequest) -> None:
        """Do what the policy asks for, unless a hand has set the path; raises as `SmartModel.switch`."""
        details = self._read_status if request.details is None else partial(_itself, request.details)
        self._state.switch(request.path, Cause(request.reason, by=self._name, details=details))

    def switch_by_hand(self, path: str, reason: str) -> None:
        """Let ``path`` answer whatever the policy asks for, until `follow`."""
        self._state.switch(path, Cause(reason, by=HAND))
        if self.policy is not None and not self._said:
            self._said = True
            self._state.recorder.journal("overridden", {"path": path, "policy": self._name})
            _log.warning(
                "the path %r was set by hand: what the policy %s asks for is ignored until follow_policy()",
                path,
                self._name,
            )

    def follow(self) -> None:
        """Do again what the policy asks for.

        Raises:
            InputError: There is no policy.
        """
        self._state.check_usable()
        if self.policy is None:
            raise InputError("the model has no policy to follow; load it with policy=...")
        self._state.overridden = self._said = False
        self._state.recorder.journal("followed", {"path": self._state.path, "policy": self._name})

    def reloaded(self) -> None:
        """Tell the policy that another bundle serves."""
        reloaded: Callable[[PolicyModel], None] | None = getattr(self.policy, "reloaded", None)
        if reloaded is not None and self._model is not None:
            try:
                reloaded(self._model)
            except Exception as error:  # the reload has succeeded
                self._failed("reloaded", error)

    def status(self) -> Mapping[str, Any]:
        """Return what the policy says of itself; nothing where it does not, or fails, which is counted."""
        try:
            found = self._read_status()
        except Exception as error:  # metrics and calls go on
            self._failed("status", error)
            return {}
        return found if isinstance(found, Mapping) else {}

    def _read_status(self) -> object:
        status: Callable[[], object] | None = getattr(self.policy, "status", None)
        return None if status is None else status()

    def stop(self) -> None:
        """Let the policy give back what it took; the model is closed."""
        if self.policy is not None:
            try:
                self.policy.stop()
            except Exception as error:  # the model is closed
                self._failed("stop", error)

    def _failed(self, method: str, error: Exception) -> None:
        """Count the exception that is being handled; say the first, second, fourth, eighth and so on."""
        count = self._state.recorder.policy_failure()
        if count & (count - 1) == 0:  # not each: it may come with every frame
            failed = {"policy": self._name, "method": method, "error": type(error).__name__, "failures": count}
            self._state.recorder.journal("policy failed", failed)
            _log.exception("the policy failed in %s, %d failures so far; calls go on", method, count)


def _itself(value: object) -> object:
    return value


class _Facade:
    """A model as its policy sees it: a `PolicyModel`, whose switches are the policy's and whose calls are not seen."""

    def __init__(self, steering: Steering, state: PathState, *, run: Callable[[Images], Result], using: _Using) -> None:
        self._steering = steering
        self._state = state
        self.run = run
        self.using = using
        self.memory = state.memory

    @property
    def path(self) -> str:
        self._state.check_usable()
        return self._state.path

    @property
    def paths(self) -> tuple[str, ...]:
        return self.manifest.choices

    @property
    def bundle(self) -> Bundle:
        return self._state.bundle

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def switch(self, path: str, reason: str = "", details: Mapping[str, Any] | None = None) -> None:
        self._steering.switch(SwitchRequest(path, reason, details))


def policy_of(policy: Policy | str | None) -> Policy | None:
    """Return a policy as `SmartModel.load` takes it: itself, or by the name of a class in `POLICIES`, in lower case.

    Raises:
        InputError: It is none; no policy has that name; or that one needs arguments.
    """
    if isinstance(policy, str):
        known = {name.lower(): name for name in policies.POLICIES}
        if policy not in known:
            raise InputError(f"unknown policy {alternatives(policy, sorted(known))}")
        kind = getattr(policies, known[policy])
        needed = [
            one.name
            for one in inspect.signature(kind).parameters.values()
            if one.default is one.empty and one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}
        ]
        if needed:
            raise InputError(
                f"the policy {policy!r} needs arguments, {', '.join(needed)}; make one, as in "
                f"policy={known[policy]}({needed[0]}, ...)"
            )
        made: Policy = kind()
        return made
    if policy is not None and not is_policy(policy):
        raise InputError(
            f"expected a policy with start, observe and stop, got {policy!r:.100}; make one, as in Hysteresis(...)"
        )
    return policy
