"""The percentile of dynamic thresholding against `jnp.percentile`, which sorts, and a top-k.

python -m tests.benchmarks.threshold            # 64, 256 and 1024 px
python -m tests.benchmarks.threshold --quick    # 64 and 256 px
python -m tests.benchmarks.threshold --preflight=v4    # what libtpu's compiler makes of each

The compiler for TPUs estimates neither loops nor sorts: it counts one turn of a loop, and one read
and write for a sort. So --preflight estimates ours from the bytes of all its turns, at the speed
that the compiler assumes, and only says whether the others sort.
"""

import argparse
import functools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from imagen_ft.diffusion.guidance import percentile_of_rows
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.preflight import preflight
from tests.benchmarks.harness import compare, report

PERCENTILE = 99.5
# Reads of an image in ours: one per bit, one for the values above, one for NaNs.
PASSES = 31 + 2


def by_sort(rows: jax.Array) -> jax.Array:
    """The former implementation."""
    return jnp.percentile(rows, PERCENTILE, axis=1)


def by_top_k(rows: jax.Array) -> jax.Array:
    """Uses as much of the tail as is needed."""
    last = rows.shape[1] - 1
    position = np.float32(PERCENTILE) / np.float32(100) * np.float32(last)
    weight = position - np.floor(position)
    tail = jax.lax.top_k(rows, rows.shape[1] - int(position))[0]
    return tail[:, -1] * (1 - weight) + tail[:, -2] * weight


ours = functools.partial(percentile_of_rows, percentile=PERCENTILE)
PEERS = {"sort": by_sort, "top-k": by_top_k}


def on_this_device(sizes: list[int]) -> None:
    """Times them on one image."""
    results = []
    for size in sizes:
        rows = jnp.abs(jax.random.normal(jax.random.key(size), (1, size * size * 3)))
        for name, peer in PEERS.items():
            programs = [
                functools.partial(jax.jit(function).lower(rows).compile(), rows)
                for function in (ours, peer)
            ]
            np.testing.assert_array_equal(*(np.asarray(program()) for program in programs))
            runs = [lambda program=program: program().block_until_ready() for program in programs]
            case = f"{size} px, {name}"
            results.append(compare(case, *runs, error=0.0, work=1, unit="images/s"))
    report(results)


def on_a_tpu(generation: str, sizes: list[int]) -> None:
    """Compiles them for one image and a chip that is not here."""
    plan = preflight.parse_target(
        f"{generation}:{'x'.join('2' * preflight.GENERATIONS[generation])}"
    )
    mesh = make_mesh({"data": -1}, plan.devices())
    for size in sizes:
        shape = (mesh.size, size * size * 3)
        rows = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P("data")))
        functions: dict[str, Callable[[jax.Array], jax.Array]] = {"ours": ours, **PEERS}
        for name, function in functions.items():
            compiled = jax.jit(function).lower(rows).compile()
            text, costs = compiled.as_text() or "", compiled.cost_analysis() or {}
            line = dict(case=f"{generation}, {size} px, {name}", sorts=" sort(" in text)
            if function is ours:
                seconds = preflight._mended(costs["optimal_seconds"], 0.0)
                seconds *= PASSES * 4 * shape[1] / costs["bytes accessed"]
                line["milliseconds"] = 1e3 * seconds
            print(json.dumps(line | {"temporary_bytes": _temporaries(compiled)}))


def _temporaries(compiled: jax.stages.Compiled) -> int:
    stats = compiled.memory_analysis()
    assert stats, "the compiler for TPUs tells"
    return stats.temp_size_in_bytes


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="no 1024 px")
    parser.add_argument("--preflight", choices=preflight.GENERATIONS, help="compile for this TPU")
    args = parser.parse_args()
    sizes = [64, 256] if args.quick else [64, 256, 1024]
    if args.preflight:
        on_a_tpu(args.preflight, sizes)
    else:
        on_this_device(sizes)


if __name__ == "__main__":
    main()
