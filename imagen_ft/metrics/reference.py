"""Reference statistics from npz files: ours, and those that other tools publish."""

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
# ADM's features of seven channels, for sFID.
_SPATIAL = ("mu_s", "sigma_s")
_COUNT, _EXTRACTOR = "num_images", "extractor"
# Rounding of covariances that were kept in float32.
_ASYMMETRY = 1e-4
_OTHER = "give another file"


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a file tells of the real images.

    Attributes:
        pooled: for FID, or a Frechet distance on another extractor.
        spatial: for sFID; None where the file has none.
        digest: SHA-256 of the file.
        extractor: what made the features, see `write`; None where the file does not say.
    """

    pooled: Statistics
    spatial: Statistics | None
    digest: str
    extractor: dict[str, Any] | None = None


def read(path: epath.PathLike) -> Reference:
    """Reads the statistics of ADM's (`VIRTUAL_*.npz`), pytorch-fid's, EDM's, pMF's or our npz.

    Nothing in it is ever unpickled.

    Raises:
        InputError: it is missing, no npz, a pickle, or damaged; holds no statistics; they are not
            finite, or their shapes do not fit.
    """
    path = epath.Path(path)
    wanted = {_COUNT, _EXTRACTOR, *_SPATIAL, *(name for pair in _POOLED for name in pair)}
    arrays = read_arrays(path, wanted, "reference statistics", "mu and sigma")
    names = next((pair for pair in _POOLED if set(pair) <= set(arrays)), None)
    if names is None:
        raise InputError(
            f"{path} must hold mu and sigma, got {', '.join(sorted(arrays)) or 'none of them'}; "
            "compute statistics of its images first, or give another file"
        )
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
    """Writes statistics as pytorch-fid and, where there are spatial ones, ADM read them.

    Args:
        path: of the file.
        pooled: of the real images.
        spatial: of the real images.
        extractor: what made the features, for JSON.
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
        raise InputError(f"{path}: {_COUNT} must be a whole number from 2; make the file again")
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
            f"{path}: {names[0]} and {names[1]} must be of the shapes [d] and [d, d], got "
            f"{list(mean.shape)} and {list(covariance.shape)}; {_OTHER}"
        )
    covariance = covariance.astype(np.float64)
    variance = covariance.diagonal()
    asymmetry = np.abs(covariance - covariance.T).max()
    if variance.min() < 0 or asymmetry > _ASYMMETRY * variance.max():
        raise InputError(f"{path}: {names[1]} must be a covariance (symmetric); {_OTHER}")
    return Statistics(mean.astype(np.float64), covariance, count)
