"""What measures take once the features are there, and the memory of precision and recall.

python -m tests.benchmarks.metrics            # 50,000 images of 2048 features: minutes
python -m tests.benchmarks.metrics --quick    # 6000 of 512

Goals on 2 cores: all measures under 60 s, FID alone (statistics of the images and the distance from
a stored reference) under 10 s, precision and recall of 10,000 against 10,000 under 1 GB. The peers
are what other tools do: eigenvalues of the product of the covariances (torch-fidelity), and prdc,
which holds all pairs.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import prdc

from imagen_ft.metrics import frechet, statistics
from imagen_ft.metrics.copying import copying
from imagen_ft.metrics.inception_score import inception_score
from imagen_ft.metrics.kernel_distance import kernel_distance
from imagen_ft.metrics.neighbours import Convention, neighbourhoods
from imagen_ft.metrics.sliced_distance import sliced_distance
from launch.runtime.reports.tables import text_table

CLASSES = 1008
PAIRED = 10_000  # images on each side when all pairs are compared


def features(count: int, width: int, seed: int) -> np.ndarray:
    """Like a network's: none below 0, some dimensions used much more than others."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, 64), np.float32) / 8
    rows = random.standard_normal((count, width), np.float32)
    rows *= np.linspace(0.05, 1, width, dtype=np.float32)
    rows += random.standard_normal((count, 64), np.float32) @ mixing.T
    return np.maximum(rows + np.float32(0.01 * seed), 0)


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the seconds, and the CPU seconds, which a busy machine distorts less."""
    start, cpu_start = time.perf_counter(), time.process_time()
    outcome = action()
    return outcome, time.perf_counter() - start, time.process_time() - cpu_start


def by_eigenvalues(a: statistics.Statistics, b: statistics.Statistics) -> float:
    """The distance as torch-fidelity computes it."""
    roots = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).astype(complex)).real
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(np.square(a.mean - b.mean).sum() + traces - 2 * roots.sum())


def all_pairs(count: int, width: int, ours: bool) -> tuple[dict[str, float], float, float]:
    """Precision and its kin: shares, seconds, and megabytes in addition to the features."""
    fake, real = (features(count, width, seed) for seed in (2, 1))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = kilobytes("VmRSS")

    def measure() -> dict[str, float]:
        if ours:
            return dict(vars(neighbourhoods(fake, real, Convention(5, "<"))))
        with contextlib.redirect_stdout(io.StringIO()):
            return prdc.compute_prdc(real, fake, 5)

    shares, seconds, _ = timed(measure)
    return shares, seconds, (kilobytes("VmHWM") - before) / 1024


def kilobytes(name: str) -> int:
    """Linux's figure for the memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def alone(*arguments: Any) -> tuple[dict[str, float], float, float]:
    """`all_pairs` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(all_pairs, *arguments).result()


def measures(count: int, width: int) -> list[tuple[str, float, float]]:
    """The name, seconds and CPU seconds of each measure."""
    fake, real = (features(count, width, seed) for seed in (2, 1))
    logits = np.random.default_rng(0).standard_normal((count, CLASSES), np.float32)
    reference = statistics.of_features(real)
    few = slice(min(PAIRED, count))
    cases: dict[str, Callable[[], Any]] = {
        "FID": lambda: frechet.frechet_distance(statistics.of_features(fake), reference),
        "FID at infinity": lambda: frechet.distance_at_infinity(
            fake, reference, allow_few_images=True
        ),
        "IS": lambda: inception_score(logits),
        "KID": lambda: kernel_distance(fake, real),
        "MIND": lambda: sliced_distance(fake, real),
        "precision, recall, density, coverage": lambda: neighbourhoods(fake[few], real[few]),
        "copying": lambda: copying(fake[few], real[few]),
    }
    rows = []
    for name, action in cases.items():
        rows.append((name, *timed(action)[1:]))
        print(f"{name}: {rows[-1][1]:.1f} s", flush=True)
    # sFID takes as long as FID: it has 2023 features.
    rows.insert(1, ("sFID", *rows[0][1:]))
    return rows


def against_peers(count: int, width: int) -> list[dict[str, Any]]:
    """Ours and theirs on the same features."""
    ours, theirs = (statistics.of_features(features(count, width, seed)) for seed in (2, 1))
    found, own, _ = timed(lambda: frechet.frechet_distance(ours, theirs))
    expected, other, _ = timed(lambda: by_eigenvalues(ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    lines = [_line("distance from statistics", own, other)]
    found, own, memory = alone(min(PAIRED, count), width, True)
    expected, other, their_memory = alone(min(PAIRED, count), width, False)
    for name, share in expected.items():
        np.testing.assert_allclose(found[name], share, atol=2e-4)
    megabytes = {"megabytes": memory, "peer_megabytes": their_memory}
    return [*lines, _line("precision, recall, density, coverage", own, other) | megabytes]


def _line(case: str, ours: float, peer: float) -> dict[str, Any]:
    return {"case": case, "ours": ours, "peer": peer, "unit": "s", "ratio": peer / ours}


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="6000 images of 512 features")
    count, width = (6000, 512) if parser.parse_args().quick else (50_000, 2048)
    rows = measures(count, width)
    rows.append(("all", *(sum(row[n] for row in rows) for n in (1, 2))))
    shown = [[name, f"{seconds:.1f}", f"{cpu:.1f}"] for name, seconds, cpu in rows]
    print(f"\n{count} images of {width} features; all pairs of {min(PAIRED, count)}\n")
    print(text_table(["measure", "seconds", "of all cores"], shown) + "\n")
    lines = against_peers(count, width)
    for name, seconds, _ in rows:
        print(json.dumps({"case": name, "ours": seconds, "peer": None, "unit": "s", "ratio": None}))
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
