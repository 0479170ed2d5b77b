"""Batches: the position in the data is one number, so resuming needs the step and nothing else."""

import gc
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int, Int64

from input_pipeline.batches.mixture import FixedWeight
from input_pipeline.batches.order import BatchPlan, Shuffled
from input_pipeline.batches.workers import end_with_parent
from input_pipeline.source import Augment, Example, Source, Transform
from launch.cpus import usable_cpus
from launch.errors import InputError

Batch = dict[str, np.ndarray]

# A core decodes some 270 photographs a second; one is left for the step.
_THREADS = min(16, max(1, usable_cpus() - 1))
_READ_AHEAD = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS + 1)
# Workers hand pixels over in shared memory, a file for each array, and smaller arrays in a pipe.
_MIN_SHARED_BYTES = 2**20
_WORKER_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)


class _DrawnBatches:
    """Random access to this process's part of every batch of an endless run.

    Grain's element-wise `shuffle().repeat().batch()` costs 95 us an example, and its index shuffle
    is visibly not uniform on a few dozen examples. So Grain sees whole batches.
    """

    def __init__(self, source, plan, draws, batch_size, seed, transform, augment, rows, repeats):
        self._source, self._plan, self._draws, self._seed = source, plan, draws, seed
        self._transform, self._augment = transform, augment
        self._batch_size, self._rows, self._repeats = batch_size, rows, repeats

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, k: int) -> Batch:
        positions = k * self._batch_size + self._rows
        number, plan_rows = np.divmod(positions // self._repeats, self._draws)
        indices = self._plan(int(number[0]), plan_rows)
        return _stack(list(self._draw(indices.tolist(), positions)))

    def _draw(self, indices: list[int], positions: Int64[np.ndarray, " rows"]) -> Iterator[Example]:
        last: int | None = None
        for index, position in zip(indices, positions, strict=True):
            if index != last:  # what is repeated is decoded once
                example, last = _example(self._source, index, self._transform), index
            yield self._augmented(example, position)

    def _augmented(self, example: Example, position: np.integer) -> Example:
        if self._augment is None:
            return example
        # Every position in the run has its own randomness, whichever process comes by it. Philox
        # takes it as its counter; seeding another generator would cost more than the crop.
        bits = np.random.Philox(counter=[0, int(position), 0, 0], key=[self._seed, 0])
        return self._augment(example, np.random.Generator(bits))


def _example(source: Source, i: int, transform: Transform | None) -> Example:
    example = source[i]
    return transform(example) if transform else example


def _stack(examples: Sequence[Example]) -> Batch:
    if "caption" in examples[0]:
        raise InputError(
            "only classifiers.train_clip reads captions; leave the field caption out of the source"
        )
    # What was kept of images in their place is of one shape.
    shapes = sorted({example["image"].shape for example in examples if "image" in example})
    if len(shapes) > 1:
        small, large = ("x".join(map(str, shape)) for shape in (shapes[0], shapes[-1]))
        raise InputError(
            f"images of {small} and of {large} in one batch; resize them to one size "
            "(config.augment.size, or square)"
        )
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    transform: Transform | None = None,
    augment: Augment | None = None,
    rows: Int[np.ndarray, " rows"] | None = None,
    synthetic_weight: Any = None,
    repeats: int = 1,
) -> grain.MapDataset:
    """Endless shuffled batches: element k is a function of (seed, k) only.

    Every epoch has its own order and holds each example once; epochs run on across the borders of
    batches. What row r of batch k holds does not depend on who loads it.

    Args:
        source: what to draw from.
        batch_size: examples in a global batch, over all processes.
        seed: any integer >= 0.
        transform: maps one example to another, before examples are stacked.
        augment: the same, after `transform`, with randomness of its own for every example drawn; it
            leaves what it is given as it is.
        rows: those of a batch that this process loads; None is all.
        synthetic_weight: the share of synthetic images in every batch, see `FixedWeight`; None is
            that of the source, on average.
        repeats: an example drawn fills so many rows that follow each other, each augmented by
            itself (Hoffer et al. 2020, Augment Your Batch); an epoch then has as many more batches.
            Where it does not divide the batch, the last example of a batch goes on in the next.

    Returns:
        A dataset whose element k is a dict of arrays with these rows.

    Raises:
        InputError: the source is empty, or the batch is, the weight cannot be kept, or is to be
            kept in batches that `repeats` does not divide.
    """
    if not len(source):
        raise InputError("the source has no examples; check its split or path")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    if batch_size % repeats and synthetic_weight is not None:
        raise InputError(
            f"repeats must divide batch_size={batch_size} where "
            f"synthetic_weight={synthetic_weight}, got {repeats}"
        )
    rows = np.arange(batch_size) if rows is None else rows
    # What the plan takes as a batch: draws for one batch, or for as many as end together.
    draws = batch_size // repeats if batch_size % repeats == 0 else batch_size
    plan: BatchPlan = Shuffled(len(source), draws, seed)
    if synthetic_weight is not None:
        plan = FixedWeight(source.domain, synthetic_weight, draws, seed)
    return grain.MapDataset.source(
        _DrawnBatches(source, plan, draws, batch_size, seed, transform, augment, rows, repeats)
    )


def iterate(dataset: grain.MapDataset, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Batches start .. stop - 1, the same for any number of workers; they are read ahead.

    Args:
        dataset: of `batches`.
        start: the first batch.
        stop: one past the last.
        workers: processes that read. They take seconds to start, memory of their own, and shared
            memory for four batches each. 0 is threads, one a core: as good where most of the time
            goes to decoding, during which other threads run.

    Raises:
        InputError: a worker was killed.
    """
    reader = iter(_read_ahead(dataset[start:stop], workers))
    try:
        yield from reader
    except RuntimeError as error:
        code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not workers or not code:
            raise
        raise InputError(
            f"loader_workers={workers}: one of them was killed (exit code {code[1]}), for "
            "lack of memory or of shared memory (/dev/shm); give it more, use fewer "
            "workers, or 0 for threads"
        ) from error
    finally:
        reader.close()
        if workers:
            # Frames of Grain's that an exception has passed hold shared memory beyond Python's end.
            del reader
            gc.collect()


def _read_ahead(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    if not workers:
        return dataset.to_iter_dataset(_READ_AHEAD)
    flags.FLAGS.mark_as_parsed()  # Grain asks absl's global flags for options to hand on.
    alone = grain.experimental.WithOptionsIterDataset(
        dataset.to_iter_dataset(_WORKER_READ_AHEAD),
        grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES),
    )
    options = grain.MultiprocessingOptions(workers)
    return alone.mp_prefetch(options, worker_init_fn=end_with_parent)


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
