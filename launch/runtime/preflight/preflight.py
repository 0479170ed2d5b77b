"""Compiles a training step for TPUs that nobody holds; prints the memory and time it would take."""

import dataclasses
import importlib.util
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from jaxtyping import PyTree

from launch.errors import InputError
from launch.runtime.devices.hardware import CHIPS, GIB, Chip, fed_seconds
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.preflight import hlo, hlo_time
from launch.runtime.reports.tables import text_table

FLAGS_TITLE = "preflight"  # in --help
# Shapes and places of arrays that stay in memory, for a mesh and by name.
Held: TypeAlias = Callable[[Mesh], Mapping[str, PyTree]]
# Number of axes of a slice's torus.
GENERATIONS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
SYNTAX = "GENERATION:TOPOLOGY[*SLICES], such as v4:4x4x16, v5p:4x4x8*2, v5e:16x16 or v6e:16x16"
# Chips of the table of weak scaling.
SCALES = (64, 128, 256, 512, 1024, 2048, 4096)
# Has the most memory: what does not fit elsewhere is measured there.
LARGEST = "v5p"
HELP = "try remat, a larger config.mesh.fsdp, fewer images per chip and step, or accumulation"
# Without these, libtpu asks Google's metadata server what machine this is, waits, and complains.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
}
# Fields of the JSON line.
_RESULT = (
    "fits", "bytes_per_chip", "hbm_bytes", "flops_per_chip", "estimated_seconds", "floor_seconds",
)  # fmt: skip
Lower = Callable[[Mesh], jax.stages.Lowered]


@dataclasses.dataclass(frozen=True)
class Target:
    """TPUs to compile for: `topology` is chips along each axis of the torus of one slice."""

    generation: str
    topology: tuple[int, ...]
    slices: int

    @property
    def chip(self) -> Chip:
        """Its figures."""
        return next(chip for chip in CHIPS if chip.name == self.generation)

    def devices(self) -> Sequence[jax.Device]:
        """Stand-ins to compile for; `InputError` without libtpu, or if there is no such slice."""
        if importlib.util.find_spec("libtpu") is None:
            raise InputError('--preflight needs libtpu to compile; pip install ".[preflight]"')
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
        options: dict = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.generation == "v4":
            options["chip_config_name"] = "megacore"  # both cores of a chip as one device
        name = f"{self.generation}:{'x'.join(map(str, self.topology))}"
        try:
            return topologies.get_topology_desc(name, "tpu", **options).devices
        except jax.errors.JaxRuntimeError as error:
            if "lockfile" in str(error):
                raise InputError(
                    "--preflight: another process uses libtpu (/tmp/libtpu_lockfile); wait for it "
                    "to finish"
                ) from None
            reason = str(error).splitlines()[0]
            raise InputError(
                f"--preflight: there is no slice {name} ({reason}); write {SYNTAX}"
            ) from None


def define_flags(values: flags.FlagValues) -> None:
    """Defines `--preflight` and `--preflight_effort`."""
    flags.DEFINE_string(
        "preflight",
        "",
        (
            "compile the step for TPUs (none needed), print memory, operations, traffic and "
            f"estimated time, then exit: {SYNTAX}"
        ),
        flag_values=values,
    )
    flags.DEFINE_float(
        "preflight_effort",
        -1.0,
        (
            "compiler effort, from -1 (fastest) to 1: at -1 a network of 2B parameters takes "
            "one core half an hour, above that longer; training compiles at 0, for which "
            "DeiT-S and ResNet-50 need the same memory on a v4 to the byte (larger networks "
            "were not compared)"
        ),
        flag_values=values,
    )


