"""Folders on file systems and in object stores, where they are only names with slashes."""

import os
import shutil
import uuid

import fsspec.core
from etils import epath

from launch.files import is_local


def entries(folder: epath.Path) -> list[epath.Path]:
    """A folder's content, sorted by name; empty if there is no such folder."""
    try:
        if is_local(folder):
            return sorted(folder.iterdir())
        # A store has no empty folders: an empty one and a missing one are the same.
        store, top = fsspec.core.url_to_fs(os.fspath(folder))
        names = [_name(path, top) for path in store.ls(top, detail=False)]
    except FileNotFoundError:
        return []
    return sorted(folder / name for name in names if name)


def file_names(folder: epath.Path) -> list[str]:
    """The sorted names of all files below a folder, relative to it."""
    if is_local(folder):
        return sorted(
            str((parent / name).relative_to(folder))
            for parent, _, names in folder.walk()
            for name in names
        )
    store, top = fsspec.core.url_to_fs(os.fspath(folder))
    # Names that end with a slash are objects by which mounts mark their folders.
    return sorted(_name(path, top) for path in store.find(top) if not path.endswith("/"))


def checksums(folder: epath.Path) -> dict[str, str]:
    """The size and checksum of every file below a store's folder, by name, without reading them."""
    store, top = fsspec.core.url_to_fs(os.fspath(folder))
    # The store computed crc32c of the bytes that it received.
    return {
        _name(path, top): f"{entry['size']} bytes, crc32c {entry['crc32c']}"
        for path, entry in store.find(top, detail=True).items()
        if not path.endswith("/")
    }


def _name(path: str, top: str) -> str:
    """The name below a folder; empty for the object by which a mount marks that folder."""
    return path.removeprefix(top).strip("/")


def move(folder: epath.Path, target: epath.Path) -> None:
    """Renames a folder to a free name; across file systems and in a store, file by file."""
    if is_local(folder):
        shutil.move(folder, target)
    else:
        folder.rename(target)


def can_rename(parent: epath.Path) -> bool:
    """Whether folders with files can be renamed here: not in a store, nor on some mounts.

    Creates `parent` if it is missing.
    """
    if not is_local(parent):
        return False
    parent.mkdir(parents=True, exist_ok=True)
    trial = parent / f".{uuid.uuid4().hex}.trial"
    (trial / "old").mkdir(parents=True)
    try:
        # With a file in it: gcsfuse by default renames only empty folders (--rename-dir-limit).
        (trial / "old" / "file").touch()
        os.rename(trial / "old", trial / "new")
    except OSError:
        return False
    finally:
        trial.rmtree()
    return True
