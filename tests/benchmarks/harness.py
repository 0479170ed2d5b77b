"""Ours against a peer: alternating runs in one process, a table, one JSON line per case."""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.sharding import AbstractDevice, AbstractMesh

from launch.runtime.reports.tables import text_table

# Relative to images. bfloat16 rounds to 3 digits, and peers keep noisy images in it.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}


def arguments(description: str, **defaults: str) -> argparse.Namespace:
    """Parses the flags that the benchmarks of networks share.

    Args:
        description: what `--help` prints.
        **defaults: for `preset` and `batch`.
    """
    return read_flags(add_flags(description), **defaults)


def add_flags(description: str) -> argparse.ArgumentParser:
    """A parser of the shared flags, to which a benchmark can add its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="smaller, fewer repeats")
    add("--preset", help="one model alone, by its preset")
    add("--batch", type=_sizes, help="batch sizes, by comma")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--threads", type=int, default=2, help="of each, on a CPU")
    add("--forward_only", action="store_true")
    add("--steps", type=int, help="of a sampler or of training")
    return parser


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def read_flags(parser: argparse.ArgumentParser, **defaults: str) -> argparse.Namespace:
    """Parses the flags, and restarts the program with the number of threads they ask for."""
    parser.set_defaults(**{**defaults, "batch": _sizes(defaults["batch"])})
    args = parser.parse_args()
    if os.environ.get("NPROC") != str(args.threads):
        # XLA reads both at startup; by default it leaves PyTorch a quarter of a GPU's memory.
        settings = {"NPROC": str(args.threads), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        os.execve(sys.executable, [*sys.orig_argv], os.environ | settings)
    return args


def as_on_tpu() -> contextlib.AbstractContextManager:
    """Counts operations as a TPU does them: a CPU computes some products in another form."""
    device = AbstractDevice("TPU v4", None, "tpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device))


def matrix_peak(dtype: str) -> float:
    """Operations per second of a large matrix product."""
    size = 8192 if jax.default_backend() == "gpu" else 2048
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def synchronize(result: Any) -> Any:
    """Waits for PyTorch's device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


@dataclasses.dataclass(frozen=True)
class Result:
    """Measurements of one case.

    Attributes:
        case: its name.
        ours: seconds of each run.
        peer: seconds of each of the peer's runs.
        flops: floating-point operations per run; 0 if not counted.
        work: units of work per run, for rates.
        unit: of the work.
        error: relative difference of the outputs.
        evaluations: of the network per run, for the JSON line; 0 leaves them out.
    """

    case: str
    ours: list[float]
    peer: list[float]
    flops: float
    work: float
    unit: str
    error: float
    evaluations: int = 0

    @property
    def ratio(self) -> float:
        """Our speed divided by the peer's."""
        return statistics.median(self.peer) / statistics.median(self.ours)


def check_same_work(
    case: str, dtype: str, error: float, evaluations: int, peer_evaluations: int
) -> None:
    """Ends the program if a sampler and its peer did not draw the same images in the same way.

    Args:
        case: its name.
        dtype: of the computation.
        error: relative difference of the images.
        evaluations: of the network, for all images.
        peer_evaluations: of the peer's network.
    """
    if not error <= TOLERANCE[dtype] or evaluations != peer_evaluations:
        sys.exit(
            f"{case}: the images differ by {error:.1e}; {evaluations} evaluations of ours, "
            f"{peer_evaluations} of the peer: no times without the same work"
        )


def compare(
    case: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    error: float,
    work: float,
    unit: str,
    flops: float = 0.0,
    evaluations: int = 0,
    repeats: int = 7,
    in_a_row: int = 1,
) -> Result:
    """Times both, alternating, after one warm-up run of each.

    Args:
        case: its name.
        ours: runs ours and waits for the result.
        peer: the same for the peer.
        error: relative difference of their outputs, computed before.
        work: units of work per run.
        unit: of the work.
        flops: per run.
        evaluations: of the network per run, if worth reporting.
        repeats: turns of each.
        in_a_row: timed runs in each turn. Above 1, as for steps of training, one that is not timed
            goes first: the other's turn has left caches and memory cold.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, found in zip((ours, peer), times, strict=True):
            if repeat and in_a_row > 1:
                function()
            for _ in range(in_a_row if repeat else 1):
                start = time.perf_counter()
                function()
                if repeat:
                    found.append(time.perf_counter() - start)
    return Result(case, *times, flops, work, unit, error, evaluations)


def report(results: list[Result], peak: float = 0.0) -> None:
    """Prints the table and the JSON lines.

    Args:
        results: from `compare`.
        peak: operations per second of a large matrix product in this process.
    """
    if peak:
        print(f"\na matrix product reaches {peak / 1e9:,.0f} GFLOP/s here")
    rows = []
    for result in results:
        share = result.flops / statistics.median(result.ours) / peak if peak else 0.0
        numbers = [f"{result.ratio:.2f}", f"{result.flops / 1e9:,.1f}", f"{share:.0%}"]
        times = [_shown(result.ours), _shown(result.peer)]
        rows.append([result.case, *times, *numbers, f"{result.error:.1e}"])
    header = ["case", "ours", "peer", "ratio", "GFLOP", "peak", "error"]
    print("\n" + text_table(header, rows))
    print("(milliseconds: median ± half of the range between the quartiles)\n")
    for result in results:
        extra = {}
        if result.evaluations:
            share = result.flops / statistics.median(result.ours) / peak
            fastest = min(result.peer) / min(result.ours)
            extra = {"evaluations": result.evaluations, "peak_share": share}
            extra |= {"ratio_of_fastest": fastest}  # least disturbed by other work on the machine
        rates = [result.work / statistics.median(times) for times in (result.ours, result.peer)]
        line = dict(case=result.case, ours=rates[0], peer=rates[1], unit=result.unit)
        print(json.dumps({**line, "ratio": result.ratio, **extra}))


def _shown(times: list[float]) -> str:
    low, _, high = statistics.quantiles(times, n=4)
    return f"{1e3 * statistics.median(times):,.1f} ± {500 * (high - low):,.1f}"
