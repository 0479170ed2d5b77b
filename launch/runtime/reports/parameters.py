"""Tables of a network's parameters, one line per module or per tensor."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from clu import parameter_overview

from launch.runtime.reports.tables import text_table

# Lines that fit a screen; beyond, modules are summed up.
_MOST_ROWS = 40
_HEADER = ("module", "tensors", "parameters", "share", "largest tensor", "dtype")


def module_table(params: Mapping[str, Any], most_rows: int = _MOST_ROWS) -> str:
    """A line per module, at the deepest level that fits `most_rows`.

    If no level fits, modules that differ in their numbers share a line, with `*` for the number;
    that coarsest table may be longer. Columns: tensors, parameters, share of all parameters, shape
    of the largest tensor, types.
    """
    leaves = {
        tuple(str(key.key) for key in path): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    if not leaves:
        return "no tensors"
    # Take the finest grouping that fits, else the coarsest.
    for name_of in _groupings(max(map(len, leaves))):
        groups: dict[str, list[Any]] = {}
        for path, leaf in leaves.items():
            groups.setdefault(name_of(path), []).append(leaf)
        if len(groups) <= most_rows:
            break
    total = sum(leaf.size for leaf in leaves.values())
    rows = [_row(name, groups[name], total) for name in sorted(groups, key=_in_numbers)]
    return text_table(_HEADER, rows, rule=True)


def tensor_table(params: Mapping[str, Any]) -> str:
    """A line per tensor: name, shape, dtype, size."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def _groupings(depth: int) -> list[Callable[[tuple[str, ...]], str]]:
    # Functions from a tensor's path to the name of its line, the finest first.

    def of_level(level: int) -> Callable[[tuple[str, ...]], str]:
        # A tensor beside modules gets its own line.
        return lambda path: "/".join(path[:-1][:level] or path)

    outermost = of_level(1)
    return [
        *(of_level(level) for level in range(depth - 1, 0, -1)),
        # Without the last number of the outermost module, then without any.
        lambda path: re.sub(r"\d+(?=\D*$)", "*", outermost(path)),
        lambda path: re.sub(r"\d+", "*", outermost(path)),
    ]


def _row(name: str, leaves: list[Any], total: int) -> list[str]:
    size = sum(leaf.size for leaf in leaves)
    largest = max(leaves, key=lambda leaf: leaf.size)
    return [
        name,
        f"{len(leaves):,}",
        f"{size:,}",
        f"{size / max(total, 1):.1%}",
        " x ".join(map(str, largest.shape)) or "one number",
        ", ".join(sorted({str(leaf.dtype) for leaf in leaves})),
    ]


def _in_numbers(name: str) -> list[tuple[int, str]]:
    # Puts block 10 after block 9.
    parts = enumerate(re.split(r"(\d+)", name))
    return [(int(part), "") if i % 2 else (0, part) for i, part in parts]
