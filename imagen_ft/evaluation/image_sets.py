"""The image sets that are measured, and those that they are compared with."""

import dataclasses
from typing import Any, SupportsIndex

import numpy as np
from etils import epath

from classifiers.extractors.features import images_digest
from imagen_ft.evaluation.drawn import Drawn
from imagen_ft.metrics.npz_file import read_arrays
from input_pipeline import sources
from input_pipeline.augment import resize
from input_pipeline.source import ArraySource, Example, Source, Wrapper, check_labels
from input_pipeline.synthetic.writer import MANIFEST
from launch import files
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.config import plain
from launch.runtime.limits import SIDE, check_numbers

NPZ = "npz"
_FIELDS = ("source", "square", "file_format", "uint8_rule")
_UNKNOWN = "unknown"
# An npz without labels has one class.
_NO_CLASSES = ("all",)
# How many file names are looked at to find the format: enough to see a mixture.
_KEYS = 1000
_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images, and what numbers on them depend on besides."""

    name: str
    source: Source  # images of one size, unless sizes may be mixed
    file_format: str  # 'png', 'jpeg', 'none' if never written, or 'unknown'
    uint8_rule: str  # how floats became uint8: 'round', 'unknown', ...
    drawn: Drawn | None = None  # the source again, if it must be drawn before it is read

    def prepare(self) -> None:
        """Draws the images, if they have to be; every process must call it."""
        if self.drawn:
            self.drawn.draw()

    def digest(self) -> str:
        """Checksum of the images and their order, which needs none of them to be drawn."""
        return self.drawn.digest() if self.drawn else images_digest(self.source)


class Square(Wrapper):
    """A source whose images are cropped to their central square and resized."""

    def __init__(self, source: Source, size: int):
        super().__init__(source)
        self._size = size

    def __getitem__(self, i: SupportsIndex) -> Example:
        example = self._source[i]
        return {**example, "image": resize.square(example["image"], self._size)}


class OneSize(Wrapper):
    """A source that raises `InputError` for an image of another size than the first."""

    def __init__(self, source: Source, name: str):
        super().__init__(source)
        self._name = name
        self._shape = source[0]["image"].shape

    def __getitem__(self, i: SupportsIndex) -> Example:
        example = self._source[i]
        shape = example["image"].shape
        if shape != self._shape:
            sizes = ["x".join(map(str, size)) for size in (self._shape, shape)]
            raise InputError(
                f"images of {self._name} must all have the same size, got {sizes[0]} and "
                f"{sizes[1]} (image {self.key(int(i))}); set square=PIXELS next to the source"
            )
        return example


def check_spec(field: str, spec: Fields) -> None:
    """Checks the fields of one set, see `open_set`; raises `InputError` if one is wrong."""
    if unknown := sorted(set(spec) - set(_FIELDS)):
        raise InputError(f"{field} has no field {unknown[0]!r}; use {', '.join(_FIELDS)}")
    if "source" not in spec:
        raise InputError(
            f"{field} needs the field 'source', a dict for input_pipeline.sources.load"
        )
    check_numbers(spec, {"square": SIDE}, field)


def open_set(name: str, field: str, spec: Fields, mixed: bool = False) -> ImageSet:
    """Opens a set.

    `spec` has `source`, as `sources.load` takes it or dict(name="npz", path=...) for `npz_samples`;
    it may have `square`, pixels each way to which images are cropped and resized, and `file_format`
    and `uint8_rule`, which override what the source says. `field` is the place in the config, for
    messages. Without `square` and `mixed`, an image of another size than the first raises when it
    is read. Raises `InputError` if a field is wrong, or if the set is missing, damaged or empty.
    """
    check_spec(field, spec)
    fields = plain(spec)
    try:
        # 1. The images.
        source = _open(fields["source"])
        check_labels(source)
        # 2. How they were written; asked of the source itself, before it is wrapped.
        file_format, uint8_rule = _written(fields["source"], source)
        # 3. One size, as extractors that do not resize need it.
        if "square" in fields:
            source = Square(source, fields["square"])
        elif not mixed:
            source = OneSize(source, name)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None
    return ImageSet(
        name,
        source,
        fields.get("file_format", file_format),
        fields.get("uint8_rule", uint8_rule),
    )


def npz_samples(path: epath.PathLike) -> ArraySource:
    """Images of an npz as ADM's samplers write it.

    arr_0 is uint8 [n, h, w, c]; arr_1, which may be absent, holds whole numbers from 0, [n]. Raises
    `InputError` if the file is missing, damaged, a pickle, or holds something else.
    """
    path = epath.Path(path)
    arrays = read_arrays(path, {"arr_0", "arr_1"}, "samples", "the images as arr_0")
    images, labels = arrays.get("arr_0"), arrays.get("arr_1")
    if images is None or images.dtype != np.uint8 or images.ndim != 4:
        has = "none" if images is None else f"{images.dtype} {list(images.shape)}"
        raise InputError(
            f"{path}: arr_0 must be images, uint8 [n, h, w, c], got {has}; give another file"
        )
    # ADM's files do not name their classes: numbers stand for names.
    names: tuple[str, ...] = _NO_CLASSES
    if labels is None:
        labels = np.zeros(len(images), np.int32)
    elif labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
        raise InputError(
            f"{path}: arr_1 must be the labels, whole numbers [{len(images)}] from 0, got "
            f"{labels.dtype} {list(labels.shape)}; leave it out of the file"
        )
    else:
        names = tuple(str(label) for label in range(int(labels.max()) + 1))
    return ArraySource(images, labels.astype(np.int32), names, digest=files.sha256(path))


def _open(spec: dict[str, Any]) -> Source:
    if spec.get("name") != NPZ:
        return sources.load(spec)
    if set(spec) != {"name", "path"}:
        raise InputError(f"source 'npz' has only the field path, got {', '.join(sorted(spec))}")
    return npz_samples(spec["path"])


def _written(spec: dict[str, Any], source: Source) -> tuple[str, str]:
    # Our own sets record their format, and are rounded; of folders only file names show it.
    if spec["name"] == "synthetic":
        manifest = files.read_sealed(epath.Path(spec["path"]) / MANIFEST)
        return manifest["encoding"]["format"], "round"
    if spec["name"] in ("digits", NPZ):
        return "none", _UNKNOWN
    suffixes = {epath.Path(source.key(i)).suffix.lower() for i in range(min(len(source), _KEYS))}
    formats = {_FORMATS.get(suffix, _UNKNOWN) for suffix in suffixes}
    return "+".join(sorted(formats)), _UNKNOWN
