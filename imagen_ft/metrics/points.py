"""Prepares two sets of features for distances: in blocks, on an accelerator where there is one.

Float32 features stay float32, computed by JAX on an accelerator and by NumPy otherwise; float64
features are computed in float64 by NumPy.
"""

import contextlib
import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from imagen_ft.metrics.statistics import check_finite
from launch.errors import InputError
from launch.runtime.types import Array


@dataclasses.dataclass(frozen=True)
class Points:
    """One set of features, both sets moved by the same vector."""

    rows: Float[Array, "n d"]  # moved
    norms: Float[Array, " n"]  # squared lengths of the rows
    xp: ModuleType  # `numpy` or `jax.numpy`, which owns the arrays

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | Int[np.ndarray, " n"]) -> "Points":
        return Points(self.rows[which], self.norms[which], self.xp)


def points_of(
    synthetic: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m d"]
) -> tuple[Points, Points]:
    """Prepares both sets; raises `InputError` if one is empty or has NaN or infinite features."""
    for name, features in (("synthetic features", synthetic), ("real features", real)):
        if not len(features):
            raise InputError(f"{name} must be of at least one image, got none; check the folder")
        check_finite(name, features)
    dtype = np.float64 if np.float64 in (synthetic.dtype, real.dtype) else np.float32
    # Moving both sets by one vector changes no distance, and saves the digits that a large common
    # mean would take in |a|^2 - 2ab + |b|^2.
    mean = real.mean(axis=0, dtype=np.float64).astype(dtype)
    xp = module(dtype)
    ready = []
    for features in (synthetic, real):
        rows = features.astype(dtype) - mean
        norms = np.einsum("nd,nd->n", rows, rows)
        ready.append(Points(xp.asarray(rows), xp.asarray(norms), xp))
    return ready[0], ready[1]


def module(dtype: type) -> ModuleType:
    """The array module for a dtype on this machine: `numpy` or `jax.numpy`."""
    # JAX would round float64 to float32.
    return jnp if jax.default_backend() != "cpu" and dtype == np.float32 else np


def full_precision() -> contextlib.AbstractContextManager:
    """Makes JAX's float32 products as exact as NumPy's within the block."""
    # By default TPUs multiply float32 in bfloat16 passes, and GPUs since Ampere in TF32.
    return jax.default_matmul_precision("highest")


def squared_distances(a: Points, b: Points) -> Float[Array, "n m"]:
    """Squared distances of all pairs; exactly 0 below the rounding error, as for equal rows."""
    xp = a.xp
    # |a - b|^2 = |a|^2 - 2 ab + |b|^2: one matrix product, then in place.
    with full_precision():
        squares = a.rows @ b.rows.T
    squares *= -2
    squares += a.norms[:, None]
    squares += b.norms[None, :]
    # The product's rounding grows with sqrt(d); what is below it may even be negative.
    rounding = xp.finfo(squares.dtype).eps * a.rows.shape[1] ** 0.5
    return xp.where(squares <= rounding * a.norms[:, None], 0, squares)


def blocks(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `count`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def is_own(rows: Int[np.ndarray, " n"], columns: slice, xp: ModuleType) -> Bool[Array, "n m"]:
    """Which pairs are a point and itself, given the rows' positions among the columns."""
    return xp.asarray(rows[:, None] == np.arange(columns.start, columns.stop)[None, :])
