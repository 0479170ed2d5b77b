"""Folders on mounted file systems and in object stores, which have names with slashes instead."""

import os
import shutil
import uuid

import fsspec.config
from etils import epath

from launch.files import is_local

# gcsfs would go on to list what was there when this process looked first.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def entries(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder, in the order of its names; nothing where it is not there.

    A store knows no empty folders, so there the two are the same.
    """
    try:
        # Stores' own programs leave objects that stand for the folder itself.
        return sorted(path for path in folder.iterdir() if path != folder)
    except FileNotFoundError:
        return []


def file_names(folder: epath.Path) -> list[str]:
    """The names of all files below a folder, relative to it, in order."""
    top = os.fspath(folder).partition("://")[2] or os.fspath(folder)
    names = [
        os.path.relpath(os.path.join(parent, name), top)
        for parent, _, files in folder.walk()  # of a store without its `gs://`
        for name in files
        if name
    ]
    return sorted(names)


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
    trial = parent / f".{uuid.uuid4().hex}.tmp"
    (trial / "old").mkdir(parents=True)
    try:
        (trial / "old" / "file").touch()
        os.rename(trial / "old", trial / "new")
    except OSError:
        return False
    finally:
        trial.rmtree()
    return True
