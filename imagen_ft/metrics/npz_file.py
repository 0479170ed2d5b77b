"""Reads arrays of npz files; nothing in them is ever unpickled."""

import zipfile
import zlib
from collections.abc import Collection

import numpy as np
from etils import epath

from launch.errors import InputError


def read_arrays(
    path: epath.Path, names: Collection[str], what: str, needs: str
) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that the file has.

    `what` and `needs` are for messages: what the file should hold, and which arrays. Raises
    `InputError` if it is missing, not an npz, a pickle, or damaged.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give an npz file of {what}")
    with path.open("rb") as file:
        # An npz is a zip (PK); pickles, of protocol 2 or later, start with 0x80 and get a message
        # of their own.
        magic = file.read(4)
        if not magic.startswith(b"PK"):
            kind = (
                "a pickle, which could run any code" if magic[:1] == b"\x80" else "not an npz file"
            )
            raise InputError(f"{path} is {kind}; convert it to an npz file with {needs}")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files if name in names}
        # NumPy raises ValueError for pickled arrays and for headers that it cannot parse.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} is damaged or holds pickles ({reason}); use another file"
            ) from None
