"""Follows the walks of CONTRIBUTING.md: writes their files and adds their rows to the tables."""

import re
from pathlib import Path

from tests.support import pages

_TITLE = re.compile(r"# (?P<path>\S+\.py)(?:: (?:class (?P<class>\w+)|(?P<table>\w+)))?\n")


def follow(page: str, root: Path) -> dict[str, list[str]]:
    """Applies the walks of a page to a copy of the project.

    Args:
        page: its text.
        root: the copy; its files are changed.

    Returns:
        The files that each walk touches, by its title.
    """
    touched = {}
    for walk in page.partition("## How to add something")[2].split("\n### ")[1:]:
        blocks = pages.blocks(walk, "python", "py")  # files; parts of files
        touched[walk.partition("\n")[0]] = [_apply(block, root) for block in blocks]
    return touched


def _apply(block: str, root: Path) -> str:
    title = _TITLE.match(block)
    assert title, f"a block that does not say where it goes: {block}"
    path, code = root / title["path"], block[title.end() :]
    if title["class"] or title["table"]:
        imports, code = _split(code)
        text = _with_imports(path.read_text(), imports)
        add = _in_class if title["class"] else _in_table
        path.write_text(add(text, title["class"] or title["table"], code))
    else:
        assert not path.exists(), f"{path} is there already"
        path.write_text(code)
    return title["path"]


def _split(code: str) -> tuple[str, str]:
    """The imports, and the other lines."""
    lines = code.splitlines(keepends=True)
    imports = [line for line in lines if line.startswith(("from ", "import "))]
    return "".join(imports), "".join(line for line in lines if line not in imports)


def _with_imports(text: str, imports: str) -> str:
    first = re.search(r"^(?:from|import) ", text, re.MULTILINE)
    assert first
    return text[: first.start()] + imports + text[first.start() :]


def _in_table(text: str, name: str, row: str) -> str:
    table = re.search(rf"^{name}(?:: .*)? = \{{.*\n", text, re.MULTILINE)
    assert table, f"there is no table {name}"
    return text[: table.end()] + row + text[table.end() :]


def _in_class(text: str, name: str, code: str) -> str:
    """The position at the end of a class: before the next line without indentation."""
    start = re.search(rf"^class {name}\b.*\n", text, re.MULTILINE)
    assert start, f"there is no class {name}"
    end = re.search(r"^\S", text[start.end() :], re.MULTILINE)
    at = start.end() + (end.start() if end else len(text))
    return f"{text[:at].rstrip()}\n\n{code.strip(chr(10))}\n\n\n{text[at:]}"
