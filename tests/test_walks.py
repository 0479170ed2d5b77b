"""What CONTRIBUTING.md says is all that there is to do: its walks, followed in a copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, walks

ROOMS = ("classifiers", "configs", "imagen_ft", "input_pipeline", "launch")
PAGE = ROOT / "CONTRIBUTING.md"
RUFF = Path(sys.executable).with_name("ruff")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the rooms with all that the walks add, and the files that each of them touches."""
    root = tmp_path_factory.mktemp("copy")
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__", "*.ipynb")
        shutil.copytree(ROOT / room, root / room, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    return root, walks.follow(PAGE.read_text(), root)


def test_the_walks_lead_to_what_they_promise(copy):
    root, touched = copy
    script = Path(walks.__file__).with_name("walked.py")
    command = [
        sys.executable,
        "-c",
        f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')",
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [title.lower() for title in touched]


def test_the_walks_are_short(copy):
    _, touched = copy
    assert len(touched) == 6
    for title, files in touched.items():
        assert len(set(files)) <= 2, title


def test_what_the_walks_add_is_clean(copy):
    root, touched = copy
    files = sorted({file for files in touched.values() for file in files})
    fix = [RUFF, "check", "--no-cache", "--fix", "--quiet", *files]
    done = subprocess.run(fix, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "block",
    ["x = 1\n", "# input_pipeline/sources/registry.py: NO_TABLE\nx\n", "# x.py: class X\nx\n"],
)
def test_blocks_that_cannot_be_followed(tmp_path, block):
    (tmp_path / "input_pipeline" / "sources").mkdir(parents=True)
    (tmp_path / "input_pipeline" / "sources" / "registry.py").write_text("import x\nKINDS = {\n}\n")
    (tmp_path / "x.py").write_text("import x\n")
    page = f"## How to add something\n\n### A thing\n\n```python\n{block}```\n"
    with pytest.raises(AssertionError):
        walks.follow(page, tmp_path)
