"""Runs the notebooks from top to bottom, each in a clean kernel, and keeps what they print.

python -m tests.launch.colab.run_notebooks                  # all, small, to see that they run
python -m tests.launch.colab.run_notebooks --save           # as they are; outputs are saved
python -m tests.launch.colab.run_notebooks --save=road      # one of them
python -m tests.launch.colab.run_notebooks --repository=OWNER/NAME    # where the project is public
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.support import ROOT

FOLDER = ROOT / "launch" / "colab"
NOTEBOOKS = {name: FOLDER / f"{name}.ipynb" for name in ("road", "sample", "inspect_dataset")}
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
OPENED_AT = "https://colab.research.google.com/github/{repository}/blob/main/launch/colab/{name}"
# All files that name the repository.
PAGES = (
    ".github/ISSUE_TEMPLATE/config.yml",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "README.md",
    "launch/README.md",
)
# What stands around the repository's name.
_AROUND = (
    "github/{}/blob",
    "github.com/{}.git",
    "github.com/{}/",
    'github.com/{}"',
    'REPOSITORY = \\"{}\\"  #',
)
PLACEHOLDER = "OWNER/imagen-ft"
_REPOSITORY = re.compile(r'^REPOSITORY = "([^"]*)"', re.MULTILINE)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def with_settings(notebook: nbformat.NotebookNode, **settings: object) -> nbformat.NotebookNode:
    """A copy whose form fields have other values: lines `NAME = value  # @param`."""
    notebook = nbformat.from_dict(notebook)
    for name, value in settings.items():
        pattern = re.compile(rf"^{name} = .*?(  # @param.*)$", re.MULTILINE)
        changed = 0
        for cell in notebook.cells:
            if cell.cell_type == "code":
                line = f"{name} = {value!r}"
                cell.source, count = pattern.subn(lambda m, line=line: line + m[1], cell.source)
                changed += count
        assert changed == 1, f"{changed} form fields are called {name}"
    return notebook


def execute(notebook: nbformat.NotebookNode, timeout: int = 1200) -> nbformat.NotebookNode:
    """Runs all cells in a new kernel, at the project's root; the outputs are the notebook's.

    Raises:
        CellExecutionError: a cell fails.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
        record_timing=False,
    )
    return client.execute()


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leaves of what was printed what a reader would see: a progress bar as it was last."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        outputs: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream":
                # Both streams, in the order in which they came, are one text to a reader.
                if outputs and outputs[-1].output_type == "stream":
                    outputs[-1].text += output.text
                    continue
                output.name = "stdout"
            outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                lines = [re.split("\r", line.rstrip("\r"))[-1] for line in output.text.split("\n")]
                output.text = "\n".join(line.rstrip() for line in lines)
            elif "text/plain" in output.data and "image/png" in output.data:
                output.data["text/plain"] = "picture"
        cell.outputs = outputs
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook).rstrip("\n") + "\n")


def repository_of(notebook: nbformat.NotebookNode) -> str:
    """What the form of the first cell has."""
    [name] = [name for cell in notebook.cells for name in _REPOSITORY.findall(cell.source)]
    return name


def rename(repository: str) -> None:
    """Writes where the project is into all notebooks and pages: forms, badges and addresses."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        sys.exit(f"--repository must be OWNER/NAME, got {repository}")
    before = {repository_of(read(path)) for path in NOTEBOOKS.values()}
    for path in (*NOTEBOOKS.values(), *(ROOT / page for page in PAGES)):
        text = path.read_text()
        for name in before:
            for around in _AROUND:
                text = text.replace(around.format(name), around.format(repository))
        path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("--save", nargs="?", const="all", choices=["all", *NOTEBOOKS])
    parser.add_argument("--repository")
    arguments = parser.parse_args()
    if arguments.repository:
        rename(arguments.repository)
        return
    names = NOTEBOOKS if arguments.save in (None, "all") else [arguments.save]
    with tempfile.TemporaryDirectory() as runs:
        for name in names:
            notebook = read(NOTEBOOKS[name])
            if arguments.save:
                write(clean(execute(notebook)), NOTEBOOKS[name])
            else:
                execute(with_settings(notebook, TINY=True, RUNS=runs))
            print(f"{name}: done", flush=True)


class _AsWritten(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description."""


if __name__ == "__main__":
    main()
