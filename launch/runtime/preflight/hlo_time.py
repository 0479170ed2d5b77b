"""Where the time of a compiled step goes, by the compiler's own estimates."""

import re
from collections import defaultdict

from launch.runtime.preflight.hlo import Module

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def shares(module: Module, count: int) -> list[tuple[str, float]]:
    """The largest shares of a step's estimated cycles, by pass and layer; without waiting.

    Names are such as 'backward resnets_*/conv*'; the shares are of all cycles that are estimated.
    """
    cycles: dict[str, int] = defaultdict(int)
    for line in module.computations[module.entry]:
        if match := _CYCLES.search(line.attributes):
            cycles[_work(line.source)] += int(match[1])
    total = sum(cycles.values())
    ordered = sorted(cycles.items(), key=lambda item: -item[1])
    return [(work, some / total) for work, some in ordered[:count] if some]


def _work(source: str) -> str:
    # Scope paths are such as jit(f)/jvp(Net)/block_3/conv1/mul. jvp marks the forward pass, its
    # transpose the backward pass; the rest is the optimiser's.
    if "transpose(jvp(" in source:
        direction = "backward"
    else:
        direction = "forward" if "jvp(" in source else "update"
    *path, _ = source.split("/") or [""]
    # Scopes of transformations name no layer.
    layers = [scope for scope in path if not re.match(r"(jit|jvp|transpose)\b", scope)]
    # A function inside a layer, such as vmap(), is named together with its layer.
    last = layers[-2:] if layers and "(" in layers[-1] else layers[-1:]
    if direction == "update" or not last:
        return direction
    name = re.sub(r"\d+", "*", "/".join(last))
    return f"{direction} {re.sub(r'^.*blocks?_(?:[*]_)?', '', name)}"
