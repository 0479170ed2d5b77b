"""Drawn shapes in place of photographs that are not there, for trying out commands."""

import functools
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline.imagenet import wordnet_ids
from input_pipeline.source import REAL, Example
from launch.cli import say
from launch.errors import InputError
from launch.fields import Fields

IMAGENET = "imagenet"
_FIELDS = ("class_names", "images", "size", "seed")  # names may be 'imagenet', for WordNet ids
# Raise it when the drawing changes: checksums of stand-ins then change too.
_VERSION = 1
# Multiples of the golden ratio, modulo 1, spread evenly: neighbouring classes differ in hue.
_GOLDEN = (5**0.5 - 1) / 2


class StandIn:
    """Images with random access, drawn when asked for; image i is the same on all machines."""

    def __init__(self, class_names: Sequence[str], images: int, size: int, seed: int):
        """`images` of each class, `size` pixels each way; sets with different seeds share none."""
        self.class_names, self._size, self._seed = tuple(class_names), size, seed
        self.labels = np.repeat(np.arange(len(class_names), dtype=np.int32), images)
        self.domain = np.full(len(self.labels), REAL, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        label = self.labels[operator.index(i)]
        rng = np.random.default_rng((self._seed, operator.index(i)))
        return {"image": self._draw(int(label), rng), "label": label, "domain": self.domain[i]}

    def key(self, i: int) -> str:
        """Seed and number of image i."""
        return f"standin:{self._seed}:{i}"

    def digest(self) -> str:
        """Covers what is drawn, and how."""
        count = len(self) // len(self.class_names)
        return f"standin-{_VERSION}:{len(self.class_names)}x{count}:{self._size}px:{self._seed}"

    def _draw(self, label: int, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        # 1. The class decides hue and shape, the image position and radius (shares of its side).
        hue, shape = label * _GOLDEN % 1, label % len(_SHAPES)
        centre, radius = rng.uniform(0.4, 0.6, 2), rng.uniform(0.22, 0.38)
        # 2. Coordinates in which the shape has radius 1, of the middle of each pixel: [h, w].
        axis = (np.arange(self._size) + 0.5) / self._size
        y, x = np.meshgrid(*((axis - middle) / radius for middle in centre), indexing="ij")
        # 3. The shape on a darker background of the complementary hue: [h, w, 3] in [0, 1].
        inside = _SHAPES[shape](x, y)[..., None]
        picture = np.where(inside, _colour(hue, 0.95), _colour(hue + 0.5, 0.35))
        picture = picture + rng.normal(0, 0.03, picture.shape)
        return np.rint(255 * picture.clip(0, 1)).astype(np.uint8)


def make(spec: Fields, path: str) -> StandIn:
    """The stand-in for the images of a path that does not exist; says so once on stderr."""
    if set(spec) != set(_FIELDS):
        raise InputError(
            f"standin must have only the fields {_FIELDS}, got {', '.join(sorted(spec))}"
        )
    names = spec["class_names"]
    names = wordnet_ids() if names == IMAGENET else tuple(names)
    _tell(path)
    return StandIn(names, spec["images"], spec["size"], spec["seed"])


@functools.cache
def _tell(path: str) -> None:
    say(
        f"{path} does not exist: using drawn shapes in place of its images, to try the commands; "
        "pass data=PATH after the config's name to use your images"
    )


def _colour(hue: float, value: float) -> np.ndarray:
    """RGB in [0, 1] of a hue with period 1."""
    # Three cosines a third of a turn apart, as the primaries on a colour wheel.
    waves = np.cos(2 * np.pi * (hue + np.array([0, 1 / 3, 2 / 3])))
    return value * (0.55 + 0.45 * waves)


def _disc(x: np.ndarray, y: np.ndarray) -> Bool[np.ndarray, "h w"]:
    return x**2 + y**2 < 1


def _ring(x: np.ndarray, y: np.ndarray) -> Bool[np.ndarray, "h w"]:
    return np.abs(x**2 + y**2 - 0.7) < 0.3


def _square(x: np.ndarray, y: np.ndarray) -> Bool[np.ndarray, "h w"]:
    return np.maximum(np.abs(x), np.abs(y)) < 0.9


def _cross(x: np.ndarray, y: np.ndarray) -> Bool[np.ndarray, "h w"]:
    return (np.minimum(np.abs(x), np.abs(y)) < 0.35) & (np.maximum(np.abs(x), np.abs(y)) < 1)


def _diamond(x: np.ndarray, y: np.ndarray) -> Bool[np.ndarray, "h w"]:
    return np.abs(x) + np.abs(y) < 1.2


_SHAPES = (_disc, _ring, _square, _cross, _diamond)
