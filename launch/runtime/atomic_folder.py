"""Folders that are either complete or absent."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from launch.errors import InputError
from launch.files import is_local
from launch.folders import can_rename, entries
from launch.runtime.locks import lock

# Marks an incomplete folder where folders cannot be renamed, as in an object store.
_UNFINISHED = ".unfinished"

# Suffixes of weight files: a path like that was meant for a file, not a folder.
_OF_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def check_target(target: epath.Path) -> None:
    """Raises `InputError` if something is there already or the name is that of a weight file."""
    if target.suffix in _OF_FILES:
        raise InputError(
            f"--to must be a folder, got {target}; pass a folder for the weights and the files "
            "that describe them"
        )
    if target.exists() and not target.is_dir():
        raise InputError(f"--to must be a folder, got the file {target}; choose another one")
    # A folder that still has the marker is the rest of a killed process: it may be overwritten.
    if entries(target) and not (target / _UNFINISHED).exists():
        raise InputError(
            f"--to must be an empty folder, got {target}; choose another one, or remove it"
        )


@contextlib.contextmanager
def atomic_folder(target: epath.Path) -> Iterator[epath.Path]:
    """Yields an empty folder to write to, which becomes `target` when the block ends.

    On an error nothing is left; what a killed process left is removed first. Call `check_target`
    before. Raises `InputError` if another process is working on the same target.
    """
    # 1. Lock a hidden folder beside the target; a rename there stays within one file system.
    target = epath.Path(os.path.abspath(target)) if is_local(target) else target
    renamed = can_rename(target.parent)
    folder = target.parent / f".{target.name}.unfinished" if renamed else target
    lock(folder)
    _empty(folder)
    # 2. Mark it as incomplete where no rename can make it appear at once.
    if not renamed:
        (folder / _UNFINISHED).write_text("")
    # 3. Let the caller write; remove everything on any error, also on Ctrl-C.
    try:
        yield folder
    except BaseException:
        _empty(folder)
        if renamed:
            folder.rmtree()
        raise
    # 4. Give it its final name. The process that holds the lock does not create its file again.
    (folder / ".lock").unlink(missing_ok=True)
    if renamed:
        os.rename(folder, target)
    else:
        (folder / _UNFINISHED).unlink()


def _empty(folder: epath.Path) -> None:
    for path in entries(folder):
        if path.is_dir():
            path.rmtree()
        elif path.name not in (".lock", _UNFINISHED):
            path.unlink()
