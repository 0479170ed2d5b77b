"""Folders that are either whole or not there."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from launch.errors import InputError
from launch.files import is_local
from launch.folders import can_rename, entries
from launch.runtime.locks import lock

# Where a folder cannot be renamed, as in an object store: there until the folder is whole.
_UNFINISHED = ".unfinished"

_OF_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def check_target(target: epath.Path) -> None:
    """Whether a folder may be made there.

    Raises:
        InputError: there is something, or the name is that of a file of weights.
    """
    if target.suffix in _OF_FILES:
        raise InputError(
            f"--to must be a folder, got {target}; name one for the weights and the files "
            "that describe them"
        )
    if target.exists() and not target.is_dir():
        raise InputError(f"--to must be a folder, got the file {target}; name another one")
    if entries(target) and not (target / _UNFINISHED).exists():
        raise InputError(
            f"--to must be an empty folder, got {target}; name another one, or remove it"
        )


@contextlib.contextmanager
def atomic_folder(target: epath.Path) -> Iterator[epath.Path]:
    """Makes a folder; what an error or a killed process leaves behind is removed and made anew.

    Args:
        target: its final name; `check_target` has been called.

    Yields:
        The folder to write to. Where folders can be renamed, it gets its final name when all is
        written.

    Raises:
        InputError: another process is at work on it.
    """
    target = epath.Path(os.path.abspath(target)) if is_local(target) else target
    renamed = can_rename(target.parent)
    folder = target.parent / f".{target.name}.unfinished" if renamed else target
    lock(folder)
    _empty(folder)
    if not renamed:
        (folder / _UNFINISHED).write_text("")
    try:
        yield folder
    except BaseException:
        _empty(folder)
        if renamed:
            folder.rmtree()
        raise
    (folder / ".lock").unlink(missing_ok=True)  # not made again by the process that had it
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
