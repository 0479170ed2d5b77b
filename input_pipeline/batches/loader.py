"""Batches as a function of seed and step, so that resuming needs the step and nothing else."""

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

# A core decodes about 270 photographs a second. One core is left for the training step.
_THREADS = min(16, max(1, usable_cpus() - 1))
_READ_AHEAD = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS + 1)
# Workers pass arrays of at least this size in shared memory, a file each, and others in a pipe.
_MIN_SHARED_BYTES = 2**20
_WORKER_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)


class _DrawnBatches:
    """Random access to this process's rows of every batch of an endless run."""

    def __init__(self, source, plan, draws, batch_size, seed, transform, augment, rows, repeats):
        self._source, self._plan, self._draws, self._seed = source, plan, draws, seed
        self._transform, self._augment = transform, augment
        self._batch_size, self._rows, self._repeats = batch_size, rows, repeats

    def __len__(self) -> int:
        # Grain needs a length: the largest for which positions fit in 64 bits.
        return sys.maxsize // self._batch_size

    def __getitem__(self, k: int) -> Batch:
        # [rows]: position of each row in the run. `repeats` neighbours share one draw, and the plan
        # counts draws: draw number -> batch of the plan and row in it.
        positions = k * self._batch_size + self._rows
        number, plan_rows = np.divmod(positions // self._repeats, self._draws)
        indices = self._plan(int(number[0]), plan_rows)
        return _stack(list(self._draw(indices.tolist(), positions)))

    def _draw(self, indices: list[int], positions: Int64[np.ndarray, " rows"]) -> Iterator[Example]:
        last: int | None = None
        for index, position in zip(indices, positions, strict=True):
            if index != last:  # repeated images are decoded once
                example, last = _example(self._source, index, self._transform), index
            yield self._augmented(example, position)

    def _augmented(self, example: Example, position: np.integer) -> Example:
        if self._augment is None:
            return example
        # Every position in the run has its own randomness, whichever process loads it. Philox takes
        # the position as its counter; seeding another generator would cost more than the crop.
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
    # Kept latents, which replace images, all have one shape.
    shapes = sorted({example["image"].shape for example in examples if "image" in example})
    if len(shapes) > 1:
        small, large = ("x".join(map(str, shape)) for shape in (shapes[0], shapes[-1]))
        raise InputError(
            f"images of {small} and {large} in one batch; resize them to the same size "
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

    Every epoch has its own order and contains each example once; a batch may span two epochs. Row r
    of batch k holds the same example whichever process loads it.

    Args:
        source: what to draw from.
        batch_size: rows of a global batch, over all processes.
        seed: any integer >= 0.
        transform: maps one example to another, before examples are stacked.
        augment: the same, after `transform`, with a generator of its own for every row; it must not
            modify the example it is given.
        rows: the rows of each batch that this process loads; None is all.
        synthetic_weight: the share of synthetic images in every batch, see `FixedWeight`; None is
            the source's share, on average.
        repeats: each drawn example fills this many consecutive rows, each augmented on its own
            (Hoffer et al. 2020, Augment Your Batch); an epoch then has that many times as many
            batches. If it does not divide the batch, an example continues in the next batch.

    Returns:
        A dataset whose element k is a dict of arrays with these rows.

    Raises:
        InputError: the source or the batch is empty, or the weight is impossible, or is given
            although `repeats` does not divide the batch.
    """
    # 1. Check.
    if not len(source):
        raise InputError("the source has no examples; check its split or path")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    if batch_size % repeats and synthetic_weight is not None:
        raise InputError(
            f"repeats must divide batch_size={batch_size} with "
            f"synthetic_weight={synthetic_weight}, got {repeats}"
        )
    # 2. The plan: which example is in which row.
    rows = np.arange(batch_size) if rows is None else rows
    # A batch of the plan is the draws of one batch; if these are not whole, of `repeats` batches.
    draws = batch_size // repeats if batch_size % repeats == 0 else batch_size
    plan: BatchPlan = Shuffled(len(source), draws, seed)
    if synthetic_weight is not None:
        plan = FixedWeight(source.domain, synthetic_weight, draws, seed)
    # 3. The images, decoded when asked for.
    return grain.MapDataset.source(
        _DrawnBatches(source, plan, draws, batch_size, seed, transform, augment, rows, repeats)
    )


def iterate(dataset: grain.MapDataset, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Yields batches start .. stop - 1, read ahead; the same for any number of workers.

    `workers` are processes. They take seconds to start, memory of their own, and shared memory for
    four batches each. 0 uses threads, one per core: as good where decoding, which lets other
    threads run, takes most of the time. Raises InputError if a worker is killed.
    """
    reader = iter(_read_ahead(dataset[start:stop], workers))
    try:
        yield from reader
    except RuntimeError as error:
        # Grain reports a killed worker only in the text of a RuntimeError.
        code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not workers or not code:
            raise
        raise InputError(
            f"loader_workers={workers}: one of them was killed (exit code {code[1]}), perhaps for "
            "lack of memory or shared memory (/dev/shm); make room, use fewer workers, or 0 for "
            "threads"
        ) from error
    finally:
        reader.close()
        if workers:
            # An exception's traceback holds Grain's frames, and these hold shared memory, which
            # would outlive this process.
            del reader
            gc.collect()


def _read_ahead(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    if not workers:
        return dataset.to_iter_dataset(_READ_AHEAD)
    flags.FLAGS.mark_as_parsed()  # Grain reads absl's global flags to pass them to workers
    alone = grain.experimental.WithOptionsIterDataset(
        dataset.to_iter_dataset(_WORKER_READ_AHEAD),
        grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES),
    )
    options = grain.MultiprocessingOptions(workers)
    return alone.mp_prefetch(options, worker_init_fn=end_with_parent)


class _EvalBatches:
    """Random access to the batches of one pass in order; the last one is padded with zeros."""

    def __init__(self, source, batch_size, transform, rows):
        self._source, self._batch_size, self._transform = source, batch_size, transform
        self._rows = rows

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, k: int) -> Batch:
        positions = k * self._batch_size + self._rows
        mask = positions < len(self._source)
        # A process with nothing but padding still reads one image, for its shape.
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

    Batches have the field `mask`, bool [b]: False for the padding of the last batch. `batch_size`
    is over all processes; `rows` are those that this process loads, None is all.
    """
    rows = np.arange(batch_size) if rows is None else rows
    dataset = grain.MapDataset.source(_EvalBatches(source, batch_size, transform, rows))
    return iterate(dataset, 0, len(dataset))