def parse_target(text: str) -> Target:
    """Parses the value of `--preflight`; raises `InputError` if it is not of the form `SYNTAX`."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", text)
    if not match:
        raise InputError(f"--preflight={text}: write {SYNTAX}")
    generation, topology = match[1], tuple(int(size) for size in match[2].split("x"))
    if generation not in GENERATIONS:
        raise InputError(
            f"--preflight must begin with one of {', '.join(GENERATIONS)}, "
            f"got {text}; write {SYNTAX}"
        )
    if len(topology) != GENERATIONS[generation]:
        raise InputError(
            f"--preflight={text}: slices of {generation} have {GENERATIONS[generation]} "
            f"axes; write {SYNTAX}"
        )
    slices = int(match[3] or 1)
    if not slices or not math.prod(topology):
        raise InputError(f"--preflight must have no size of 0, got {text}; write {SYNTAX}")
    return Target(generation, topology, slices)


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled step of one chip."""

    memory: Mapping[str, int]  # bytes; aliased ones are also part of arguments and of outputs
    flops: float  # of a step
    seconds: float  # of a step, by the compiler's estimate
    collectives: Sequence[hlo.Collective]
    buffers: Sequence[hlo.Buffer]  # the largest
    shares: Sequence[tuple[str, float]] = ()  # of the estimated time, by pass and layer

    @property
    def total_bytes(self) -> int:
        """Memory that the chip needs, in bytes; aliased memory counts once."""
        # Aliased memory is in the sum three times.
        aliased = self.memory["aliased"]
        return sum(self.memory.values()) - 2 * aliased


