"""What a compiled program moves and holds, read from its HLO text."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

# Bytes that a chip sends, by ring, for one byte of its operand in a group of g chips.
_RING = {
    "all-gather": lambda g: g - 1,
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
    # From slice to slice over the data centre's network.
    "send": lambda g: 1,
}
# Their result lies where their operands do.
_ALIASES = ("bitcast", "get-tuple-element", "optimization-barrier", "tuple", "while")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|called_computations)=(\{.*?\}|%\S+)"
)
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}")
_LISTS = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO.

    Attributes:
        name: without the percent sign.
        shape: of the result, as written.
        opcode: what it does.
        arguments: what stands between its parentheses.
        attributes: the rest of the line.
    """

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of what it takes."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def source(self) -> str:
        """Where in the traced program it comes from; '' where the compiler does not say."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1].replace("\\'", "'") if match else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, in the order of the schedule, and the first of them."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
        kind: a key of the table by rings.
        axes: of the mesh that it runs over; all of them where the text does not tell.
        chips: how many it joins.
        bytes: that a chip sends for it in a step, by ring.
        turns_known: whether the number of turns of every loop around it is; one is counted if not.
    """

    kind: str
    axes: tuple[str, ...]
    chips: int
    bytes: float
    turns_known: bool


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Memory of a kind that is in use when most is: arrays of one shape and origin.

    Attributes:
        bytes: of all of them.
        count: how many.
        shape: of each.
        source: where they come from.
    """

    bytes: int
    count: int
    shape: str
    source: str


def parse(text: str) -> Module:
    """Reads `jax.stages.Compiled.as_text()`."""
    computations, entry, name = {}, "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line and line[0] in "%E":
            name = line.removeprefix("ENTRY ").split(maxsplit=1)[0].lstrip("%")
            entry, lines = name if line.startswith("ENTRY") else entry, []
        elif line == "}" and name:
            computations[name], name = tuple(lines), ""
        elif name and " = " in line:
            lines.append(_instruction(line))
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    arguments = rest[start + 1 : end - 1]
    return Instruction(name.lstrip("%"), shape, rest[:start], arguments, rest[end:])


def _closing(text: str, start: int) -> int:
    """Index behind the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.end()
    return len(text)


def size_of(shape: str, padded: bool = False) -> int:
    """Bytes of a shape as HLO writes it, 'f32[8,128]{1,0:T(8,128)}', or of a tuple of them.

    Args:
        shape: the text.
        padded: what it takes in HBM: the last axes rounded up to the tile, nothing for what lives
            in another memory, S(1) and so on.
    """
    total = 0.0
    for kind, bits, sizes, layout in _ARRAY.findall(shape):
        dims = [int(size) for size in sizes.split(",") if size]
        if padded:
            if "S(" in layout:
                continue
            dims = _tiled(dims, layout)
        total += math.prod(dims) * (int(bits) / 8 if bits else kind == "pred")
    return math.ceil(total)


