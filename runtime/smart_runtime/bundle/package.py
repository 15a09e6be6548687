"""What around our own record in a manifest is ONNX Runtime's: a package that its reader runs as we do."""

from __future__ import annotations

from collections.abc import Mapping

from smart_common.documents import Reader

_MAX_VARIANTS = 16  # of a component: one an execution provider
_MAX_NAME = 1024  # characters of a file's name: it stands in error messages


def check_package(root: Reader, *, files: Mapping[str, str]) -> None:
    """Check that ONNX Runtime's own package reader would run, under each path's name, the very graph that we run.

    And that it would do so without anything that a package may bring along there: session and provider options, files
    by absolute names (``layout``), shared assets. The exporter writes none, so only what it does write is allowed.
    ``files`` has the graph of each path.
    """
    root.only("schema_version", "package_name", "package_version", "components", "additional_metadata")
    root.choice("schema_version", ["1.0"])
    components = root.object("components")
    if components.raw.keys() != files.keys():
        raise components.unlike(f"the components {', '.join(files)}")
    for name, file in files.items():
        component = components.object(name)
        component.only("variants")
        variants = component.object("variants")
        if not 1 <= len(variants.keys) <= _MAX_VARIANTS:
            raise variants.unlike(f"1 to {_MAX_VARIANTS} variants")
        for variant_name in variants.keys:
            variant = variants.object(variant_name)
            variant.only("ep", "variant_directory", "executor_info")
            variant.string("ep")
            executors = variant.object("executor_info")
            executors.only("ort")
            executor = executors.object("ort")
            executor.only("model_file")
            if f"{file_name(variant, 'variant_directory')}/{file_name(executor, 'model_file')}" != file:
                raise variant.wrong("executor_info", f"the graph {file!r} as for the path {name!r}")


def file_name(graph: Reader, key: str) -> str:
    """Return the name of a file inside the bundle that stands under ``key``; raises what the reader raises."""
    value = graph.string(key)
    if not is_inside(value):
        raise graph.wrong(key, "a file inside the bundle, such as 'clean/model.onnx',")
    return value


def is_inside(name: str) -> bool:
    """Say whether ``name`` is a plain relative file name with forward slashes that cannot lead out of a directory."""
    plain = name.isprintable() and "\\" not in name and ":" not in name  # the last two lead out on Windows
    return plain and len(name) <= _MAX_NAME and all(part not in {"", ".", ".."} for part in name.split("/"))
