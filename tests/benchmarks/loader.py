"""What shuffling many examples costs in time and memory, and how fast threads and processes decode.

python -m tests.benchmarks.loader [--quick] [--millions 12] [--batch 4096] [--workers 0,1,2]

The order: indices of batches of 1.28M real and so many million synthetic examples, as their union
and with half of every batch from each; the peer is Grain's element-wise
`shuffle().repeat().batch()` over the synthetic ones alone. Every epoch is checked to hold each
example once. Memory is this process's, over more epochs than are held.

Decoding: batches of JPEGs of 500x375 px, cropped at random to 224 px and mirrored, by threads (0)
and by as many worker processes as named; the peer is one thread that does nothing else. Starting,
the first batches and ending are not timed. Every loader's batches are compared with that thread's.
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import grain
import numpy as np

from input_pipeline.augment.crop import random_crop
from input_pipeline.augment.flip import random_flip
from input_pipeline.batches import loader
from input_pipeline.batches.mixture import FixedWeight
from input_pipeline.batches.order import Epochs, Shuffled
from input_pipeline.records.image_codec import decode_image
from launch.cpus import usable_cpus
from launch.runtime.reports.tables import text_table

REAL = 1_281_167


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def line(case: str, ours: float, peer: float | None, unit: str, **more: float) -> dict:
    """The fields of a JSON line."""
    ratio = peer and ours / peer
    return dict(case=case, ours=ours, peer=peer, unit=unit, ratio=ratio, **more)


def cells(case: str, ours: float, peer: float | None, ratio: float | None, unit: str, **_) -> list:
    """The cells of a table row."""
    compared = ["", ""] if ratio is None else [f"{peer:,.6g}", f"{ratio:.2f}"]
    return [case, f"{ours:,.6g}", *compared, unit]


def median_seconds(function: Callable[[int], object], count: int) -> float:
    """Median over calls with 0 to count - 1."""
    times = []
    for k in range(count):
        began = time.perf_counter()
        function(k)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure_order(n: int, batch: int) -> Iterator[dict]:
    """Time to begin an epoch and to make a batch, and memory over four epochs."""
    whole, before = np.arange(n), resident()
    epochs = Epochs(n, seed=0)
    for epoch in range(4):
        began = time.perf_counter()
        epochs(np.array([epoch * n]))
        seconds, megabytes = time.perf_counter() - began, (resident() - before) / 1e6
        drawn = epochs(epoch * n + whole)
        assert (np.bincount(drawn, minlength=n) == 1).all()
        del drawn
        yield line(f"the order of epoch {epoch}", seconds, None, "s", examples=n)
        yield line(f"memory after epoch {epoch}", megabytes, None, "MB", examples=n)
    grains = grain.MapDataset.range(n).shuffle(seed=0).repeat().batch(batch)
    peer = median_seconds(grains.__getitem__, 4)
    domain = np.repeat(np.array([0, 1], np.int32), [REAL, n])
    rows = np.arange(batch)
    for name, plan in (
        ("union", Shuffled(len(domain), batch, seed=0)),
        ("fixed weight", FixedWeight(domain, 0.5, batch, seed=0)),
    ):
        plan(0, rows)
        ours = median_seconds(lambda k, plan=plan: plan(k, rows), 100)
        yield line(f"{name}, {batch} places", batch / ours, batch / peer, "indices/s")


class Photographs:
    """JPEGs in memory, decoded as they are asked for."""

    def __init__(self, count: int):
        rng = np.random.default_rng(0)
        self._files = []
        for _ in range(16):
            small = rng.integers(0, 256, (24, 32, 3), np.uint8)
            image = cv2.resize(small, (500, 375), interpolation=cv2.INTER_CUBIC)
            noise = rng.integers(0, 24, image.shape, np.uint8)
            self._files.append(cv2.imencode(".jpg", cv2.add(image, noise))[1].tobytes())
        self.class_names, self.labels = ("photograph",), np.zeros(count, np.int32)
        self.domain = self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict:
        image = decode_image(self._files[i % len(self._files)], 3)
        return {"image": image, "label": self.labels[i], "domain": self.domain[i]}


def crop_and_flip(example: dict, rng: np.random.Generator, size: int) -> dict:
    return random_flip(random_crop(example, rng, size), rng)


def measure_decoding(batch: int, steps: int, workers: list[int]) -> Iterator[dict]:
    """Images per second for each kind of reader."""
    augment = functools.partial(crop_and_flip, size=224)
    dataset = loader.batches(Photographs(10_000), batch, 0, augment=augment)
    expected = [dataset[k]["image"] for k in range(2)]
    alone = batch / median_seconds(dataset.__getitem__, max(2, steps // 4))
    for count in workers:
        # Not timed: what was read ahead while the last worker started. Reading ahead continues.
        warm = 4 + 4 * count
        times = [time.perf_counter()]
        for k, found in enumerate(loader.iterate(dataset, 0, 2 * warm + steps, count)):
            times.append(time.perf_counter())
            if k < len(expected):
                np.testing.assert_array_equal(found["image"], expected[k])
        rate = steps * batch / (times[warm + steps] - times[warm])
        name = f"{count} processes" if count else f"threads on {usable_cpus()} cores"
        first = times[1] - times[0]
        yield line(f"decoding, {name}", rate, alone, "images/s", first_batch_seconds=first)


def main() -> None:
    """Measures; prints a table, and one JSON line per row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a million examples, fewer batches")
    parser.add_argument("--millions", type=float, default=12)
    parser.add_argument("--batch", type=int, default=4096, help="places of a batch, for the order")
    parser.add_argument("--images", type=int, default=64, help="of a batch that is decoded")
    parser.add_argument("--workers", default="0,1,2", help="numbers of processes, by comma")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    found = list(measure_order(int(1e6 * (1 if args.quick else args.millions)), args.batch))
    workers = [int(count) for count in args.workers.split(",")]
    found += measure_decoding(args.images, 12 if args.quick else 40, workers)
    print(text_table(["case", "ours", "peer", "ratio", ""], [cells(**one) for one in found]))
    print(*map(json.dumps, found), sep="\n")


if __name__ == "__main__":
    main()
