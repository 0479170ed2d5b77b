"""TPU slices by the names that Google's services give them.

Names and shapes: docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and, for GKE,
docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
"""

import dataclasses
import itertools
import math
import re

from absl import flags

from launch.errors import InputError

FLAGS_TITLE = "TPUs"  # in --help
SYNTAX = "GENERATION-SIZE, as v4-32, v5litepod-16, v5p-32 or v6e-16"


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation of TPUs."""

    name: str  # as --preflight takes it
    prefix: str  # of accelerator types
    counted: int  # what a chip adds to the size in an accelerator type: its cores, or 1
    axes: int  # of a topology
    max_chips: int  # of a slice
    gke: str  # the value of GKE's node label
    runtime: str  # a TPU VM's software; '' if neither the Cloud TPU API nor --preflight knows it


GENERATIONS = (
    Generation("v4", "v4", 2, 3, 4096, "tpu-v4-podslice", "tpu-ubuntu2204-base"),
    Generation("v5e", "v5litepod", 1, 2, 256, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite"),
    Generation("v5p", "v5p", 2, 3, 6144, "tpu-v5p-slice", "v2-alpha-tpuv5"),
    Generation("v6e", "v6e", 1, 2, 256, "tpu-v6e-slice", "v2-alpha-tpuv6e"),
    Generation("tpu7x", "tpu7x", 2, 3, 9216, "tpu7x", ""),
)
# How names of generations begin that the Cloud TPU API does not offer.
NEWER = ("tpu7", "v7", "ironwood", "tpu8", "v8")
# Slices of v5e and v6e, in chips; then those of the others that are smaller than a cube.
_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_BOXES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# Larger slices of v4, v5p and tpu7x consist of cubes with 4 chips along each edge.
_EDGE = 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips with fast links between them."""

    generation: Generation
    topology: tuple[int, ...]  # chips along each axis

    @property
    def chips(self) -> int:
        """Their number."""
        return math.prod(self.topology)

    @property
    def shape(self) -> str:
        """The topology as text, such as 4x4x4."""
        return "x".join(map(str, self.topology))

    @property
    def accelerator_type(self) -> str:
        """Its name in the Cloud TPU API, which leaves the topology open."""
        return f"{self.generation.prefix}-{self.chips * self.generation.counted}"

    @property
    def hosts(self) -> int:
        """Its number of TPU VMs."""
        # A slice of v5e or v6e with a single host can have 8 chips; all other hosts have 4.
        alone = 8 if self.generation.axes == 2 else 4
        return 1 if self.chips <= alone else self.chips // 4

    def target(self, slices: int) -> str:
        """The value for --preflight, for so many slices; '' if it does not know these chips."""
        if not self.generation.runtime:
            return ""
        return f"{self.generation.name}:{self.shape}" + (f"*{slices}" if slices > 1 else "")


def define_flags(values: flags.FlagValues) -> None:
    """Adds the flags for the kind and number of TPUs."""
    flags.DEFINE_string("tpu_type", "", f"of a slice: {SYNTAX}", flag_values=values)
    flags.DEFINE_string(
        "topology", "", "of a slice, as 4x4x4; by default the usual one", flag_values=values
    )
    flags.DEFINE_integer("num_slices", 1, "slices of the job", flag_values=values)


def check_given(text: str) -> None:
    """Raises `InputError` if the Cloud TPU API does not offer TPUs of this name."""
    if text.lower().removeprefix("tpu-").startswith(NEWER):
        raise InputError(
            f"--tpu_type={text}: TPU7x and later are not in the Cloud TPU API; use Compute "
            "Engine (by hand) or GKE"
        )


def parse(text: str, topology: str) -> Slice:
    """Reads --tpu_type and --topology; raises `InputError` if there is no such slice.

    The size in `text` counts cores for v4, v5p and tpu7x, chips for v5e and v6e. `topology` has the
    chips along each axis; '' is the usual one.
    """
    # 1. The generation and the size.
    match = re.fullmatch(r"([a-z0-9]+)-([0-9]+)", text)
    generation = next((g for g in GENERATIONS if match and match[1] in (g.name, g.prefix)), None)
    if not match or generation is None:
        known = ", ".join(g.prefix for g in GENERATIONS)
        raise InputError(f"--tpu_type must be {SYNTAX}, with one of {known}; got {text}")
    chips, rest = divmod(int(match[2]), generation.counted)
    # 2. The topology.
    if topology:
        axes = _axes(generation, topology)
        if math.prod(axes) * generation.counted != int(match[2]):
            size = math.prod(axes) * generation.counted
            raise InputError(
                f"--tpu_type must be {generation.prefix}-{size} for --topology={topology} "
                f"({math.prod(axes)} chips), got {text}"
            )
    else:
        axes = () if rest or chips > generation.max_chips else usual_topology(chips, generation)
    # 3. Does such a slice exist?
    if not axes or math.prod(axes) > generation.max_chips:
        sizes = [math.prod(shape) for shape in (_SQUARES if generation.axes == 2 else _BOXES)]
        more = f", or a multiple of {64 * generation.counted}" if generation.axes == 3 else ""
        names = ", ".join(str(size * generation.counted) for size in sizes)
        raise InputError(
            f"--tpu_type must have one of the sizes of {generation.prefix}, "
            f"{names}{more}; got {text}"
        )
    return Slice(generation, axes)


def usual_topology(chips: int, generation: Generation) -> tuple[int, ...]:
    """The default topology for a number of chips; empty if there is no such slice."""
    shapes = _SQUARES if generation.axes == 2 else _BOXES
    for shape in shapes:
        if math.prod(shape) == chips:
            return shape
    cubes, rest = divmod(chips, _EDGE**3)
    if generation.axes == 2 or rest or not cubes:
        return ()
    # Of all boxes of so many cubes, the one that is most like a cube itself.
    counts = [n for n in range(1, cubes + 1) if cubes % n == 0]
    triples = itertools.combinations_with_replacement(counts, 3)
    products = [triple for triple in triples if math.prod(triple) == cubes]
    return tuple(_EDGE * n for n in min(products, key=lambda s: (max(s), sum(s))))


def _axes(generation: Generation, topology: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", topology):
        raise InputError(
            f"--topology must be like 4x4x4 (v4, v5p) or 4x4 (v5e, v6e), got {topology}"
        )
    axes = tuple(map(int, topology.split("x")))
    if len(axes) != generation.axes:
        raise InputError(
            f"--topology must have {generation.axes} axes for {generation.name}, got {topology}"
        )
    return axes
