import fcntl
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AbstractDevice, AbstractMesh

from launch.errors import InputError
from launch.runtime.devices.hardware import CHIPS, Chip
from launch.runtime.layers.layers import attend
from launch.runtime.preflight import hlo, hlo_time, preflight
from launch.runtime.preflight.preflight import Program, parse_target, scaled_seconds
from tests.support import ROOT
from tests.support.libtpu import needs_libtpu

LIBTPU_LOCK = "/tmp/libtpu_lockfile"

# Eight layers in a loop, their weights split over fsdp; ROWS examples a chip.
PREFLIGHT = """
import sys
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from launch.cli import exit_code
from launch.runtime.preflight import preflight

target, rows = sys.argv[1], int(sys.argv[2])

def step(weights, x):
    def loss(weights):
        return (jax.lax.scan(lambda h, w: (jax.numpy.tanh(h @ w), None), x, weights)[0] ** 2).sum()
    return weights - 0.1 * jax.grad(loss)(weights)

def lower(mesh):
    def shape(*sizes, spec):
        return jax.ShapeDtypeStruct(sizes, "float32", sharding=NamedSharding(mesh, spec))
    weights = shape(8, 1024, 1024, spec=P(None, "fsdp"))
    x = shape(rows * mesh.size, 1024, spec=P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=0).lower(weights, x)

def held(mesh):
    sharding = NamedSharding(mesh, P(None, "fsdp"))
    shape = jax.ShapeDtypeStruct((8, 4096, 4096), "bfloat16", sharding=sharding)
    return {"parameters": shape, "averages": {}}

axes = dict(data=-1, fsdp=4)
params = jax.ShapeDtypeStruct((8, 1024, 1024), "float32")
sys.exit(exit_code(lambda: preflight.run(target, lower, axes, params, -1.0, None, held), ""))
"""


def run_preflight(target, rows, **env):
    """In a process of its own: libtpu keeps its lock until the process ends."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PREFLIGHT, target, str(rows)],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )


# Whoever else on this machine compiles for a TPU does not fail the tests.
BESIDE_OTHERS = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@needs_libtpu
def test_two_slices():
    done = run_preflight("v5p:2x2x2*2", 16, **BESIDE_OTHERS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "preflight for v5p:2x2x2*2: 16 chips, mesh data 4, fsdp 4, tensor 1"
    assert lines[1] == "parameters: 8,388,608"
    # What is held is said before anything is compiled: 256 MiB over four chips.
    table = ["  parameters       0.06", "  total            0.06 of 95"]
    assert lines[3:6] == ["held by a chip between steps, GiB", *table]
    result = json.loads(lines[-1])
    assert result["fits"] and result["hbm_bytes"] == 95 * 2**30
    # Weights of 8 MiB, in place of which the new ones come; 64 KiB of x.
    assert 8 * 2**20 + 2**16 <= result["bytes_per_chip"] < 64 * 2**20
    # Three products a layer; the rest is element by element.
    flops = 8 * 3 * 2 * 16 * 1024 * 1024
    assert flops <= result["flops_per_chip"] < 1.1 * flops
    assert result["floor_seconds"] == result["flops_per_chip"] / 459e12
    assert result["floor_seconds"] < result["estimated_seconds"] < 0.1
    table = {tuple(line.split()[:3]): float(line.split()[-1]) for line in lines if "fsdp  " in line}
    # bfloat16 weights, three quarters of them, forward and backward; gradients in float32.
    assert table["all-gather", "fsdp", "4"] == pytest.approx(2 * 0.75 * 16 * 2**20 / 1e9, abs=1e-3)
    assert table["reduce-scatter", "fsdp", "4"] == pytest.approx(0.75 * 2**25 / 1e9, abs=1e-3)
    assert any(line.startswith("send") and " data " in line for line in lines)
    first = 1 + next(i for i, line in enumerate(lines) if line.startswith("chips "))
    assert [int(line.split()[0]) for line in lines[first : first + 7]] == list(preflight.SCALES)


@needs_libtpu
def test_what_does_not_fit():
    done = run_preflight("v5e:2x2", 400_000, **BESIDE_OTHERS)
    assert done.returncode == 2
    assert "--preflight=v5e:2x2: the step needs" in done.stderr
    assert "f32[8,400000,1024]" in done.stderr and "remat" in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert not result["fits"] and result["bytes_per_chip"] > result["hbm_bytes"] == 16 * 2**30


@needs_libtpu
def test_libtpu_in_use():
    with open(LIBTPU_LOCK, "a") as file:
        # Whoever holds it besides: the outcome is the same.
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass
        done = run_preflight("v5e:2x2", 16, ALLOW_MULTIPLE_LIBTPU_LOAD="0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "another process uses libtpu" in done.stderr.splitlines()[-1]


@needs_libtpu
def test_no_such_slice():
    done = run_preflight("v5e:3x4", 16, **BESIDE_OTHERS)
    assert done.returncode == 2
    assert "there is no slice v5e:3x4" in done.stderr.splitlines()[-1]


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "\.\[preflight\]"'):
        parse_target("v5e:2x2").devices()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v4:4x4x16", ("v4", (4, 4, 16), 1)),
        ("v5p:4x4x8*2", ("v5p", (4, 4, 8), 2)),
        ("v6e:16x16", ("v6e", (16, 16), 1)),
    ],
)
def test_targets(text, expected):
    target = parse_target(text)
    assert (target.generation, target.topology, target.slices) == expected
    assert target.chip.name == target.generation


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v4", "write GENERATION:TOPOLOGY"),
        ("v9:2x2", "--preflight must begin with one of v4, v5p, v5e, v6e, got v9:2x2"),
        ("v4:16x16", "slices of v4 have 3 axes"),
        ("v5e:16x16x1", "slices of v5e have 2 axes"),
        ("v5e:0x2", "no size of 0"),
        ("v5e:2x2*0", "no size of 0"),
        ("v5e:2x2*", "write GENERATION:TOPOLOGY"),
    ],
)
def test_wrong_targets(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_target(text)


MODULE = """HloModule step, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %h = f32[8]{0} get-tuple-element(%p), index=1
  %ar = f32[8]{0} all-reduce(%h), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %ar)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[] constant(7)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

