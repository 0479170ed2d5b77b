"""Labelled image sets with random access: what every source has, and those held in memory."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32

from launch.errors import InputError, listed

REAL = 0
# 'image' uint8 [h, w, c], 'label' and 'domain' int32 scalars.
Example = dict[str, Any]
Transform = Callable[[Example], Example]
Augment = Callable[[Example, np.random.Generator], Example]


@runtime_checkable
class Source(Protocol):
    """A labelled image set.

    Attributes:
        class_names: the name of each label.
        labels: the label of each image, known without decoding any.
        domain: 0 for a real image, 1 for a synthetic one.
    """

    class_names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    domain: Int32[np.ndarray, " n"]

    def __len__(self) -> int: ...

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Example i."""
        ...

    def key(self, i: int) -> str:
        """A name of example i that no other one has; it does not change with what is left out."""
        ...

    def digest(self) -> str | None:
        """What decides about the examples, as a digest; None for a set that never changes."""
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
        """Makes a source.

        Args:
            images: uint8 [n, h, w, c], values [0, 255].
            labels: indices into class_names.
            class_names: the name of each label.
            domain: 0 for real images, 1 for synthetic ones; one for all, or one each.
            keys: the name of each image; None is its number.
            digest: see `Source.digest`.
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
        """The name of image i."""
        return str(i) if self._keys is None else self._keys[i]

    def digest(self) -> str | None:
        """What was given as it."""
        return self._digest


def in_memory(source: Source) -> ArraySource:
    """Decodes a whole source of images of one size, once."""
    images = np.stack([source[i]["image"] for i in range(len(source))])
    keys = [source.key(i) for i in range(len(source))]
    digest = source.digest()
    return ArraySource(images, source.labels, source.class_names, source.domain, keys, digest)


def check_same_classes(
    first: str, names: Sequence[str], second: str, other_names: Sequence[str]
) -> None:
    """Looks whether two sources have the same classes in the same order.

    Args:
        first: what one is called in messages, such as its field.
        names: of its classes.
        second: what the other one is called.
        other_names: of its classes.

    Raises:
        InputError: they have not; it names the classes that one of them lacks.
    """
    if tuple(names) == tuple(other_names):
        return
    for lacking, there, having, expected in (
        (second, other_names, first, names),
        (first, names, second, other_names),
    ):
        present = set(there)
        if missing := [name for name in expected if name not in present]:
            raise InputError(
                f"{lacking} lacks {len(missing)} of the {len(expected)} classes of "
                f"{having}: {listed(map(repr, missing))}; add images of them, or list the "
                f"classes to keep in {having} with its field classes=[...]"
            )
    at = next(i for i, (a, b) in enumerate(zip(names, other_names, strict=False)) if a != b)
    raise InputError(
        f"class {at} is {names[at]!r} in {first}, but {other_names[at]!r} in {second}; "
        "give both the same order with the field classes"
    )


def check_labels(source: Source) -> None:
    """Looks whether every label is that of a class.

    Raises:
        InputError: one is not, or there is no image.
    """
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
    """A source in front of another one; all that a subclass does not change is as it is there."""

    def __init__(self, source: Source):
        """Wraps a source."""
        self._source = source
        self.class_names, self.labels = source.class_names, source.labels
        self.domain = source.domain

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        return self._source[i]

    def key(self, i: int) -> str:
        """The name of example i in the whole source."""
        return self._source.key(i)

    def digest(self) -> str | None:
        """Of the whole source."""
        return self._source.digest()


class Subset(Wrapper):
    """The examples of a source at the given indices, in their order."""

    def __init__(self, source: Source, indices: Int[np.ndarray, " m"]):
        """Makes a subset; an index may occur several times."""
        super().__init__(source)
        self.indices = np.asarray(indices, np.int64)
        self.labels = source.labels[self.indices]
        self.domain = source.domain[self.indices]

    def __getitem__(self, i: SupportsIndex) -> Example:
        return self._source[int(self.indices[i])]

    def key(self, i: int) -> str:
        """The name of example i in the whole source."""
        return self._source.key(int(self.indices[i]))


def joined_digest(digests: Iterable[str | None]) -> str | None:
    """One digest of several; None if all are."""
    return " and ".join(digest for digest in digests if digest) or None
