"""The rules that hold for every file: DESIGN.md (Rooms) and the style checks."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

ROOMS = ("classifiers", "configs", "imagen_ft", "input_pipeline", "launch")
BIN = Path(sys.executable).parent

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
for room in sys.argv[1:]:
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def run(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    return done.stdout


def imported_names(source):
    """Dotted names of everything that the source imports, or reaches as `flax.linen`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "flax.linen":
            names.add("flax.linen")
    return names


def is_or_is_in(name, package):
    return f"{name}.".startswith(f"{package}.")


def broken_rules(path, source):
    """The names that the file `path` (relative to the repository) must not import."""
    room, *folders = Path(path).parent.parts or ("",)
    names = imported_names(source)
    broken = {name for name in names if is_or_is_in(name, "tensorflow")}
    if room != "tests":
        banned = ("torch", "torchvision", "diffusers")
        broken |= {name for name in names if any(is_or_is_in(name, ban) for ban in banned)}
        if not {"models", "layers"} & set(folders):
            broken |= {name for name in names if is_or_is_in(name, "flax.linen")}
    if room == "configs":
        allowed = {"ml_collections", "configs", *sys.stdlib_module_names}
        broken |= {name for name in names if name.partition(".")[0] not in allowed}
    return sorted(broken)


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("imagen_ft/demo/__main__.py", "import flax.linen as nn", ["flax.linen"]),
        ("imagen_ft/demo/__main__.py", "from flax import linen", ["flax.linen"]),
        ("imagen_ft/text/encoders.py", "from flax.linen import Dense", ["flax.linen.Dense"]),
        ("imagen_ft/text/encoders.py", "import flax\nflax.linen.Dense(3)", ["flax.linen"]),
        ("imagen_ft/text/encoders.py", "from flax import struct", []),
        ("imagen_ft/models/unet.py", "import flax.linen as nn", []),
        ("classifiers/train.py", "def f():\n  import torch.nn", ["torch.nn"]),
        ("tests/parity/test_unet.py", "import diffusers, torch", []),
        ("tests/parity/test_unet.py", "import tensorflow as tf", ["tensorflow"]),
        ("input_pipeline/records/tf_example.py", "import tensorflow_datasets", []),
        ("configs/digits/base.py", "import math, jax", ["jax"]),
        ("configs/digits/base.py", "from ml_collections import config_dict", []),
    ],
)
def test_import_rules_see(path, source, broken):
    assert broken_rules(path, source) == broken


def test_import_rules():
    files = [file for room in (*ROOMS, "tests") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > len(ROOMS)
    broken = {
        str(f.relative_to(ROOT)): broken_rules(f.relative_to(ROOT), f.read_text()) for f in files
    }
    assert not {file: names for file, names in broken.items() if names}


def replaced_names(source):
    """What the source assigns in something that it has imported: `module.name = ...`."""
    nodes = list(ast.walk(ast.parse(source)))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names}
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    targets = [target for target in targets if isinstance(target, ast.Attribute)]
    return [text for target in targets if (text := ast.unparse(target)).split(".")[0] in names]


def test_what_a_test_replaces_is_put_back():
    # By monkeypatch or mock.patch. Scripts of tests, which run in processes of their own, may.
    sources = {file: file.read_text() for file in (ROOT / "tests").rglob("*.py")}
    imported = set()
    for file, source in sources.items():
        if file.name.startswith("test_") or file.name == "conftest.py":
            imported |= imported_names(source)
    broken = {}
    for file, source in sources.items():
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if file.name.startswith("test_") or any(is_or_is_in(name, module) for name in imported):
            broken[module] = replaced_names(source)
    assert replaced_names("from a import b\nb.c.d = 1\nc.d = 2") == ["b.c.d"]
    assert not {module: names for module, names in broken.items() if names}


def test_import_contracts():
    assert " 0 broken" in run(BIN / "lint-imports", "--no-cache")


def test_import_contracts_notice(tmp_path):
    """One forbidden import of each kind in a copy of the rooms: no contract is kept."""
    for room in ROOMS:
        ignored = shutil.ignore_patterns("data", "__pycache__")
        shutil.copytree(ROOT / room, tmp_path / room, ignore=ignored)
    forbidden = {
        "launch/files.py": "imagen_ft.demo.report",
        "launch/errors.py": "launch.cli, torch",
        "launch/runtime/ema.py": "launch.runtime.app",
        "input_pipeline/source.py": "input_pipeline.batches.loader",
        "classifiers/models/norm.py": "classifiers.train",
        "imagen_ft/text/encoders.py": "classifiers.train",
        "imagen_ft/models/t5.py": "imagen_ft.cascade.cascade",
        "configs/digits/common.py": "launch",
    }
    for name, modules in forbidden.items():
        with (tmp_path / name).open("a") as file:
            file.write(f"import {modules}\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [BIN / "lint-imports", "--no-cache"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert " 0 kept," in found
    assert "imagen_ft.text.encoders -> classifiers.train" in found
    assert "imagen_ft is not allowed to import classifiers.train" in found
    assert "imagen_ft is not allowed to import classifiers.models" not in found


def test_every_module_imports_without_tensorflow():
    loaded = run(sys.executable, "-c", IMPORT_EVERYTHING, *ROOMS).splitlines()[-1].split()
    assert set(ROOMS) <= set(loaded)
    # tensorboardX imports torch where it finds it, so that one may be there.
    assert not {"tensorflow", "diffusers"} & set(loaded)


def test_ruff_check():
    run(BIN / "ruff", "check", "--no-cache", "--output-format=concise", ".")


def test_ruff_format():
    run(BIN / "ruff", "format", "--check", "--no-cache", "--output-format=concise", ".")


@pytest.mark.slow  # A hook runs it before every commit.
def test_types():
    checked = run(BIN / "mypy", f"--python-executable={sys.executable}")
    # It says nothing of rooms that it was not given.
    assert int(re.search(r"no issues found in (\d+) source files", checked)[1]) > 200
