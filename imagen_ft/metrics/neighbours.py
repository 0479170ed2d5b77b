"""Precision, recall, density and coverage: who lies in whose neighbourhood.

Distances are computed in blocks, so that memory does not grow with the number of pairs.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from imagen_ft.metrics.points import Points, blocks, is_own, points_of, squared_distances
from launch.errors import InputError
from launch.runtime.types import Array

# Rows and columns of a block of pairs: 32 MiB of float32, about a processor's cache.
_ROWS, _COLUMNS = 1024, 8192


@dataclasses.dataclass(frozen=True)
class Convention:
    """What counts as a neighbourhood; results of different conventions do not compare."""

    k: int  # the radius is the distance to the k-th nearest other image of the same set
    comparison: str  # '<=' if the border belongs to the neighbourhood, else '<'


# Kynkaanniemi et al. 2019, as ADM and torch-fidelity count; Naeem et al. 2020, as prdc does.
CONVENTIONS = {"adm": Convention(3, "<="), "prdc": Convention(5, "<")}


@dataclasses.dataclass(frozen=True)
class Neighbourhoods:
    """Shares of images, in [0, 1]; only density may be above 1."""

    # Synthetic images inside some real image's neighbourhood.
    precision: float
    # Real images inside some synthetic image's neighbourhood.
    recall: float
    # Mean number of real neighbourhoods around a synthetic image, over k.
    density: float
    # Real images with a synthetic one in their neighbourhood.
    coverage: float


def neighbourhoods(
    synthetic: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "m d"],
    convention: Convention = CONVENTIONS["adm"],
) -> Neighbourhoods:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Raises `InputError` if a set has no more images than k, or NaN features.
    """
    k, comparison = convention.k, convention.comparison
    if comparison not in ("<", "<="):
        raise InputError(f"comparison must be '<' or '<=', got {comparison!r}")
    if not 1 <= k < min(len(synthetic), len(real)):
        raise InputError(
            f"k must be at least 1 and below the number of images, got {k} for {len(synthetic)} "
            f"synthetic and {len(real)} real ones; use more images"
        )
    ours, theirs = points_of(synthetic, real)
    xp = ours.xp
    # 1. The squared radius of every neighbourhood: the k-th nearest image, itself not counted.
    within = xp.less_equal if comparison == "<=" else xp.less
    our_radii, their_radii = (
        xp.asarray(nearest(side, side, k, np.arange(len(side)))[0][:, -1])
        for side in (ours, theirs)
    )
    # 2. Who lies in whose neighbourhood, block by block.
    around = np.zeros(len(ours), np.int64)  # real neighbourhoods around each synthetic image
    recalled, covered = np.zeros(len(theirs), bool), np.zeros(len(theirs), bool)
    for rows in blocks(len(ours), _ROWS):
        for columns in blocks(len(theirs), _COLUMNS):
            squares = squared_distances(ours[rows], theirs[columns])  # [rows, columns]
            # Density and precision count by row, coverage by column.
            in_theirs = within(squares, their_radii[None, columns])
            around[rows] += np.asarray(xp.count_nonzero(in_theirs, axis=1))
            covered[columns] |= np.asarray(in_theirs.any(axis=0))
            in_ours = within(squares, our_radii[rows, None])
            recalled[columns] |= np.asarray(in_ours.any(axis=0))
    # 3. Shares.
    return Neighbourhoods(
        precision=float((around > 0).mean()),
        recall=float(recalled.mean()),
        density=float(around.mean() / k),
        coverage=float(covered.mean()),
    )


def nearest(
    rows: Points, columns: Points, k: int, own: Int[np.ndarray, " n"] | None = None
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, " n"]]:
    """The k smallest squared distances to the columns, ascending, and the position of the nearest.

    If the rows are among the columns, `own` gives the position of each there, which does not count.
    """
    distances = np.empty((len(rows), k), rows.norms.dtype)
    positions = np.empty(len(rows), np.int64)
    for block in blocks(len(rows), _ROWS):
        hidden = None if own is None else own[block]
        found = _nearest_of_block(rows[block], columns, k, hidden)
        distances[block], positions[block] = (np.asarray(part) for part in found)
    return np.sort(distances, axis=1), positions


def _nearest_of_block(
    rows: Points, columns: Points, k: int, own: Int[np.ndarray, " n"] | None
) -> tuple[Float[Array, "n k"], Int[Array, " n"]]:
    # Results over the blocks so far: the k smallest squares, the smallest, and its position.
    xp = rows.xp
    best = xp.full((len(rows), k), np.inf, rows.norms.dtype)
    least, position = best[:, 0], xp.zeros(len(rows), int)
    for block in blocks(len(columns), _COLUMNS):
        squares = squared_distances(rows, columns[block])
        # A row is at distance 0 from itself; most blocks hold none of them and skip the mask.
        if own is not None and own.min() < block.stop and own.max() >= block.start:
            squares = xp.where(is_own(own, block, xp), np.inf, squares)
        candidate = squares.argmin(axis=1)
        smallest = squares.min(axis=1)
        position = xp.where(smallest < least, candidate + block.start, position)
        least = xp.minimum(smallest, least)
        # Only the k smallest of the block can be among the k smallest of all.
        few = min(k, squares.shape[1])
        both = xp.concatenate([best, xp.partition(squares, few - 1, axis=1)[:, :few]], axis=1)
        best = xp.partition(both, k - 1, axis=1)[:, :k]
    return best, position
