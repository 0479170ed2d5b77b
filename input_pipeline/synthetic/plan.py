"""Which images a generated set holds, and where: all of it follows from a few numbers."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64, UInt64

SHARD_BYTES = 150_000_000
# Bytes stored for each byte of a photograph's pixels, by quality; measured at 256 px.
_PNG = 0.75
_JPEG = (1, 50, 75, 90, 95, 100), (0.015, 0.042, 0.06, 0.1, 0.145, 0.285)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The images of a set, by index, and the shards that hold them.

    Image n is image n % N of copy n // N of the real set, N = sum(counts), and a copy is sorted by
    class: so the first k * N images are exactly k times the real set, with its balance. In the
    shards each copy is shuffled, all by one permutation: every shard, and every batch that is drawn
    for one, has many classes.

    Attributes:
        counts: images of each class in the real set.
        copies: size of the generated set in real sets.
        images_per_shard: the last shard may have fewer.
    """

    counts: tuple[int, ...]
    copies: int
    images_per_shard: int

    @functools.cached_property
    def copy_size(self) -> int:
        """Images of the real set."""
        return sum(self.counts)

    @functools.cached_property
    def num_images(self) -> int:
        """Images of the generated set."""
        return self.copies * self.copy_size

    @property
    def num_shards(self) -> int:
        """Shards that hold them."""
        return -(-self.num_images // self.images_per_shard)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """The label of every image, by index."""
        return labels_for(self.counts, self.copies)

    @functools.cached_property
    def order(self) -> Int32[np.ndarray, " N"]:
        """The images of a copy in the order in which shards hold them."""
        numbers = splitmix64(np.arange(1, self.copy_size + 1, dtype=np.uint64))
        return np.argsort(numbers, kind="stable").astype(np.int32)

    @functools.cached_property
    def _positions(self) -> Int32[np.ndarray, " N"]:
        positions = np.empty_like(self.order)
        positions[self.order] = np.arange(len(positions), dtype=np.int32)
        return positions

    def shard_size(self, shard: int) -> int:
        """Images in a shard."""
        size = self.images_per_shard
        return min(size, self.num_images - shard * size)

    def positions(self, shard: int) -> Int64[np.ndarray, " m"]:
        """Where a shard's records are among those of all shards."""
        first = shard * self.images_per_shard
        return np.arange(first, first + self.shard_size(shard))

    def indices(self, shard: int) -> Int64[np.ndarray, " m"]:
        """Indices of a shard's images, in the order of its records."""
        copy, position = np.divmod(self.positions(shard), self.copy_size)
        return copy * self.copy_size + self.order[position]

    def locate(self, index: int) -> tuple[int, int]:
        """The shard and the record of an image."""
        shard, record = self.locate_all(np.array([index]))
        return int(shard[0]), int(record[0])

    def locate_all(
        self, indices: Int64[np.ndarray, " m"]
    ) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """The shards and the records of images."""
        copy, image = np.divmod(indices, self.copy_size)
        return np.divmod(copy * self.copy_size + self._positions[image], self.images_per_shard)


def labels_for(counts: Sequence[int], copies: int) -> Int32[np.ndarray, " n"]:
    """Labels of a generated set by index; see `Plan`."""
    return np.tile(np.repeat(np.arange(len(counts), dtype=np.int32), counts), copies)


def usual_shard(image_shape: Sequence[int], quality: int | None = None) -> int:
    """How many images make a shard of 100 to 200 MB.

    Args:
        image_shape: [h, w, c].
        quality: of JPEG; None is PNG.
    """
    share = _PNG if quality is None else np.interp(quality, *_JPEG)
    record = 200 + share * int(np.prod(image_shape))
    return max(1, int(SHARD_BYTES / record))


def splitmix64(numbers: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Pseudo-random numbers that never change: SplitMix64 (Steele et al. 2014) of `numbers`.

    NumPy's generators may give others in another version, and a set outlives them.
    """
    z = numbers * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
