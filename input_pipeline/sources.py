"""Sets of labelled images with random access, and the table that opens one from a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8

from input_pipeline import damage, files, subsets, synthetic, tfds_prepared
from input_pipeline.files import InputError
from input_pipeline.image_folder import ImageFolder
from input_pipeline.parquet import ParquetSource
from input_pipeline.tfds_source import TfdsSource

REAL = 0

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Images per class where the number is fixed; pool and test share the rest in their proportion.
_DIGITS_PER_CLASS = {"train": 3, "validation": 10}
_DIGITS_POOL, _DIGITS_SEED = 1000, 1797
_HELD_OUT_SEED = 0


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

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Example i: `image` uint8 [h, w, c], `label` and `domain` int32 scalars."""
        ...

    def key(self, i: int) -> str:
        """A name of example i that no other one has; it does not change with what is left out."""
        ...


class ArraySource:
    """A source whose images are in memory."""

    def __init__(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        labels: Int32[np.ndarray, " n"],
        class_names: tuple[str, ...],
        domain: int | Int32[np.ndarray, " n"] = REAL,
        keys: Sequence[str] | None = None,
    ):
        """Makes a source.

        Args:
            images: values [0, 255].
            labels: indices into class_names.
            class_names: the name of each label.
            domain: 0 for real images, 1 for synthetic ones; one for all, or one each.
            keys: the name of each image; None is its number.
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
        self._keys = keys

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.images[i], "label": self.labels[i], "domain": self.domain[i]}

    def key(self, i: int) -> str:
        """The name of image i."""
        return str(i) if self._keys is None else self._keys[i]


def in_memory(source: Source) -> ArraySource:
    """Decodes a whole source of images of one size, once."""
    images = np.stack([source[i]["image"] for i in range(len(source))])
    keys = [source.key(i) for i in range(len(source))]
    return ArraySource(images, source.labels, source.class_names, source.domain, keys)


@functools.cache
def _load_digits() -> tuple[UInt8[np.ndarray, "n 8 8 1"], Int32[np.ndarray, " n"]]:
    # scikit-learn takes 1.5 s to import, which every task on other images saves.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]  # levels 0..16
    return images, bunch.target.astype(np.int32)


@functools.cache
def _digit_splits() -> dict[str, Int32[np.ndarray, " m"]]:
    labels = _load_digits()[1]
    rng = np.random.default_rng(_DIGITS_SEED)
    shuffled = [rng.permutation(np.flatnonzero(labels == k)) for k in range(len(DIGIT_NAMES))]
    parts: dict[str, list[np.ndarray]] = {}
    start = 0
    for split, count in _DIGITS_PER_CLASS.items():
        parts[split] = [indices[start : start + count] for indices in shuffled]
        start += count
    rest = [indices[start:] for indices in shuffled]
    pool = _proportional(np.array([len(indices) for indices in rest]), _DIGITS_POOL)
    parts["pool"] = [indices[:count] for indices, count in zip(rest, pool, strict=True)]
    parts["test"] = [indices[count:] for indices, count in zip(rest, pool, strict=True)]
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


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
    part = splits[split]
    keys = [f"{split}:{i}" for i in range(len(part))]
    return ArraySource(images[part], labels[part], DIGIT_NAMES, keys=keys)


def load(spec: Mapping[str, Any]) -> Source:
    """Opens the source that a config describes; a field that is None counts as absent.

    Args:
        spec: `name` and the fields of that source; all have those of `subsets.apply`, to take only
            a part, and `on_damage`: a record that cannot be read is an 'error' (default), or 'skip'
            lets another of its class stand for it, see `damage.Skipping`.
            digits: `split`.
            synthetic: `path`, and `copies` to take only the first so many copies of the real set.
            image_folder: `path` and `root`, see `ImageFolder`; and `held_out`, how many images of
                every class are the `split` 'validation' and not 'train'.
            tfds: `split` in the syntax of TFDS, and `path`, or `data_set` and `data_dir`, see
                `tfds_prepared.locate`; `image`, `label` and `key` name fields, see `TfdsSource`.
            parquet: see `ParquetSource`.

    Raises:
        InputError: an unknown name, field or split, or a set that is missing, damaged or not
            complete.
    """
    spec = {key: spec[key] for key in spec if spec[key] is not None}
    name = spec.get("name")
    if name not in _KINDS:
        raise InputError(f"unknown source {name!r}; use one of {', '.join(_KINDS)}")
    kind = _KINDS[name]
    allowed = ("name", kind.needs, *kind.may_have, *subsets.FIELDS, "on_damage")
    if unknown := sorted(set(spec) - set(allowed)):
        raise InputError(f"source {name!r} has no field {unknown[0]!r}; use {', '.join(allowed)}")
    if kind.needs not in spec:
        raise InputError(f"source {name!r} needs the field {kind.needs!r}; set it in the config")
    if spec.setdefault("on_damage", "error") not in damage.POLICIES:
        raise InputError(
            f"on_damage={spec['on_damage']!r}; use one of {', '.join(damage.POLICIES)}"
        )
    source = subsets.apply(kind.open(spec), spec)
    # Last, so that no image of another split or part stands for a damaged one.
    return damage.Skipping(source) if spec["on_damage"] == "skip" else source


def digest(spec: Mapping[str, Any]) -> str | None:
    """What a source holds, as a digest; None for one that never changes."""
    found = [known for known in (_digest(spec), subsets.digest(spec)) if known]
    return " and ".join(found) or None


def _digest(spec: Mapping[str, Any]) -> str | None:
    if spec["name"] == "synthetic":
        return files.sha256(epath.Path(spec["path"]) / "manifest.json")
    if spec["name"] == "image_folder":
        return ImageFolder(spec["path"], spec.get("root") or "").digest()
    if spec["name"] == "tfds":
        return _open_tfds(spec).digest()
    if spec["name"] == "parquet":
        return _parquet(spec).digest()
    return None


def _synthetic(spec: Mapping[str, Any]) -> Source:
    source = synthetic.SyntheticSource(spec["path"])
    return source.first_copies(spec["copies"]) if "copies" in spec else source


def _image_folder(spec: Mapping[str, Any]) -> Source:
    source = ImageFolder(spec["path"], spec.get("root", ""))
    split, held_out = spec.get("split"), spec.get("held_out")
    if split is None and held_out is None:
        return source
    if split not in ("train", "validation") or held_out is None:
        raise InputError(
            f"image_folder with split={split!r}, held_out={held_out!r}: they go together; split "
            "is 'train' or 'validation', held_out how many images of every class are validation's"
        )
    validation = subsets.per_class(source, held_out, seed=_HELD_OUT_SEED)
    if split == "validation":
        return validation
    rest = subsets.Subset(source, np.setdiff1d(np.arange(len(source)), validation.indices))
    empty = np.flatnonzero(np.bincount(rest.labels, minlength=len(source.class_names)) == 0)
    if empty.size:
        raise InputError(
            f"held_out={held_out} leaves no image of {source.class_names[empty[0]]!r} to train on; "
            "choose fewer"
        )
    return rest


def _open_tfds(spec: Mapping[str, Any]) -> TfdsSource:
    fields = {key: spec[key] for key in _TFDS_FIELDS if spec.get(key) is not None}
    path, data_set = spec.get("path"), spec.get("data_set")
    if (path is None) == (data_set is None) or (path and spec.get("data_dir")):
        raise InputError("source 'tfds' needs either path, or data_set and perhaps data_dir")
    folder = path or tfds_prepared.locate(data_set, spec.get("data_dir"))
    return TfdsSource(folder, spec["split"], **fields)


def _tfds(spec: Mapping[str, Any]) -> Source:
    source = _open_tfds(spec)
    return damage.without(source, source.faults, spec["on_damage"])


def _parquet(spec: Mapping[str, Any]) -> ParquetSource:
    fields = {key: spec[key] for key in _PARQUET_FIELDS if spec.get(key) is not None}
    return ParquetSource(spec["path"], **fields)


_TFDS_FIELDS = ("image", "label", "key")
_PARQUET_FIELDS = ("split", "image", "label", "class_names", "row_groups")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A row of the table of sources.

    Attributes:
        open: opens one, given its fields.
        needs: the field that has to be there.
        may_have: other fields of its own.
    """

    open: Callable[[Mapping[str, Any]], Source]
    needs: str
    may_have: tuple[str, ...] = ()


_KINDS = {
    "digits": _Kind(lambda spec: digits(spec["split"]), "split"),
    "synthetic": _Kind(_synthetic, "path", ("copies",)),
    "image_folder": _Kind(_image_folder, "path", ("root", "split", "held_out")),
    "tfds": _Kind(_tfds, "split", ("path", "data_set", "data_dir", *_TFDS_FIELDS)),
    "parquet": _Kind(_parquet, "path", _PARQUET_FIELDS),
}


def check_labels(source: Source) -> None:
    """Looks whether every label is that of a class.

    Raises:
        InputError: one is not, or there is no image.
    """
    if not len(source):
        raise InputError("the set holds no images; check its source")
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= len(source.class_names)))
    if wrong.size:
        i = int(wrong[0])
        raise InputError(
            f"image {source.key(i)} has label {source.labels[i]}, but there are "
            f"{len(source.class_names)} classes; mend the set's labels"
        )
