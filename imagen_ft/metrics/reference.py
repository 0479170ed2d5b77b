"""Reference statistics from npz files: ours, and those that other tools publish."""

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from imagen_ft.metrics.statistics import Statistics
from launch import files
from launch.errors import InputError

# Names of mean and covariance: pytorch-fid, EDM, ADM; then pMF and iMF.
_POOLED = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
# ADM's features of seven channels, for sFID.
_SPATIAL = ("mu_s", "sigma_s")
_COUNT = "num_images"
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
    """

    pooled: Statistics
    spatial: Statistics | None
    digest: str


def read(path: epath.PathLike) -> Reference:
    """Reads the statistics of ADM's (`VIRTUAL_*.npz`), pytorch-fid's, EDM's, pMF's or our npz.

    Nothing in it is ever unpickled.

    Raises:
        InputError: it is missing, no npz, a pickle, or damaged; holds no statistics; they are not
            finite, or their shapes do not fit.
    """
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give an npz of reference statistics")
    with path.open("rb") as file:
        magic = file.read(4)
        if not magic.startswith(b"PK"):
            kind = "a pickle, which could run any code" if magic[:1] == b"\x80" else "no npz"
            raise InputError(f"{path} is {kind}; convert it to an npz with mu and sigma")
        file.seek(0)
        arrays = _arrays(path, file)
    names = next((pair for pair in _POOLED if set(pair) <= set(arrays)), None)
    if names is None:
        raise InputError(
            f"{path} must hold mu and sigma, got {', '.join(sorted(arrays)) or 'none of them'}; "
            "compute statistics of its images first, or give another file"
        )
    count = _count(path, arrays)
    spatial = _statistics(path, arrays, _SPATIAL, count) if set(_SPATIAL) <= set(arrays) else None
    return Reference(_statistics(path, arrays, names, count), spatial, files.sha256(path))


def write(path: epath.PathLike, pooled: Statistics, spatial: Statistics | None = None) -> None:
    """Writes statistics as pytorch-fid and, where there are spatial ones, ADM read them."""
    arrays: dict[str, Any] = {"mu": pooled.mean, "sigma": pooled.covariance}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    if pooled.num_images is not None:
        arrays[_COUNT] = np.int64(pooled.num_images)
    with files.atomic_file(path) as file:
        np.savez(file, **arrays)


def _arrays(path: epath.Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """What is read of the file: not the images that ADM's hold beside the statistics."""
    names = {_COUNT, *_SPATIAL, *(name for pair in _POOLED for name in pair)}
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in names}
    # NumPy raises ValueError for pickled arrays, and for headers that it cannot read.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged or holds pickles ({reason}); get another") from None


def _count(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> int | None:
    if _COUNT not in arrays:
        return None
    count = arrays[_COUNT]
    if count.shape or count.dtype.kind not in "iu" or count < 2:
        raise InputError(f"{path}: {_COUNT} must be a whole number from 2; make the file again")
    return int(count)


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
