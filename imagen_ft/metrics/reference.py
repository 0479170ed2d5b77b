"""Statistics of reference images in npz files: ours, and those that other tools publish."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_ft.metrics.npz_file import read_arrays
from imagen_ft.metrics.statistics import Statistics
from launch import files
from launch.errors import InputError

# Names of mean and covariance: pytorch-fid, EDM, ADM; then pMF and iMF.
_POOLED = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
# ADM's spatial features, 17 x 17 x 7, for sFID.
_SPATIAL = ("mu_s", "sigma_s")
_COUNT, _EXTRACTOR = "num_images", "extractor"
# Allowed asymmetry over the largest variance: rounding of covariances stored in float32.
_ASYMMETRY = 1e-4
_OTHER = "use another file"


@dataclasses.dataclass(frozen=True)
class Reference:
    """The content of a file of statistics."""

    pooled: Statistics  # for FID, or a Frechet distance on another extractor
    spatial: Statistics | None  # for sFID
    digest: str  # SHA-256 of the file
    extractor: dict[str, Any] | None = None  # what made the features; None in other tools' files


def read(path: epath.PathLike) -> Reference:
    """Reads an npz of ADM (`VIRTUAL_*.npz`), pytorch-fid, EDM, pMF or ours, without unpickling.

    Raises `InputError` if it is missing, not an npz, a pickle or damaged, if it holds no
    statistics, or if they are not finite or of the wrong shapes.
    """
    path = epath.Path(path)
    # 1. Find a pair of names for mean and covariance; ADM's 10,000 images (arr_0) are never loaded.
    wanted = {_COUNT, _EXTRACTOR, *_SPATIAL, *(name for pair in _POOLED for name in pair)}
    arrays = read_arrays(path, wanted, "reference statistics", "mu and sigma")
    names = next((pair for pair in _POOLED if set(pair) <= set(arrays)), None)
    if names is None:
        raise InputError(
            f"{path} must hold mu and sigma, got {', '.join(sorted(arrays)) or 'none of them'}; "
            "compute statistics of its images first, or use another file"
        )
    # 2. Check and convert.
    count = _count(path, arrays)
    spatial = _statistics(path, arrays, _SPATIAL, count) if set(_SPATIAL) <= set(arrays) else None
    pooled = _statistics(path, arrays, names, count)
    return Reference(pooled, spatial, files.sha256(path), _extractor(path, arrays))


def write(
    path: epath.PathLike,
    pooled: Statistics,
    spatial: Statistics | None = None,
    extractor: Mapping[str, Any] | None = None,
) -> None:
    """Writes statistics in the format of pytorch-fid, and of ADM where there are spatial ones.

    `extractor` says what made the features, and must fit into JSON.
    """
    arrays: dict[str, Any] = {"mu": pooled.mean, "sigma": pooled.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    if pooled.num_images is not None:
        arrays[_COUNT] = np.int64(pooled.num_images)
    if extractor is not None:
        arrays[_EXTRACTOR] = np.array(json.dumps(dict(extractor)))
    with files.atomic_file(path) as file:
        np.savez(file, **arrays)


def _count(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> int | None:
    if _COUNT not in arrays:
        return None
    count = arrays[_COUNT]
    if count.shape or count.dtype.kind not in "iu" or count < 2:
        raise InputError(
            f"{path}: {_COUNT} must be a whole number of at least 2; compute the statistics again"
        )
    return int(count)


def _extractor(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    if _EXTRACTOR not in arrays:
        return None
    return files.parse_object(str(arrays[_EXTRACTOR]).encode(), f"{path}: {_EXTRACTOR}")


def _statistics(
    path: epath.Path, arrays: Mapping[str, np.ndarray], names: tuple[str, str], count: int | None
) -> Statistics:
    mean, covariance = (arrays[name] for name in names)
    for name, array in zip(names, (mean, covariance), strict=True):
        if array.dtype.kind != "f":
            raise InputError(f"{path}: {name} must be real numbers, got {array.dtype}; {_OTHER}")
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {name} must be finite, got NaN or infinity; {_OTHER}")
    if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
        raise InputError(
            f"{path}: {names[0]} and {names[1]} must have the shapes [d] and [d, d], got "
            f"{list(mean.shape)} and {list(covariance.shape)}; {_OTHER}"
        )
    # A covariance has no negative variance and is symmetric.
    covariance = covariance.astype(np.float64)
    variance = covariance.diagonal()
    asymmetry = np.abs(covariance - covariance.T).max()
    if variance.min() < 0 or asymmetry > _ASYMMETRY * variance.max():
        raise InputError(f"{path}: {names[1]} must be a covariance (symmetric); {_OTHER}")
    return Statistics(mean.astype(np.float64), covariance, count)