def _tiled(dims: list[int], layout: str) -> list[int]:
    order, tile = layout.partition(":")[0], re.search(r"T\(([\d,]+)\)", layout)
    if not dims or not tile or not order:
        return dims
    dims = [dims[int(axis)] for axis in reversed(order.split(","))]  # the last runs fastest
    tiles = [int(size) for size in tile[1].split(",")][-len(dims) :]
    rounded = [-(-n // t) * t for n, t in zip(dims[-len(tiles) :], tiles, strict=True)]
    return dims[: -len(tiles)] + rounded


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective operation of a step.

    Loops count as often as they turn. A reduction of which a chip keeps its part counts as
    reduce-scatter.

    Args:
        module: the program of one chip.
        mesh: size of each axis, in order, of the chips that it was compiled for.
    """
    operations = []
    for computation, turns, turns_known in _calls(module, module.entry, 1, True):
        instructions = {line.name: line for line in module.computations[computation]}
        for line in instructions.values():
            kind = line.opcode.removesuffix("-start")
            if kind not in _RING:
                continue
            if kind == "all-reduce" and _scatters(instructions, line.name):
                kind = "reduce-scatter"
            axes, chips = _group(line.attributes, mesh)
            if kind == "send":
                axes, chips = ("data",), 2
            operand = sum(size_of(instructions[name].shape) for name in line.operands)
            sent = turns * operand * _RING[kind](max(chips, 1))
            operations.append(Collective(kind, axes, chips, sent, turns_known))
    return operations


def _calls(
    module: Module, name: str, turns: int, turns_known: bool
) -> Iterator[tuple[str, int, bool]]:
    """The computations that run, each with how often."""
    yield name, turns, turns_known
    for line in module.computations[name]:
        if line.opcode in ("all-reduce", "reduce-scatter", "reduce", "scatter", "sort", "map"):
            continue  # what they call works on two numbers
        count, sure = 1, True
        if line.opcode == "while":
            count, sure = _turns(module, name, line)
        for called in _CALLED.findall(line.attributes):
            for inner in re.findall(r"%([\w.\-]+)", called):
                if inner in module.computations:
                    yield from _calls(module, inner, turns * count, turns_known and sure)


def _turns(module: Module, caller: str, loop: Instruction) -> tuple[int, bool]:
    """Turns of a loop that counts up to a constant, and whether this is one."""
    condition = module.computations[re.findall(r"condition=%([\w.\-]+)", loop.attributes)[0]]
    lines = {line.name: line for line in condition}
    outer = {line.name: line for line in module.computations[caller]}
    root = condition[-1]
    if "direction=LT" not in root.attributes or len(root.operands) != 2:
        return 1, False
    counter, last = (lines[name] for name in root.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    limit = _constant(last, lines)
    if index is None or limit is None:
        return 1, False
    first = _constant(outer[outer[loop.operands[0]].operands[int(index[1])]], outer)
    return (1, False) if first is None else (limit - first, True)


def _constant(line: Instruction, lines: Mapping[str, Instruction]) -> int | None:
    while line.opcode == "copy":
        line = lines[line.operands[0]]
    return int(line.arguments) if line.opcode == "constant" else None


def loop_factor(module: Module) -> float:
    """How many times the matrix operations of a step are those of the text.

    The compiler's own counts take one turn of every loop. The loops' other operations are taken to
    be in proportion.
    """
    once = total = 0.0
    for computation, turns, _ in _calls(module, module.entry, 1, True):
        flops = sum(
            _matrix_flops(module, computation, line) for line in module.computations[computation]
        )
        once, total = once + flops, total + turns * flops
    return total / once if once else 1.0


def _matrix_flops(module: Module, computation: str, line: Instruction) -> float:
    """Of a convolution or, as TPUs have it, a matrix product; its padding is counted."""
    labels = re.search(r"dim_labels=\w+_(\w+)->\w+", line.attributes)
    if line.opcode != "convolution" or not labels:
        return 0.0
    lines = module.computations[computation]
    kernel = next(other for other in lines if other.name == line.operands[1])
    sizes, result = (_dims(shape) for shape in (kernel.shape, line.shape))
    per_value = math.prod(
        size for label, size in zip(labels[1], sizes, strict=True) if label != "o"
    )
    return 2.0 * math.prod(result) * per_value


def _dims(shape: str) -> list[int]:
    return [int(size) for size in _ARRAY.findall(shape)[0][2].split(",") if size]


def _scatters(lines: Mapping[str, Instruction], name: str) -> bool:
    """Whether of this result only a chip's own part is used."""
    users = [line for line in lines.values() if name in line.operands]
    return bool(users) and all(line.opcode == "dynamic-slice" for line in users)


def _group(attributes: str, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Axes that a collective runs over, and how many chips it joins."""
    names, sizes = tuple(mesh), tuple(mesh.values())
    members = _members(attributes, math.prod(sizes))
    coordinates = np.stack(np.unravel_index(members, sizes))  # [axes, chips]
    moves = (coordinates != coordinates[:, :1]).any(axis=1)
    return tuple(name for name, moved in zip(names, moves, strict=True) if moved), len(members)


def _members(attributes: str, chips: int) -> Int[np.ndarray, " g"]:
    """The first group that joins more than one chip, else the first."""
    if match := re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes) or (
        match := _LISTS.search(attributes)
    ):
        groups = [
            [int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])
        ]
        different = [group for group in groups if len(set(group)) > 1]
        return np.unique((different or groups)[0])
    if match := _IOTA.search(attributes):
        shape, dims, order = (
            [int(n) for n in (numbers or "").split(",") if n] for numbers in match.groups()
        )
        ids = np.arange(math.prod(dims)).reshape(dims)
        return ids.transpose(order or range(len(dims))).reshape(shape)[0]
    if match := _MESH.search(attributes):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        joined = re.findall(r"'(\w+)'", match[2])
        if math.prod(axes.values()) == chips and ":" not in match[2]:  # no part of an axis
            ids = np.arange(chips).reshape(tuple(axes.values()))
            rest = [name for name in axes if name not in joined]
            order = [list(axes).index(name) for name in rest + joined]
            return ids.transpose(order).reshape(-1, math.prod(axes[name] for name in joined))[0]
    return np.arange(chips)


def largest_buffers(module: Module, count: int) -> list[Buffer]:
    """What takes most HBM at the moment when most is in use.

    From the schedule of the first computation, without what loops hold inside, and without reuse
    in place: what the compiler allocates can be less.

    Args:
        module: the program.
        count: how many kinds of buffers are returned.
    """
    lines = module.computations[module.entry]
    owners: dict[str, set[str]] = {}
    last_use = {line.name: len(lines) for line in lines if line.opcode == "parameter"}
    for time, line in enumerate(lines):
        taken = set().union(*(owners[name] for name in line.operands))
        owners[line.name] = taken if line.opcode in _ALIASES else {line.name}
        last_use |= {name: max(time, last_use.get(name, 0)) for name in (*taken, line.name)}
    last_use |= dict.fromkeys(owners[lines[-1].name], len(lines))
    sizes = {line.name: _allocated(line) for line in lines}
    change = np.zeros(len(lines) + 2)
    for time, line in enumerate(lines):
        change[0 if line.opcode == "parameter" else time] += sizes[line.name]
        change[last_use[line.name] + 1] -= sizes[line.name]
    peak = int(np.argmax(np.cumsum(change)))
    groups = defaultdict(list)
    for time, line in enumerate(lines):
        if (time <= peak or line.opcode == "parameter") and last_use[line.name] >= peak:
            # Layers of a kind differ by their numbers.
            source = re.sub(r"\d+", "*", line.source)
            groups[line.shape.partition("{")[0], source].append(sizes[line.name])
    buffers = [Buffer(sum(sizes), len(sizes), *key) for key, sizes in groups.items()]
    return sorted(buffers, key=lambda buffer: -buffer.bytes)[:count]


def _allocated(line: Instruction) -> int:
    """HBM that an instruction's result takes; of an asynchronous one, when it is done."""
    if line.opcode in _ALIASES or line.opcode.endswith("-start"):
        return 0
    return size_of(line.shape, padded=True)
