"""What a compiled program moves and holds, read from its HLO text."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int

# Bytes that a chip sends for each byte of its operand, by the ring algorithm among g chips.
_RING = {
    "all-gather": lambda g: g - 1,
    "all-reduce": lambda g: 2 * (g - 1) / g,
    "reduce-scatter": lambda g: (g - 1) / g,
    "all-to-all": lambda g: (g - 1) / g,
    "collective-permute": lambda g: 1,
    # From slice to slice, over the data-centre network.
    "send": lambda g: 1,
}
# Their results share the memory of their operands.
_ALIASES = ("bitcast", "get-tuple-element", "optimization-barrier", "tuple", "while")
# An array, such as bf16[8,128]{1,0:T(8,128)}: letters, bits, sizes, layout.
_ARRAY = re.compile(r"\b([a-z]+)(\d*)[a-z0-9]*\[([\d,]*)\](?:\{([^}]*)\})?")
# Computations that an instruction calls.
_CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|called_computations)=(\{.*?\}|%\S+)"
)
# Three notations of groups of chips: as a reshaped iota, by mesh axes, as lists.
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}")
_LISTS = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO: %name = shape opcode(arguments), attributes."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def source(self) -> str:
        """The path of scopes in the traced program; '' if the compiler does not tell."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1].replace("\\'", "'") if match else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, each in scheduled order; `entry` is the first to run."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation."""

    kind: str  # a key of `_RING`
    axes: tuple[str, ...]  # mesh axes that it runs over; all if the text does not tell
    chips: int  # that it joins
    bytes: float  # sent by a chip in a step
    turns_known: bool  # if not, one turn is counted of a loop around it


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Arrays of one shape and origin at the peak of memory; `bytes` is their sum."""

    bytes: int
    count: int
    shape: str
    source: str  # the path of scopes, with * for numbers


def parse(text: str) -> Module:
    """Parses `jax.stages.Compiled.as_text()`."""
    computations, entry, name = {}, "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        # A computation's head, its end, or one of its lines.
        if line.endswith("{") and " -> " in line and line[0] in "%E":
            name = line.removeprefix("ENTRY ").split(maxsplit=1)[0].lstrip("%")
            entry, lines = name if line.startswith("ENTRY") else entry, []
        elif line == "}" and name:
            computations[name], name = tuple(lines), ""
        elif name and " = " in line:
            lines.append(_instruction(line))
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    # A tuple's shape holds spaces, and parentheses of tiles: find the one that closes it.
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    arguments = rest[start + 1 : end - 1]
    return Instruction(name.lstrip("%"), shape, rest[:start], arguments, rest[end:])


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.end()
    return len(text)


def size_of(shape: str, padded: bool = False) -> int:
    """Bytes of a shape as HLO writes it, 'f32[8,128]{1,0:T(8,128)}', or of a tuple of shapes.

    `padded` counts what it takes in HBM: the minor axes rounded up to the tile, and nothing for
    arrays in another memory, S(1) and so on.
    """
    total = 0.0
    for kind, bits, sizes, layout in _ARRAY.findall(shape):
        dims = [int(size) for size in sizes.split(",") if size]
        if padded:
            if "S(" in layout:
                continue
            dims = _tiled(dims, layout)
        # pred has no bits in its name and takes a byte; token[] takes none.
        total += math.prod(dims) * (int(bits) / 8 if bits else kind == "pred")
    return math.ceil(total)


