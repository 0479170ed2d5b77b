"""The rules that hold for every file: DESIGN.md (Rooms) and the style checks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
        if "models" not in folders:
            broken |= {name for name in names if is_or_is_in(name, "flax.linen")}
    if room == "configs":
        allowed = {"ml_collections", "configs", *sys.stdlib_module_names}
        broken |= {name for name in names if name.partition(".")[0] not in allowed}
    return sorted(broken)


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("launch/demo.py", "import flax.linen as nn", ["flax.linen"]),
        ("launch/demo.py", "from flax import linen", ["flax.linen"]),
        ("imagen_ft/text.py", "from flax.linen import Dense", ["flax.linen.Dense"]),
        ("imagen_ft/text.py", "import flax\nflax.linen.Dense(3)", ["flax.linen"]),
        ("imagen_ft/text.py", "from flax import struct", []),
        ("imagen_ft/models/unet.py", "import flax.linen as nn", []),
        ("classifiers/train.py", "def f():\n  import torch.nn", ["torch.nn"]),
        ("tests/parity/test_unet.py", "import diffusers, torch", []),
        ("tests/parity/test_unet.py", "import tensorflow as tf", ["tensorflow"]),
        ("input_pipeline/examples.py", "import tensorflow_datasets", []),
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


def test_import_contracts():
    assert " 0 broken" in run(BIN / "lint-imports", "--no-cache")


def test_import_contracts_notice(tmp_path):
    """Rooms with one forbidden import of each kind break every contract."""
    forbidden = {
        "input_pipeline/files.py": "import launch.demo",
        "launch/demo.py": "import torch",
        "classifiers/train.py": "import imagen_ft.text",
        "imagen_ft/text.py": "from classifiers import train\nimport classifiers.models.resnet",
        "classifiers/models/resnet.py": "",
        "configs/digits.py": "import launch",
    }
    for name, source in forbidden.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
        (tmp_path / name).parent.joinpath("__init__.py").touch()
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    command = [BIN / "lint-imports", "--no-cache"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert " 0 kept, 4 broken" in found
    assert "imagen_ft.text -> classifiers.train" in found
    assert "classifiers.models.resnet" not in found


def test_every_module_imports_without_tensorflow():
    loaded = run(sys.executable, "-c", IMPORT_EVERYTHING, *ROOMS).splitlines()[-1].split()
    assert set(ROOMS) <= set(loaded)
    # tensorboardX imports torch where it finds it, so that one may be there.
    assert not {"tensorflow", "diffusers"} & set(loaded)


def test_ruff_check():
    run(BIN / "ruff", "check", "--no-cache", "--output-format=concise", ".")


def test_ruff_format():
    run(BIN / "ruff", "format", "--check", "--no-cache", "--output-format=concise", ".")
