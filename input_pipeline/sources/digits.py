"""The 1,797 handwritten digits that scikit-learn carries, split once and for all."""

import functools

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from input_pipeline.source import ArraySource
from launch.errors import InputError

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Images per class where the number is fixed; pool and test share the rest in their proportion.
_DIGITS_PER_CLASS = {"train": 3, "validation": 10}
_DIGITS_POOL, _DIGITS_SEED = 1000, 1797


@functools.cache
def _load_digits() -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int32[np.ndarray, " n"]]:
    # scikit-learn takes 1.5 s to import, which every task on other images saves.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # levels 0..16
    return images, bunch.target.astype(np.int32)


@functools.cache
def _digit_splits() -> dict[str, Int64[np.ndarray, " _"]]:
    labels = _load_digits()[1]
    rng = np.random.default_rng(_DIGITS_SEED)
    shuffled = [rng.permutation(np.flatnonzero(labels == k)) for k in range(len(DIGIT_NAMES))]
    members: dict[str, list[np.ndarray]] = {}
    start = 0
    for split, count in _DIGITS_PER_CLASS.items():
        members[split] = [indices[start : start + count] for indices in shuffled]
        start += count
    rest = [indices[start:] for indices in shuffled]
    pool = _proportional(np.array([len(indices) for indices in rest]), _DIGITS_POOL)
    members["pool"] = [indices[:count] for indices, count in zip(rest, pool, strict=True)]
    members["test"] = [indices[count:] for indices, count in zip(rest, pool, strict=True)]
    return {name: np.sort(np.concatenate(by_class)) for name, by_class in members.items()}


def _proportional(counts: np.ndarray, total: int) -> np.ndarray:
    """Shares `total` in the proportion of `counts`, rounded by the largest remainders."""
    exact = counts * total / counts.sum()
    shares = np.floor(exact).astype(int)
    missing = np.argsort(shares - exact, kind="stable")[: total - shares.sum()]
    shares[missing] += 1
    return shares


def digits(split: str) -> ArraySource:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries.

    Args:
        split: `pool` (1,000 images), `train` (3 a class), `validation` (10 a class) or `test`
            (667). They are fixed, disjoint and stratified, and together the whole set.

    Raises:
        InputError: there is no such split.
    """
    splits = _digit_splits()
    if split not in splits:
        raise InputError(f"digits has no split {split!r}; use one of {', '.join(sorted(splits))}")
    images, labels = _load_digits()
    indices = splits[split]
    keys = [f"{split}:{i}" for i in range(len(indices))]
    return ArraySource(images[indices], labels[indices], DIGIT_NAMES, keys=keys)