%scatter (input: f32[1024]) -> f32[256] {
  %input = f32[1024]{0} parameter(0)
  %all = f32[1024]{0} all-reduce(%input), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %zero = s32[] constant(0)
  ROOT %part = f32[512]{0} dynamic-slice(%all, %zero), dynamic_slice_sizes={512}
}

ENTRY %main (a: f32[8], b: f32[1024]) -> f32[8] {
  %a = f32[8]{0} parameter(0), metadata={op_name="a"}
  %b = f32[1024]{0} parameter(1), metadata={op_name="b"}
  %one = s32[] constant(1)
  %start = s32[] copy(%one)
  %init = (s32[], f32[8]{0}) tuple(%start, %a)
  %loop = (s32[], f32[8]{0}) while(%init), condition=%condition, body=%body
  %kept = f32[512]{0} fusion(%b), kind=kCustom, calls=%scatter, metadata={op_name="x3/y"}
  %more = f32[512]{0} add(%kept, %kept), metadata={op_name="x4/y"}
  %less = f32[16]{0} fusion(%kept, %more), kind=kLoop, calls=%other
  %g = (f32[16]{0}, f32[128]{0}) all-gather-start(%less), replica_groups={}, dimensions={0}
  %gd = f32[128]{0} all-gather-done(%g)
  %cp = f32[128]{0} collective-permute(%gd), source_target_pairs={{0,0},{0,2},{2,0}}
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    "groups",
    [
        "[2,4]<=[4,2]T(1,0)",
        "{{0,2,4,6},{1,3,5,7}}",
        "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}",
        "mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_1'}",
    ],
)
def test_collectives_of_a_program(groups):
    """By hand: what a chip sends by ring, the loop's six times."""
    module = hlo.parse(MODULE.replace("[2,4]<=[4,2]T(1,0)", groups))
    found = hlo.collectives(module, dict(data=4, fsdp=2))
    assert {(one.kind, one.axes, one.chips): one.bytes for one in found} == {
        ("all-reduce", ("data",), 4): 6 * 2 * 3 / 4 * 32,
        ("reduce-scatter", ("fsdp",), 2): 1 / 2 * 4096,
        ("all-gather", ("data", "fsdp"), 8): 7 * 64,
        ("collective-permute", ("data",), 2): 512,
    }
    assert all(one.turns_known for one in found)


def test_names_of_parameters_are_as_python_has_them():
    module = hlo.parse(MODULE.replace('op_name="a"', r"""op_name="x[\'w\']" """.strip()))
    sources = {line.name: line.source for line in module.computations[module.entry]}
    assert (sources["a"], sources["b"]) == ("x['w']", "b")


def test_a_loop_of_unknown_length_turns_once():
    module = hlo.parse(MODULE.replace("direction=LT", "direction=NE"))
    found = hlo.collectives(module, dict(data=4, fsdp=2))
    loop = next(one for one in found if one.kind == "all-reduce")
    assert (loop.bytes, loop.turns_known) == (2 * 3 / 4 * 32, False)


