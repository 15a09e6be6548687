"""What a model refuses: a path that its bundle does not have, and a new bundle that would break its callers."""

from __future__ import annotations

from collections.abc import Iterable

from smart_common.errors import shortened
from smart_runtime.bundle.manifest import DENSE, Manifest
from smart_runtime.errors import BundleError, PathError


def check_path(path: str, paths: Iterable[str]) -> str:
    """Return ``path`` if it is one of the names ``paths``, else raise PathError."""
    is_text = isinstance(path, str)  # a list cannot be looked up, and an array is equal in its own way
    names = tuple(paths)
    if is_text and path in names:
        return path
    is_dense = is_text and path == DENSE
    remedy = "the dense baseline is for smart-bench only" if is_dense else "`smart-run info` describes them"
    raise PathError(f"unknown path {path!r}; the bundle has {', '.join(map(repr, names))} ({remedy})")


def check_replaces(new: Manifest, old: Manifest) -> None:
    """Check that what callers rely on stays: they go on with the same arrays, classes and paths."""
    for what, theirs, ours in (
        ("input", new.input.shape, old.input.shape),
        ("pictures' preprocessing", new.preprocessing, old.preprocessing),
        ("classes", new.class_names, old.class_names),
    ):
        if theirs != ours:
            raise BundleError(
                f"expected a bundle with the {what} of the one that it replaces, {shortened(str(ours))}, "
                f"got {shortened(str(theirs))}; load it as a model of its own"
            )
    if lost := [name for name in old.paths if name not in new.paths]:
        raise BundleError(
            f"the new bundle has no path {lost[0]!r}, which the one that it replaces has; load it as a model of its own"
        )
