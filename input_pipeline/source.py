"""The interface of labelled image sets with random access, and sets in memory."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32

from launch.errors import InputError, listed

REAL = 0  # the domain of real images; that of synthetic ones is 1
# 'image' uint8 [h, w, c] in [0, 255], 'label' and 'domain' int32 scalars; a 'caption' if asked for.
Example = dict[str, Any]
Transform = Callable[[Example], Example]
Augment = Callable[[Example, np.random.Generator], Example]


@runtime_checkable
class Source(Protocol):
    """A labelled image set with random access."""

    class_names: tuple[str, ...]  # by label
    labels: Int32[np.ndarray, " n"]  # known without decoding an image
    domain: Int32[np.ndarray, " n"]  # 0 real, 1 synthetic

    def __len__(self) -> int: ...

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Decodes example i."""
        ...

    def key(self, i: int) -> str:
        """A unique name of example i, the same in every subset of the set."""
        ...

    def digest(self) -> str | None:
        """A checksum of all that decides about the examples; None for a set that never changes."""
        ...


class ArraySource:
    """A source whose images are in memory."""

    def __init__(
        self,
        images: np.ndarray,
        labels: Int[np.ndarray, " n"],
        class_names: Sequence[str],
        domain: int | Int[np.ndarray, " n"] = REAL,
        keys: Sequence[str] | None = None,
        digest: str | None = None,
    ):
        """Wraps uint8 images [n, h, w, c] in [0, 255].

        `domain` is 0 for real and 1 for synthetic, one number for all or one each. `keys` default
        to the images' numbers; for `digest` see `Source`.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or len(labels) != len(images):
            raise TypeError(
                f"expected uint8 [n, h, w, c] and n labels, got {images.dtype} {images.shape} "
                f"and {len(labels)} labels"
            )
        self.images = images
        self.labels = np.asarray(labels, np.int32)
        self.class_names = tuple(class_names)
        self.domain = np.full(len(images), domain, np.int32)
        self._keys, self._digest = keys, digest

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: SupportsIndex) -> Example:
        return {"image": self.images[i], "label": self.labels[i], "domain": self.domain[i]}

    def key(self, i: int) -> str:
        """See `Source`."""
        return str(i) if self._keys is None else self._keys[i]

    def digest(self) -> str | None:
        """See `Source`."""
        return self._digest


def in_memory(source: Source) -> ArraySource:
    """Decodes a whole source of images of one size, once."""
    # [n, h, w, c]; np.stack raises ValueError for images of several sizes.
    images = np.stack([source[i]["image"] for i in range(len(source))])
    keys = [source.key(i) for i in range(len(source))]
    digest = source.digest()
    return ArraySource(images, source.labels, source.class_names, source.domain, keys, digest)


def check_same_classes(
    first: str, names: Sequence[str], second: str, other_names: Sequence[str]
) -> None:
    """Raises InputError unless two sources, as messages call them, have the same classes."""
    if tuple(names) == tuple(other_names):
        return
    # Missing classes first: an order can only differ where none is missing.
    for lacking, there, having, expected in (
        (second, other_names, first, names),
        (first, names, second, other_names),
    ):
        present = set(there)
        if missing := [name for name in expected if name not in present]:
            raise InputError(
                f"{lacking} lacks {len(missing)} of the {len(expected)} classes of {having}: "
                f"{listed(map(repr, missing))}; add images of them, or list the classes to keep in "
                f"{having} with the field classes=[...]"
            )
    at = next(i for i, (a, b) in enumerate(zip(names, other_names, strict=False)) if a != b)
    raise InputError(
        f"class {at} is {names[at]!r} in {first}, but {other_names[at]!r} in {second}; give both "
        "the same order with the field classes=[...]"
    )


def check_labels(source: Source) -> None:
    """Raises InputError if the set is empty or a label is not below the number of classes."""
    if not len(source):
        raise InputError("the set has no images; check its source")
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= len(source.class_names)))
    if wrong.size:
        i = int(wrong[0])
        raise InputError(
            f"image {source.key(i)}: its label must be below the {len(source.class_names)} "
            f"classes, got {source.labels[i]}; fix the set's labels"
        )


class Wrapper:
    """A source in front of another; what a subclass does not override is the other's."""

    def __init__(self, source: Source):
        self._source = source
        self.class_names, self.labels = source.class_names, source.labels
        self.domain = source.domain

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        return self._source[i]

    def key(self, i: int) -> str:
        """See `Source`: subsets keep the names of the whole set."""
        return self._source.key(i)

    def digest(self) -> str | None:
        """See `Source`; that of the whole set."""
        return self._source.digest()


class Subset(Wrapper):
    """The examples at the given indices, in their order; an index may occur several times."""

    def __init__(self, source: Source, indices: Int[np.ndarray, " m"]):
        super().__init__(source)
        # Labels are copied at once: they are asked for without decoding images.
        self.indices = np.asarray(indices, np.int64)
        self.labels = source.labels[self.indices]
        self.domain = source.domain[self.indices]

    def __getitem__(self, i: SupportsIndex) -> Example:
        return self._source[int(self.indices[i])]

    def key(self, i: int) -> str:
        """See `Source`."""
        return self._source.key(int(self.indices[i]))


def joined_digest(digests: Iterable[str | None]) -> str | None:
    """One checksum of several; None if all are None."""
    return " and ".join(digest for digest in digests if digest) or None
