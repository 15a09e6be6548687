"""NumPy's .npz files, which may come from anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from smart_common.errors import shortened
from smart_train.data.source import Array, check_fits, expanded
from smart_train.errors import DataError


def read_npz(
    where: str,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    other_names: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Array]:
    """Return the arrays of the .npz file ``where`` that are asked for, by their names; others are not read.

    Args:
        where: its path; ``~`` is expanded.
        required: without one of them the file is refused.
        optional: may be missing.
        other_names: of an array in other people's files.

    Raises:
        DataError: if there is no such file, it is damaged, larger than memory, or lacks an array.
    """
    wanted = ", ".join(required)
    names = {name: (name, *(other_names or {}).get(name, ())) for name in (*required, *optional)}
    path, where = expanded(where), shortened(where)
    try:
        # An object array would be a pickle, which can run code: allow_pickle stays off.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            unpacked = sum(entry.file_size for entry in arrays.zip.infolist())
            check_fits(unpacked, what=f"the arrays in {where}, of {unpacked} bytes,")
            there = {name: [other for other in others if other in arrays.files] for name, others in names.items()}
            found = {name: arrays[others[0]] for name, others in there.items() if others}
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"no file {where}; give a .npz with {wanted}") from error
    except Exception as error:  # a damaged zip, deflate stream or array header each have an exception of their own
        raise DataError(f"{where} is damaged or no .npz of plain arrays; save {wanted} with numpy.savez") from error
    missing = [name for name in required if name not in found]
    if missing:
        raise DataError(f"no array {', '.join(missing)} in {where}; save {wanted} with numpy.savez")
    return found