def _tiled(dims: list[int], layout: str) -> list[int]:
    order, tile = layout.partition(":")[0], re.search(r"T\(([\d,]+)\)", layout)
    # The layout lists axes from minor to major, the tile from major to minor.
    if not dims or not tile or not order:
        return dims
    dims = [dims[int(axis)] for axis in reversed(order.split(","))]  # minor axis last
    tiles = [int(size) for size in tile[1].split(",")][-len(dims) :]
    rounded = [-(-n // t) * t for n, t in zip(dims[-len(tiles) :], tiles, strict=True)]
    return dims[: -len(tiles)] + rounded


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """The collective operations of a step: loops count once per turn.

    A reduction of which each chip keeps only its part counts as a reduce-scatter. `mesh` has the
    size of each axis, in order, of the chips that the program was compiled for.
    """
    operations = []
    for computation, turns, turns_known in _calls(module, module.entry, 1, True):
        instructions = {line.name: line for line in module.computations[computation]}
        for line in instructions.values():
            # Asynchronous operations come in pairs, of which the start counts.
            kind = line.opcode.removesuffix("-start")
            if kind not in _RING:
                continue
            if kind == "all-reduce" and _scatters(instructions, line.name):
                kind = "reduce-scatter"
            axes, chips = _group(line.attributes, mesh)
            # A send names a channel instead of a group: it joins two slices.
            if kind == "send":
                axes, chips = ("data",), 2
            operand = sum(size_of(instructions[name].shape) for name in line.operands)
            sent = turns * operand * _RING[kind](max(chips, 1))
            operations.append(Collective(kind, axes, chips, sent, turns_known))
    return operations


def _calls(
    module: Module, name: str, turns: int, turns_known: bool
) -> Iterator[tuple[str, int, bool]]:
    # Yields (computation, number of runs, whether that is known).
    yield name, turns, turns_known
    for line in module.computations[name]:
        if line.opcode in ("all-reduce", "reduce-scatter", "reduce", "scatter", "sort", "map"):
            continue  # what these call works on two numbers
        count, sure = 1, True
        if line.opcode == "while":
            count, sure = _turns(module, name, line)
        for called in _CALLED.findall(line.attributes):
            for inner in re.findall(r"%([\w.\-]+)", called):
                if inner in module.computations:
                    yield from _calls(module, inner, turns * count, turns_known and sure)


def _turns(module: Module, caller: str, loop: Instruction) -> tuple[int, bool]:
    # Only loops that count up to a constant are understood.
    # 1. The condition must end in `counter < last`.
    condition = module.computations[re.findall(r"condition=%([\w.\-]+)", loop.attributes)[0]]
    lines = {line.name: line for line in condition}
    outer = {line.name: line for line in module.computations[caller]}
    root = condition[-1]
    if "direction=LT" not in root.attributes or len(root.operands) != 2:
        return 1, False
    # 2. Find the constants: the limit in the condition, the start in the tuple that enters.
    counter, last = (lines[name] for name in root.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    limit = _constant(last, lines)
    if index is None or limit is None:
        return 1, False
    first = _constant(outer[outer[loop.operands[0]].operands[int(index[1])]], outer)
    return (1, False) if first is None else (limit - first, True)


def _constant(line: Instruction, lines: Mapping[str, Instruction]) -> int | None:
    # The compiler may put copies in between.
    while line.opcode == "copy":
        line = lines[line.operands[0]]
    return int(line.arguments) if line.opcode == "constant" else None


def loop_factor(module: Module) -> float:
    """By how much the matrix FLOPs of a step exceed those of the text.

    The compiler's own counts take one turn of each loop. Other operations in loops are assumed to
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
    # TPUs write matrix products as convolutions too. Padding is counted.
    labels = re.search(r"dim_labels=\w+_(\w+)->\w+", line.attributes)
    if line.opcode != "convolution" or not labels:
        return 0.0
    lines = module.computations[computation]
    kernel = next(other for other in lines if other.name == line.operands[1])
    sizes, result = (_dims(shape) for shape in (kernel.shape, line.shape))
    # In dim_labels=b01f_01io->b01f, the middle part labels the kernel's axes.
    per_value = math.prod(
        size for label, size in zip(labels[1], sizes, strict=True) if label != "o"
    )
    return 2.0 * math.prod(result) * per_value


def _dims(shape: str) -> list[int]:
    return [int(size) for size in _ARRAY.findall(shape)[0][2].split(",") if size]


def _scatters(lines: Mapping[str, Instruction], name: str) -> bool:
    # If every user only cuts out a part, a chip does not need the rest.
    users = [line for line in lines.values() if name in line.operands]
    return bool(users) and all(line.opcode == "dynamic-slice" for line in users)


def _group(attributes: str, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    # Groups of one collective are alike: look at one of them.
    names, sizes = tuple(mesh), tuple(mesh.values())
    members = _members(attributes, math.prod(sizes))
    # An axis takes part if the chips of a group differ in their coordinate on it.
    coordinates = np.stack(np.unravel_index(members, sizes))  # [axes, chips]
    moves = (coordinates != coordinates[:, :1]).any(axis=1)
    return tuple(name for name, moved in zip(names, moves, strict=True) if moved), len(members)


def _members(attributes: str, chips: int) -> Int[np.ndarray, " g"]:
    # The first group that joins more than one chip, else the first.
    # {{0,1},{2,3}}, or source_target_pairs={{0,1},{1,0}}
    if match := re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes) or (
        match := _LISTS.search(attributes)
    ):
        groups = [
            [int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])
        ]
        different = [group for group in groups if len(set(group)) > 1]
        return np.unique((different or groups)[0])
    # [2,2]<=[4]T(0): an iota of the second shape, transposed, reshaped to [groups, chips].
    if match := _IOTA.search(attributes):
        shape, dims, order = (
            [int(n) for n in (numbers or "").split(",") if n] for numbers in match.groups()
        )
        ids = np.arange(math.prod(dims)).reshape(dims)
        return ids.transpose(order or range(len(dims))).reshape(shape)[0]
    # mesh['a'=2,'b'=2] {'b'}: the mesh, and the axes that a group spans.
    if match := _MESH.search(attributes):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        joined = re.findall(r"'(\w+)'", match[2])
        # With ":" a group spans a part of an axis, which is not handled.
        if math.prod(axes.values()) == chips and ":" not in match[2]:
            ids = np.arange(chips).reshape(tuple(axes.values()))
            rest = [name for name in axes if name not in joined]
            order = [list(axes).index(name) for name in rest + joined]
            return ids.transpose(order).reshape(-1, math.prod(axes[name] for name in joined))[0]
    # No group is named: all chips.
    return np.arange(chips)


def largest_buffers(module: Module, count: int) -> list[Buffer]:
    """The `count` largest kinds of buffers at the moment when most HBM is in use.

    From the schedule of the entry computation. Memory inside loops is left out, and so is reuse in
    place: the compiler may allocate less.
    """
    # 1. When is each buffer used for the last time? Aliases extend the life of what they share.
    lines = module.computations[module.entry]
    owners: dict[str, set[str]] = {}
    last_use = {line.name: len(lines) for line in lines if line.opcode == "parameter"}
    for time, line in enumerate(lines):
        taken = set().union(*(owners[name] for name in line.operands))
        owners[line.name] = taken if line.opcode in _ALIASES else {line.name}
        last_use |= {name: max(time, last_use.get(name, 0)) for name in (*taken, line.name)}
    last_use |= dict.fromkeys(owners[lines[-1].name], len(lines))
    # 2. Add up what is alive at each moment; parameters are from the start.
    sizes = {line.name: _allocated(line) for line in lines}
    change = np.zeros(len(lines) + 2)
    for time, line in enumerate(lines):
        change[0 if line.opcode == "parameter" else time] += sizes[line.name]
        change[last_use[line.name] + 1] -= sizes[line.name]
    peak = int(np.argmax(np.cumsum(change)))
    # 3. Group what is alive at the peak.
    groups = defaultdict(list)
    for time, line in enumerate(lines):
        if (time <= peak or line.opcode == "parameter") and last_use[line.name] >= peak:
            # Layers of one kind differ in their numbers only.
            source = re.sub(r"\d+", "*", line.source)
            groups[line.shape.partition("{")[0], source].append(sizes[line.name])
    buffers = [Buffer(sum(sizes), len(sizes), *key) for key, sizes in groups.items()]
    return sorted(buffers, key=lambda buffer: -buffer.bytes)[:count]


def _allocated(line: Instruction) -> int:
    # The result of an asynchronous operation counts where it is done.
    if line.opcode in _ALIASES or line.opcode.endswith("-start"):
        return 0
    return size_of(line.shape, padded=True)
