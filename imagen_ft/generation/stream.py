"""Encodes and writes a stream of images as shards while the devices draw the next ones."""

import concurrent.futures
import itertools
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from input_pipeline.augment.resize import resize
from input_pipeline.records import tf_example
from input_pipeline.synthetic.writer import SyntheticWriter
from launch.cpus import usable_cpus

# Seconds between two looks at what other workers have written: listing a remote folder is slow.
LOOK_EVERY = 10.0
# Images that a thread encodes in one task.
_CHUNK = 16


class ShardStream:
    """Takes the images of some shards in order, and writes each shard when it has all its images.

    In a job of n processes each writes every n-th shard. Shards are written in the background; when
    one is being written and another waits, `add` blocks.
    """

    def __init__(self, writer: SyntheticWriter, shards: Sequence[int], prompts: Sequence[str]):
        """`shards` are in the order in which their images come; `prompts` has one per class."""
        tf_example.load_messages()  # before any thread starts: see there
        self._writer, self._shards, self._prompts = writer, list(shards), prompts
        self._next, self._taken = 0, 0
        self._images: list[concurrent.futures.Future] = []
        self._size = writer.config["image_shape"][0]
        self._encoders = concurrent.futures.ThreadPoolExecutor(usable_cpus())
        # Raw images can be large: bound the chunks that wait for an encoder.
        self._free = threading.BoundedSemaphore(4 * usable_cpus())
        self._background = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: list[concurrent.futures.Future] = []

    def add(self, images: UInt8[np.ndarray, "b h w c"]) -> None:
        """Takes the next images; raises `OSError` if an earlier shard could not be written."""
        while len(images):
            # 1. Take what the current shard still lacks; a batch may span several shards.
            shard = self._shards[self._next]
            missing = self._writer.plan.shard_size(shard) - self._taken
            taken, images = images[:missing], images[missing:]
            # 2. Encode it, if this process writes the shard. Every process draws every image.
            if self._is_mine():
                for first in range(0, len(taken), _CHUNK):
                    chunk = taken[first : first + _CHUNK]
                    self._free.acquire()
                    self._images.append(self._encoders.submit(self._encode, chunk))
            # 3. Move on to the next shard when this one is full.
            self._taken += len(taken)
            if len(taken) == missing:
                self._close_shard(shard)

    def finish(self) -> None:
        """Waits until all shards are written; raises `OSError` if one could not be."""
        while self._writing:
            self._writing.pop(0).result()

    def _is_mine(self) -> bool:
        return self._next % jax.process_count() == jax.process_index()

    def _close_shard(self, shard: int) -> None:
        if self._is_mine():
            # `result` raises what the background thread raised.
            while len(self._writing) > 1:
                self._writing.pop(0).result()
            self._writing.append(self._background.submit(self._write, shard, self._images))
        self._next, self._images, self._taken = self._next + 1, [], 0

    def _encode(self, images: UInt8[np.ndarray, "b h w c"]) -> list[bytes]:
        try:
            return [self._writer.encode(resize(image, self._size)) for image in images]
        finally:
            self._free.release()

    def _write(self, shard: int, images: list[concurrent.futures.Future]) -> None:
        labels = self._writer.plan.labels[self._writer.plan.indices(shard)]
        prompts = (self._prompts[label] for label in labels)
        encoded = itertools.chain.from_iterable(chunk.result() for chunk in images)
        self._writer.write_encoded(shard, zip(encoded, prompts, strict=True))

    def __enter__(self) -> "ShardStream":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Even after an error, complete shards are written: a resumed run need not draw them again.
        self._background.shutdown(wait=True)
        self._encoders.shutdown(wait=True, cancel_futures=True)


class SetProgressBar:
    """A progress bar over the whole set: this worker's images, and what others have written."""

    def __init__(self, writer: SyntheticWriter, own: range, pending: Sequence[int], name: str):
        """Shows the bar; of this worker's shards, `own`, those in `pending` are not written yet."""
        self._writer, self._own = writer, own
        size = writer.plan.shard_size
        self._mine = sum(size(shard) for shard in own) - sum(size(shard) for shard in pending)
        self._others, self._looked = self._look(), time.monotonic()
        self._bar = tqdm(
            total=writer.plan.num_images,
            initial=self._mine + self._others,
            desc=name,
            unit="image",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,  # seconds; log files grow slowly
            disable=jax.process_index() > 0,
        )

    def drew(self, count: int) -> None:
        """Counts images of this worker."""
        self._mine += count
        if len(self._own) < self._writer.plan.num_shards:
            if time.monotonic() - self._looked > LOOK_EVERY:
                self._others, self._looked = self._look(), time.monotonic()
        self._bar.update(self._mine + self._others - self._bar.n)

    def _look(self) -> int:
        others = (shard for shard in self._writer.shards_there() if shard not in self._own)
        return sum(self._writer.plan.shard_size(shard) for shard in others)

    def __enter__(self) -> "SetProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
