"""A disk of a few kilobytes, to fill up."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder, size):
    """Mounts an empty file system of `size`, such as '64k'; skips the test if that is forbidden.

    Yields:
        A function that changes its size.
    """
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options]).returncode:
        pytest.skip("mounting a small file system needs root")

    def resize(larger):
        remount = ["mount", "-o", f"remount,size={larger}", str(folder)]
        subprocess.run(remount, check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