def compile_step(lower: Lower, mesh: Mesh, target: Target, effort: float) -> Program:
    """Compiles a step for the chips of a mesh.

    `lower` lowers it for the mesh (and calls `jax.set_mesh` itself); `effort` is the compiler's,
    from -1 to 1. Raises `JaxRuntimeError` with RESOURCE_EXHAUSTED if it does not fit.
    """
    # 1. Compile, and take what the compiler reports.
    compiled = lower(mesh).compile(compiler_options=_effort_options(effort))
    stats, costs, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert stats and costs and text, "the compiler for TPUs has all three"
    memory = dict(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    # 2. Read the rest from the text of the program, whose groups count the chips of one slice.
    module = hlo.parse(text)
    sizes = dict(mesh.shape) | {"data": mesh.shape["data"] // target.slices}
    # 3. The compiler counts one turn of every loop.
    turns = hlo.loop_factor(module)
    seconds = _mended(costs["optimal_seconds"], costs["flops"] / target.chip.peak_flops)
    return Program(
        memory,
        flops=costs["flops"] * turns,
        seconds=seconds * turns,
        collectives=hlo.collectives(module, sizes),
        buffers=hlo.largest_buffers(module, 8),
        shares=hlo_time.shares(module, 12),
    )


def _effort_options(effort: float) -> dict[str, Any]:
    # JAX 0.12 has levels instead of efforts. At the level below a run's, a step has other traffic
    # (weights are gathered before they are cast), so none is set, except its O3 for more effort.
    if "jax_exec_time_optimization_effort" in jax.config.values:
        return {"exec_time_optimization_effort": effort}
    return {"optimization_level": 39} if effort > 0 else {}


def _mended(estimate: float, floor: float) -> float:
    # The compiler adds -1 to its sum of seconds for each operation that it cannot estimate. The
    # true sum is whole seconds above: take the smallest that is not below the floor.
    return estimate + max(0, math.ceil(floor - estimate))


def run(
    target: str,
    lower: Lower,
    axes: Mapping[str, int],
    params: PyTree,
    effort: float,
    cpu_seconds: Mapping[str, float] | None = None,
    held: Held | None = None,
) -> None:
    """Prints what a step would need and take on a target; the last line is JSON.

    Args:
        target: of the form `SYNTAX`.
        lower: lowers the step for a mesh.
        axes: sizes of the mesh's axes, see `make_mesh`.
        params: of the model, or their shapes.
        effort: of the compiler, -1 to 1; at 0 a large model's step takes tens of minutes.
        cpu_seconds: CPU time of a step's input, by how it is stored; None if it takes none.
        held: arrays that stay in memory, for a mesh and by name; their sizes are printed first,
            for compiling may take hours.

    Raises:
        InputError: it does not fit, after everything is printed; a wrong target or mesh; libtpu is
            missing or in use.
    """
    # 1. Find the chips.
    plan = parse_target(target)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    # The cache would store a program for absent chips, but cannot load it.
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = make_mesh(axes, plan.devices())
    shape = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    print(f"preflight for {target}: {mesh.size} chips, mesh {shape}")
    print(f"parameters: {parameters:,}", flush=True)
    if held is not None:
        _print_held(held(mesh), plan.chip)
    # 2. Compile; what does not fit is measured on larger chips.
    refused, note = False, ""
    try:
        program = compile_step(lower, mesh, plan, effort)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused, note = True, f" (it does not fit; as compiled for {LARGEST})"
        program = _measure_elsewhere(target, lower, axes, mesh.size, effort, str(error))
    # 3. Print what it needs and takes.
    fits = not refused and program.total_bytes <= plan.chip.hbm_bytes
    _print_memory(program, plan.chip, note)
    floor = program.flops / plan.chip.peak_flops
    _print_compute(program, plan.chip, floor, note)
    _print_feeding(cpu_seconds or {}, program, plan.chip, mesh.size)
    _print_collectives(program.collectives)
    if not refused:
        _print_scaling(program, plan.chip, mesh, parameters)
    # 4. The same as one line of JSON, for programs.
    result = dict(
        fits=fits,
        bytes_per_chip=program.total_bytes,
        hbm_bytes=plan.chip.hbm_bytes,
        flops_per_chip=program.flops,
        estimated_seconds=None if refused else program.seconds,
        floor_seconds=floor,
    )
    print(json.dumps(result), flush=True)
    if not fits:
        raise InputError(
            f"--preflight={target}: the step needs {program.total_bytes / GIB:.1f} GiB per "
            f"chip of {plan.chip.hbm_bytes / GIB:.0f}; the largest buffers are "
            f"{'; '.join(map(_describe, program.buffers[:3]))}; {HELP}"
        )


def _measure_elsewhere(
    target: str, lower: Lower, axes: Mapping[str, int], chips: int, effort: float, error: str
) -> Program:
    # A refused compilation reports nothing: compile for as many chips with more memory.
    # Spread the chips over three axes as evenly as their factors allow.
    topology = [1, 1, 1]
    for factor in sorted(_prime_factors(chips), reverse=True):
        topology[topology.index(min(topology))] *= factor
    elsewhere = Target(LARGEST, tuple(sorted(topology)), 1)
    try:
        return compile_step(lower, make_mesh(axes, elsewhere.devices()), elsewhere, effort)
    except jax.errors.JaxRuntimeError:
        hbm = parse_target(target).chip.hbm_bytes
        print(json.dumps(dict.fromkeys(_RESULT) | dict(fits=False, hbm_bytes=hbm)), flush=True)
        match = re.search(r"\(([\d.]+[KMGT])\) exceeds available HBM", error)
        size = f"{match[1]} of temporaries" if match else "too much"
        raise InputError(
            f"--preflight={target}: the step needs {size} per chip, more than {LARGEST} has; {HELP}"
        ) from None


def _prime_factors(number: int) -> list[int]:
    for factor in range(2, number + 1):
        if number % factor == 0:
            return [factor, *_prime_factors(number // factor)]
    return []


def _describe(buffer: hlo.Buffer) -> str:
    source = f" of {buffer.source}" if buffer.source else ""
    return f"{buffer.bytes / GIB:.2f} GiB in {buffer.count} x {buffer.shape}{source}"


def _print_held(held: Mapping[str, PyTree], chip: Chip) -> None:
    sizes = {name: _bytes_per_chip(tree) for name, tree in held.items()}
    print("\nheld by a chip between steps, GiB")
    for name, size in sizes.items():
        if size:
            print(f"  {name:12} {size / GIB:8.2f}")
    total = sum(sizes.values()) / GIB
    print(f"  {'total':12} {total:8.2f} of {chip.hbm_bytes / GIB:.0f}", flush=True)


def _bytes_per_chip(tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _print_memory(program: Program, chip: Chip, note: str) -> None:
    print(f"\nmemory per chip{note}, GiB")
    for kind, size in program.memory.items():
        print(f"  {kind:12} {size / GIB:8.2f}")
    free = 1 - program.total_bytes / chip.hbm_bytes
    print(
        f"  {'total':12} {program.total_bytes / GIB:8.2f} of {chip.hbm_bytes / GIB:.0f}: ", end=""
    )
    print(f"{free:.0%} free (aliased buffers count once)")
    print("largest buffers at the peak of the schedule")
    for buffer in program.buffers:
        print(f"  {_describe(buffer)}")


def _print_compute(program: Program, chip: Chip, floor: float, note: str) -> None:
    print(f"\na step{note}")
    print(f"  FLOPs per chip       {program.flops / 1e12:10.3f} T")
    print(f"  compiler's estimate  {program.seconds:10.4f} s")
    print(f"  floor                {floor:10.4f} s, FLOPs / {chip.peak_flops / 1e12:.0f} TFLOP/s")
    print("where the compiler expects the time to go")
    for work, share in program.shares:
        print(f"  {share:6.1%} {work}")


def _print_feeding(
    cpu_seconds: Mapping[str, float], program: Program, chip: Chip, chips: int
) -> None:
    # The chips wait for the CPUs that feed them, or the other way round.
    for stored, work in cpu_seconds.items():
        seconds = fed_seconds(work, chip, chips)
        slower = "CPUs" if seconds > program.seconds else "chips"
        cpus = f"{-(-chips // chip.host_chips)} x {chip.host_cpus} CPUs"
        print(f"fed from {stored:12} {seconds:10.4f} s by {cpus}: limited by the {slower}")


def _print_collectives(collectives: Sequence[hlo.Collective]) -> None:
    groups = defaultdict(list)
    for collective in collectives:
        groups[collective.kind, "+".join(collective.axes), collective.chips].append(collective)
    rows = []
    for (kind, axes, chips), members in sorted(groups.items()):
        sent = sum(member.bytes for member in members) / 1e9
        once = "" if all(member.turns_known for member in members) else "(one turn of a loop)"
        rows.append([kind, axes, f"{chips}", f"{len(members)}", f"{sent:.3f}", once])
    print("\n" + text_table(["collective", "over", "chips", "count", "GB sent per chip", ""], rows))


def scaled_seconds(
    program: Program, chip: Chip, mesh: Mapping[str, int], parameters: int, chips: int
) -> float:
    """Seconds of a step on `chips` chips with the same work per chip: only the data axis grows.

    The compiler's estimate, minus the cost of the data axis on the compiled `mesh` by this model,
    plus its cost on `chips`. The model is a ring over each slice, (d - 1) / d of the bytes at the
    bandwidth of the links, which the mesh's axes share equally, then among k slices (k - 1) / k of
    a chip's part at the bandwidth of the network. Nothing overlaps with computation. If the
    compiled data axis is 1, gradients of all `parameters` are assumed to be sent in float32,
    reduced and gathered.
    """
    rest = math.prod(size for name, size in mesh.items() if name != "data")
    shared = max(1, sum(size > 1 for name, size in mesh.items() if name != "data") + 1)

    def cost(chips: int, whole: float) -> float:
        slices = -(-chips // chip.slice_size)
        inside = chips / rest / slices
        links = whole * (1 - 1 / inside) / (chip.link_bandwidth / shared)
        return links + whole / inside * (1 - 1 / slices) / chip.network_bandwidth

    data = mesh["data"]
    sent = sum(collective.bytes for collective in program.collectives if "data" in collective.axes)
    if data > 1:
        whole = sent * data / (data - 1)
        return max(0.0, program.seconds - cost(data * rest, whole)) + cost(chips, whole)
    # 4 bytes to reduce and 4 to gather.
    return program.seconds + cost(chips, 8 * parameters / rest)


def _print_scaling(program: Program, chip: Chip, mesh: Mesh, parameters: int) -> None:
    rest = mesh.size // mesh.shape["data"]
    print(
        f"\nweak scaling, the same work per chip (a model, not compiled: {scaled_seconds.__name__})"
    )
    rows, first = [], None
    for chips in SCALES:
        slices = -(-chips // chip.slice_size)
        # Every slice must hold a whole number of fsdp x tensor groups.
        if chips % (rest * slices):
            rows.append([f"{chips}", "", "", "", "", f"no mesh with fsdp x tensor = {rest}"])
            continue
        seconds = scaled_seconds(program, chip, mesh.shape, parameters, chips)
        first = first or seconds
        shares = [f"{seconds:.4f}", f"{first / seconds:.1%}"]
        rows.append([f"{chips}", f"{chips // rest}", f"{slices}", *shares, ""])
    print(text_table(["chips", "data", "slices", "s a step", "efficiency", ""], rows))
