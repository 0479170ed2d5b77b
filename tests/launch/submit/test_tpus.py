"""TPU slices by name."""

import math

import pytest

from launch.errors import InputError
from launch.runtime.devices.hardware import CHIPS
from launch.runtime.preflight import preflight
from launch.submit import tpus


@pytest.mark.parametrize(
    ("text", "topology", "target", "name"),
    [
        ("v4-8", "", "v4:2x2x1*2", "v4-8"),
        ("v4-64", "", "v4:2x4x4*2", "v4-64"),
        ("v4-128", "4x4x4", "v4:4x4x4*2", "v4-128"),
        ("v4-1536", "", "v4:8x8x12*2", "v4-1536"),
        ("v5p-12288", "16x16x24", "v5p:16x16x24*2", "v5p-12288"),
        ("v5e-1", "", "v5e:1x1*2", "v5litepod-1"),
        ("v5litepod-128", "", "v5e:8x16*2", "v5litepod-128"),
        ("v6e-8", "", "v6e:2x4*2", "v6e-8"),
    ],
)
def test_names(text, topology, target, name):
    tpu = tpus.parse(text, topology)
    assert (tpu.target(2), tpu.accelerator_type) == (target, name)
    parsed = preflight.parse_target(tpu.target(2))
    assert (parsed.generation, parsed.topology, parsed.slices) == (
        tpu.generation.name,
        tpu.topology,
        2,
    )


@pytest.mark.parametrize(
    ("text", "hosts"),
    [("v4-8", 1), ("v4-16", 2), ("v5e-1", 1), ("v5e-8", 1), ("v5e-16", 4), ("v6e-32", 8)],
)
def test_hosts(text, hosts):
    assert tpus.parse(text, "").hosts == hosts


def test_generations_are_those_of_preflight():
    known = [g for g in tpus.GENERATIONS if g.runtime]
    assert {g.name: g.axes for g in known} == preflight.GENERATIONS
    sizes = {chip.name: chip.slice_size for chip in CHIPS}
    assert {g.name: g.max_chips for g in known} == {
        name: sizes[name] for name in preflight.GENERATIONS
    }


def test_chips_that_preflight_does_not_know():
    tpu = tpus.parse("tpu7x-128", "")
    assert (tpu.shape, tpu.target(1)) == ("4x4x4", "")


def test_every_cube_has_a_usual_topology():
    generation = tpus.GENERATIONS[0]
    for cubes in range(1, 65):
        assert math.prod(tpus.usual_topology(64 * cubes, generation)) == 64 * cubes


@pytest.mark.parametrize(
    ("text", "topology", "message"),
    [
        (
            "v4",
            "",
            "--tpu_type must be GENERATION-SIZE, as v4-32, v5litepod-16, v5p-32 or v6e-16, with",
        ),
        (
            "h100-8",
            "",
            "--tpu_type must be GENERATION-SIZE, as v4-32, v5litepod-16, v5p-32 or v6e-16, with",
        ),
        (
            "v2-8",
            "",
            "--tpu_type must be GENERATION-SIZE, as v4-32, v5litepod-16, v5p-32 or v6e-16, with",
        ),
        ("v4-12", "", "sizes of v4, 8, 16, 32, 64, or a multiple of 128"),
        ("v4-7", "", "sizes of v4"),
        ("v4-16384", "", "sizes of v4"),
        ("v6e-512", "", "sizes of v6e, 1, 4, 8, 16, 32, 64, 128, 256"),
        ("v6e-16", "4x4x1", "--topology must have 2 axes for v6e, got"),
        ("v6e-16", "16", "--topology must have 2 axes for v6e, got"),
        (
            "v4-32",
            "4x4x4",
            r"--tpu_type must be v4-128 for --topology=4x4x4 \(64 chips\), got v4-32",
        ),
        ("v4-32", "4,4", "--topology must be like 4x4x4"),
    ],
)
def test_refused(text, topology, message):
    with pytest.raises(InputError, match=message):
        tpus.parse(text, topology)
