"""Arrays of npz files; nothing in them is ever unpickled."""

import zipfile
import zlib
from collections.abc import Collection

import numpy as np
from etils import epath

from launch.errors import InputError


def read_arrays(
    path: epath.Path, names: Collection[str], what: str, needs: str
) -> dict[str, np.ndarray]:
    """Some of the arrays of a file.

    Args:
        path: of the file.
        names: of the arrays that are read, of those that are there.
        what: it should hold, for messages.
        needs: the arrays it should have, for messages.

    Raises:
        InputError: it is missing, no npz, a pickle, or damaged.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; give an npz of {what}")
    with path.open("rb") as file:
        magic = file.read(4)
        if not magic.startswith(b"PK"):
            kind = "a pickle, which could run any code" if magic[:1] == b"\x80" else "no npz"
            raise InputError(f"{path} is {kind}; convert it to an npz with {needs}")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files if name in names}
        # NumPy raises ValueError for pickled arrays, and for headers that it cannot read.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} is damaged or holds pickles ({reason}); get another"
            ) from None