def test_shares_of_the_time():
    sources = {
        "jit(s)/jvp(Net)/up_1/conv1/dot": 3,
        "jit(s)/jvp(Net)/up_2/conv2/mul": 2,
        "jit(s)/transpose(jvp(Net))/Net.up/up_blocks_1_attentions_0/vmap()/exp": 4,
        "jit(s)/mul": 1,
    }
    lines = [
        f'  %t{cycles} = f32[8]{{0}} add(%a, %a), metadata={{op_name="{source}"}}, '
        f'backend_config={{"estimated_cycles":"{cycles}"}}'
        for source, cycles in sources.items()
    ]
    text = MODULE.replace("  %b = f32[1024]", "\n".join(lines) + "\n  %b = f32[1024]")
    assert hlo_time.shares(hlo.parse(text), 9) == [
        ("forward conv*", 0.5),
        ("backward attentions_*/vmap()", 0.4),
        ("update", 0.1),
    ]
    assert len(hlo_time.shares(hlo.parse(text), 2)) == 2
    assert hlo_time.shares(hlo.parse(MODULE), 9) == []


def test_largest_buffers_are_those_at_the_peak():
    first, second = hlo.largest_buffers(hlo.parse(MODULE), 2)
    # The two layers' are one kind; at the peak the fusion's small result is not there yet.
    assert (first.bytes, first.count, first.shape) == (4096, 1, "f32[1024]")
    assert (second.bytes, second.count, second.shape, second.source) == (
        4096,
        2,
        "f32[512]",
        "x*/y",
    )


@pytest.mark.parametrize(
    ("shape", "size", "padded"),
    [
        ("f32[3,5]{1,0:T(8,128)}", 60, 4 * 8 * 128),
        ("f32[3,5]{0,1:T(8,128)}", 60, 4 * 8 * 128),
        ("bf16[2,130,8]{1,2,0:T(8,128)(2,1)}", 4160, 2 * 2 * 8 * 256),
        ("f32[4]{0:T(128)S(1)}", 16, 0),
        ("pred[10]{0}", 10, 10),
        ("(f32[2]{0}, s4[3]{0}, token[])", 10, 10),
    ],
)
def test_sizes(shape, size, padded):
    assert hlo.size_of(shape) == size
    assert hlo.size_of(shape, padded=True) == padded


def test_scaling_model():
    """By hand, on chips of which eight are a slice."""
    chip = Chip(
        "",
        (),
        1.0,
        1,
        link_bandwidth=200.0,
        slice_size=8,
        network_bandwidth=10.0,
        host_chips=4,
        host_cpus=100,
    )
    sent = hlo.Collective("all-reduce", ("data",), 2, 150.0, True)
    program = Program({}, 1.0, 10.0, [sent], [])
    seconds = lambda chips: scaled_seconds(program, chip, dict(data=2, fsdp=2), 0, chips)  # noqa: E731
    # 300 bytes on a data axis without end; links of 100 bytes a second each for data and fsdp.
    assert seconds(4) == pytest.approx(10.0)
    assert seconds(8) == pytest.approx(10.0 - 1.5 + 300 * 3 / 4 / 100)
    assert seconds(32) == pytest.approx(10.0 - 1.5 + 300 * 3 / 4 / 100 + 300 / 4 * 3 / 4 / 10)


def test_the_slower_of_chips_and_cpus_is_named(capsys):
    v4 = next(chip for chip in CHIPS if chip.name == "v4")
    program = Program({}, 1.0, seconds=0.25, collectives=[], buffers=[])
    preflight._print_feeding({"files": 240.0, "a copy": 120.0}, program, v4, chips=10)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "fed from files 0.3333 s by 3 x 240 CPUs: limited by the CPUs",
        "fed from a copy 0.1667 s by 3 x 240 CPUs: limited by the chips",
    ]


@pytest.mark.parametrize(
    ("estimate", "floor", "expected"), [(0.2, 0.1, 0.2), (-2.8, 0.1, 0.2), (-2.8, 0.3, 1.2)]
)
def test_what_the_compiler_cannot_tell_takes_no_second_off(estimate, floor, expected):
    assert preflight._mended(estimate, floor) == pytest.approx(expected)


def test_the_table_has_every_generation():
    assert set(preflight.GENERATIONS) <= {chip.name for chip in CHIPS}


@pytest.mark.parametrize(
    ("kind", "cudnn"), [("gpu", True), ("tpu", False), ("cpu", False), (None, False)]
)
def test_attention_is_traced_for_the_chips_of_the_mesh(kind, cudnn, monkeypatch):
    """Through gradient, remat and scan, on a machine that has no such chips."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)

    @jax.checkpoint
    def layer(x, _):
        return attend(x, x, x), None

    def loss(x):
        return jax.lax.scan(layer, x, None, length=2)[0].astype(jnp.float32).sum()

    x = jax.ShapeDtypeStruct((1, 16, 2, 64), jnp.bfloat16)
    traced_for = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice(kind, None, kind))
    with jax.sharding.use_abstract_mesh(traced_for) if kind else monkeypatch.context():
        traced = jax.jit(jax.grad(loss)).trace(x)
    # Newer versions of JAX lower it for GPUs that are there only.
    assert ("dot_product_attention_bwd" in str(traced.jaxpr)) == cudnn
