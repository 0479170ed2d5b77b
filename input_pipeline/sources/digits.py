"""The 1,797 handwritten digits that come with scikit-learn, split once and for all."""

import functools

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from input_pipeline.source import ArraySource
from launch.errors import InputError

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Images per class where that number is fixed; `pool` gets 1,000 of the rest and `test` what is
# left, both with the class balance of the rest.
_DIGITS_PER_CLASS = {"train": 3, "validation": 10}
_DIGITS_POOL, _DIGITS_SEED = 1000, 1797


@functools.cache
def _load_digits() -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int32[np.ndarray, " n"]]:
    # scikit-learn takes 1.5 s to import, which tasks on other images need not wait for.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Levels 0 to 16 become 0 to 255: [n, 8, 8] -> [n, 8, 8, 1].
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, bunch.target.astype(np.int32)


@functools.cache
def _digit_splits() -> dict[str, Int64[np.ndarray, " _"]]:
    labels = _load_digits()[1]
    rng = np.random.default_rng(_DIGITS_SEED)
    # 1. Shuffle each class.
    shuffled = [rng.permutation(np.flatnonzero(labels == k)) for k in range(len(DIGIT_NAMES))]
    members: dict[str, list[np.ndarray]] = {}
    start = 0
    # 2. Cut off the splits with a fixed number of images per class.
    for split, count in _DIGITS_PER_CLASS.items():
        members[split] = [indices[start : start + count] for indices in shuffled]
        start += count
    # 3. Divide the rest between pool and test.
    rest = [indices[start:] for indices in shuffled]
    pool = _proportional(np.array([len(indices) for indices in rest]), _DIGITS_POOL)
    members["pool"] = [indices[:count] for indices, count in zip(rest, pool, strict=True)]
    members["test"] = [indices[count:] for indices, count in zip(rest, pool, strict=True)]
    return {name: np.sort(np.concatenate(by_class)) for name, by_class in members.items()}


def _proportional(counts: np.ndarray, total: int) -> np.ndarray:
    """Divides `total` in proportion to `counts`, by the method of largest remainders."""
    exact = counts * total / counts.sum()
    shares = np.floor(exact).astype(int)
    missing = np.argsort(shares - exact, kind="stable")[: total - shares.sum()]
    shares[missing] += 1
    return shares


def digits(split: str) -> ArraySource:
    """Opens a split of scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, one channel.

    The splits are `pool` (1,000 images), `train` (3 per class), `validation` (10 per class) and
    `test` (667): fixed, disjoint, stratified and together the whole set. Another name raises
    InputError.
    """
    splits = _digit_splits()
    if split not in splits:
        raise InputError(f"digits has no split {split!r}; use one of {', '.join(sorted(splits))}")
    images, labels = _load_digits()
    indices = splits[split]
    keys = [f"{split}:{i}" for i in range(len(indices))]
    return ArraySource(images[indices], labels[indices], DIGIT_NAMES, keys=keys)
