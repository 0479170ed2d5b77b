"""Counts the lines that are docstrings and those that carry a comment, room by room.

python -m tests.words [ROOM ...]
"""

import ast
import io
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT

ROOMS = ("launch", "input_pipeline", "imagen_ft", "classifiers", "configs")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Count(NamedTuple):
    lines: int
    docstrings: int
    comments: int

    def __str__(self):
        shares = (100 * part / self.lines for part in (self.docstrings, self.comments))
        return "{:7,d}{:11.1f}%{:9.1f}%".format(self.lines, *shares)


def count(text: str) -> Count:
    """The lines of a module: all, those of docstrings, and those with a comment."""
    docstrings = 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            docstrings += first.end_lineno - first.lineno + 1
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = sum(token.type == tokenize.COMMENT for token in tokens)
    return Count(text.count("\n"), docstrings, comments)


def count_room(folder: Path) -> Count:
    """The sums over all modules below `folder`."""
    counts = [count(file.read_text()) for file in sorted(folder.rglob("*.py"))]
    return Count(*(sum(column) for column in zip(*counts, strict=True)))


def main(rooms: list[str]) -> None:
    rooms = rooms or list(ROOMS)
    counts = {room: count_room(ROOT / room) for room in rooms}
    total = Count(*(sum(column) for column in zip(*counts.values(), strict=True)))
    print(f"{'room':16}{'lines':>7}{'docstrings':>12}{'comments':>10}")
    for room, counted in {**counts, "all": total}.items():
        print(f"{room:16}{counted}")


if __name__ == "__main__":
    main(sys.argv[1:])
