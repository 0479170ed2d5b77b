"""Batches: the position in the data is one number, so resuming needs the step and nothing else."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int, Int64

from input_pipeline.files import InputError
from input_pipeline.sources import Source

Example = dict[str, Any]
Batch = dict[str, np.ndarray]
Transform = Callable[[Example], Example]
Augment = Callable[[Example, np.random.Generator], Example]

# A core decodes some 270 photographs a second; one is left for the step.
_THREADS = min(16, max(1, (os.cpu_count() or 1) - 1))
_READ_AHEAD = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS + 1)


@functools.lru_cache(maxsize=4)  # a batch can span two epochs; 8 bytes an example and epoch
def _epoch_order(n: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    order = np.random.default_rng((seed, epoch)).permutation(n)
    order.flags.writeable = False
    return order


class _ShuffledBatches:
    """Random access to this process's part of every batch of an endless, shuffled run.

    Grain's element-wise `shuffle().repeat().batch()` costs 95 us an example, and its index shuffle
    is visibly not uniform on a few dozen examples. So Grain sees whole batches.
    """

    def __init__(self, source, batch_size, seed, transform, augment, rows):
        self._source, self._seed = source, seed
        self._transform, self._augment = transform, augment
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, k: int) -> Batch:
        n = len(self._source)
        positions = k * self._batch_size + self._rows
        epochs = positions // n
        indices = np.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            mine = epochs == epoch
            indices[mine] = _epoch_order(n, self._seed, epoch)[positions[mine] % n]
        return _stack([self._example(*at) for at in zip(indices.tolist(), positions, strict=True)])

    def _example(self, index: int, position: int) -> Example:
        example = _example(self._source, index, self._transform)
        if self._augment is None:
            return example
        # Every place in the run has its own randomness, whichever process comes by it. Philox takes
        # the place as its counter; seeding another generator would cost more than the crop.
        bits = np.random.Philox(counter=[0, position, 0, 0], key=[self._seed, 0])
        return self._augment(example, np.random.Generator(bits))


def _example(source: Source, i: int, transform: Transform | None) -> Example:
    example = source[i]
    return transform(example) if transform else example


def _stack(examples: Sequence[Example]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    transform: Transform | None = None,
    augment: Augment | None = None,
    rows: Int[np.ndarray, " rows"] | None = None,
) -> grain.MapDataset:
    """Endless shuffled batches: element k is a function of (seed, k) only.

    Every epoch has its own order and holds each example once; epochs run on across the borders of
    batches. What row r of batch k holds does not depend on who loads it.

    Args:
        source: what to draw from.
        batch_size: examples in a global batch, over all processes.
        seed: any integer >= 0.
        transform: maps one example to another, before examples are stacked.
        augment: the same, after `transform`, with randomness of its own for every example drawn.
        rows: those of a batch that this process loads; None is all.

    Returns:
        A dataset whose element k is a dict of arrays with these rows.

    Raises:
        InputError: the source is empty, or the batch is.
    """
    if not len(source):
        raise InputError("the source holds no examples; check its split or path")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: at least 1 is needed")
    rows = np.arange(batch_size) if rows is None else rows
    return grain.MapDataset.source(
        _ShuffledBatches(source, batch_size, seed, transform, augment, rows)
    )


def iterate(dataset: grain.MapDataset, start: int, stop: int) -> Iterator[Batch]:
    """Batches start .. stop - 1; threads, one a core, read ahead."""
    reader = iter(dataset[start:stop].to_iter_dataset(_READ_AHEAD))
    try:
        yield from reader
    finally:
        reader.close()


class _EvalBatches:
    """Random access to the batches of one pass in order, the last one padded with zeros."""

    def __init__(self, source, batch_size, transform, rows):
        self._source, self._batch_size, self._transform = source, batch_size, transform
        self._rows = rows

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, k: int) -> Batch:
        positions = k * self._batch_size + self._rows
        mask = positions < len(self._source)
        # A process whose rows are all padding reads one image, to know its shape.
        real = positions[mask].tolist() or [0]
        batch = _stack([_example(self._source, i, self._transform) for i in real])
        missing = len(positions) - len(real)
        padded = {
            key: np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))
            for key, rows in batch.items()
        }
        return padded | {"mask": mask}


def eval_batches(
    source: Source,
    batch_size: int,
    transform: Transform | None = None,
    rows: Int[np.ndarray, " rows"] | None = None,
) -> Iterator[Batch]:
    """One pass in order, in batches of one size.

    Args:
        source: what to read.
        batch_size: examples in a global batch.
        transform: maps one example to another.
        rows: those of a batch that this process loads; None is all.

    Returns:
        Batches with the field `mask`, bool [b]: False for the padding of the last batch.
    """
    rows = np.arange(batch_size) if rows is None else rows
    dataset = grain.MapDataset.source(_EvalBatches(source, batch_size, transform, rows))
    return iterate(dataset, 0, len(dataset))
