"""Folders on mounted file systems and in object stores, which have names with slashes instead."""

import os
import shutil
import uuid

import fsspec.core
from etils import epath

from launch.files import is_local


def entries(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder, in the order of its names; nothing where it is not there.

    A store knows no empty folders, so there the two are the same.
    """
    try:
        if is_local(folder):
            return sorted(folder.iterdir())
        store, top = fsspec.core.url_to_fs(os.fspath(folder))
        names = [_name(path, top) for path in store.ls(top, detail=False)]
    except FileNotFoundError:
        return []
    return sorted(folder / name for name in names if name)


def file_names(folder: epath.Path) -> list[str]:
    """The names of all files below a folder, relative to it, in order."""
    if is_local(folder):
        return sorted(
            str((parent / name).relative_to(folder))
            for parent, _, names in folder.walk()
            for name in names
        )
    store, top = fsspec.core.url_to_fs(os.fspath(folder))
    return sorted(_name(path, top) for path in store.find(top) if not path.endswith("/"))


def checksums(folder: epath.Path) -> dict[str, str]:
    """What a store says of all files below a folder, by name; nothing is read.

    It computes checksums of what it has received.
    """
    store, top = fsspec.core.url_to_fs(os.fspath(folder))
    return {
        _name(path, top): f"{entry['size']} bytes, crc32c {entry['crc32c']}"
        for path, entry in store.find(top, detail=True).items()
        if not path.endswith("/")
    }


def _name(path: str, top: str) -> str:
    """Below a store's folder; empty for objects that stand for the folder, which mounts make."""
    return path.removeprefix(top).strip("/")


def move(folder: epath.Path, target: epath.Path) -> None:
    """Gives a folder another name: at once where that is possible, else file by file.

    Args:
        folder: to move.
        target: its new name, which is free.
    """
    if is_local(folder):
        shutil.move(folder, target)
    else:
        folder.rename(target)


def can_rename(parent: epath.Path) -> bool:
    """Whether folders that hold files can be renamed there: a store cannot, and some mounts.

    Args:
        parent: where they are; made if it is missing.
    """
    if not is_local(parent):
        return False
    parent.mkdir(parents=True, exist_ok=True)
    trial = parent / f".{uuid.uuid4().hex}.trial"
    (trial / "old").mkdir(parents=True)
    try:
        (trial / "old" / "file").touch()
        os.rename(trial / "old", trial / "new")
    except OSError:
        return False
    finally:
        trial.rmtree()
    return True
