"""Which images a synthetic set holds, and where; all of it follows from a few numbers."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, Int64, UInt64

SHARD_BYTES = 150_000_000  # between 100 and 200 MB, with a margin for the estimates below
# Bytes stored per byte of a photograph's pixels, for JPEG by quality; measured at 256 px.
_PNG = 0.75
_JPEG = (1, 50, 75, 90, 95, 100), (0.015, 0.042, 0.06, 0.1, 0.145, 0.285)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The images of a set, by index, and the shards that hold them.

    Image n is image n % N of copy n // N of the real set, N = sum(counts), and each copy is sorted
    by class. So the first k * N images are exactly k times the real set, with its class balance.
    """

    counts: tuple[int, ...]  # images of each class in the real set
    copies: int  # size of the synthetic set, in real sets
    images_per_shard: int  # the last shard may have fewer

    @functools.cached_property
    def copy_size(self) -> int:
        """N: images of the real set."""
        return sum(self.counts)

    @functools.cached_property
    def num_images(self) -> int:
        """Images of the synthetic set."""
        return self.copies * self.copy_size

    @property
    def num_shards(self) -> int:
        """Rounded up."""
        return -(-self.num_images // self.images_per_shard)

    @functools.cached_property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """[n]: the label of each image, by index."""
        return labels_for(self.counts, self.copies)

    @functools.cached_property
    def order(self) -> Int32[np.ndarray, " N"]:
        """[N]: the images of a copy in the order of their records."""
        # One permutation for all copies: every shard, and every batch drawn for one, has many
        # classes.
        numbers = splitmix64(np.arange(1, self.copy_size + 1, dtype=np.uint64))
        return np.argsort(numbers, kind="stable").astype(np.int32)

    @functools.cached_property
    def _positions(self) -> Int32[np.ndarray, " N"]:
        # The inverse of `order`: the record of each image within its copy.
        positions = np.empty_like(self.order)
        positions[self.order] = np.arange(len(positions), dtype=np.int32)
        return positions

    def shard_size(self, shard: int) -> int:
        """Images in a shard."""
        size = self.images_per_shard
        return min(size, self.num_images - shard * size)

    def positions(self, shard: int) -> Int64[np.ndarray, " m"]:
        """The positions of a shard's records among those of all shards."""
        first = shard * self.images_per_shard
        return np.arange(first, first + self.shard_size(shard))

    def indices(self, shard: int) -> Int64[np.ndarray, " m"]:
        """Indices of a shard's images, in the order of its records."""
        copy, position = np.divmod(self.positions(shard), self.copy_size)
        return copy * self.copy_size + self.order[position]

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, record) of an image."""
        shard, record = self.locate_all(np.array([index]))
        return int(shard[0]), int(record[0])

    def locate_all(
        self, indices: Int64[np.ndarray, " m"]
    ) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """(shards, records) of images."""
        # index -> position among all records -> shard and record.
        copy, image = np.divmod(indices, self.copy_size)
        return np.divmod(copy * self.copy_size + self._positions[image], self.images_per_shard)


def labels_for(counts: Sequence[int], copies: int) -> Int32[np.ndarray, " n"]:
    """[copies * N]: labels of a synthetic set by index; see `Plan`."""
    return np.tile(np.repeat(np.arange(len(counts), dtype=np.int32), counts), copies)


def usual_shard(image_shape: Sequence[int], quality: int | None = None) -> int:
    """Images [h, w, c] in a shard of about 150 MB, by JPEG's quality; None is PNG."""
    share = _PNG if quality is None else np.interp(quality, *_JPEG)
    # 200 bytes for the record's other fields.
    record = 200 + share * int(np.prod(image_shape))
    return max(1, int(SHARD_BYTES / record))


def splitmix64(numbers: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """SplitMix64 (Steele et al. 2014) of `numbers`: pseudo-random numbers that never change."""
    # NumPy's generators may change with its version, and a set outlives them.
    z = numbers * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
