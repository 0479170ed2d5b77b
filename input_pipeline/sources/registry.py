"""The table of sources, and `load`, which opens one from a config."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from input_pipeline.source import Source, Subset
from input_pipeline.sources import damaged_records, standin, subsets, tfds_prepared
from input_pipeline.sources.digits import digits
from input_pipeline.sources.image_folder import ImageFolder
from input_pipeline.sources.parquet import ParquetSource
from input_pipeline.sources.tfds import TfdsSource
from input_pipeline.sources.webdataset import WebDataset
from input_pipeline.synthetic.source import SyntheticSource
from launch.errors import InputError
from launch.fields import Fields

_HELD_OUT_SEED = 0


def load(spec: Fields) -> Source:
    """Opens the source that a config describes; a field that is None counts as absent.

    Args:
        spec: `name`, and the fields of that kind of source. Every kind has those of
            `subsets.apply`, which take a part of it, and `on_damage`: 'error' (the default) raises
            for an unreadable record, 'skip' replaces it by another of its class, see
            `damaged_records.SkipDamaged`. digits: `split`. synthetic: `path`; `copies` takes only
            the first copies of the real set; `caption`, see `SyntheticSource`. image_folder:
            `path`, `root` and `upright`, see `ImageFolder`; `held_out`, the number of images per
            class that are in the `split` 'validation' and not in 'train'; `standin`, see
            `standin.make`: what to draw if `path` does not exist. tfds: `split` in TFDS's syntax,
            and `path`, or `data_set` and `data_dir`, see `tfds_prepared.locate`; `image`, `label`,
            `key`, `caption` and `upright`, see `TfdsSource`. parquet: see `ParquetSource`.
            webdataset: see `WebDataset`.

    Raises:
        InputError: an unknown name, field or split, or a set that is missing, damaged or
            incomplete.
    """
    # 1. The fields that are set.
    spec = {key: spec[key] for key in spec if spec[key] is not None}
    for field in ("path", "data_dir"):
        if isinstance(spec.get(field), str):
            spec[field] = os.path.expanduser(spec[field])
    # 2. Check them against the table.
    name = spec.get("name")
    if name not in KINDS:
        raise InputError(f"source.name must be one of {', '.join(KINDS)}, got {name!r}")
    kind = KINDS[name]
    allowed = ("name", kind.needs, *kind.may_have, *subsets.FIELDS, "on_damage")
    if unknown := sorted(set(spec) - set(allowed)):
        raise InputError(f"source {name!r} has no field {unknown[0]!r}; use {', '.join(allowed)}")
    if kind.needs not in spec:
        raise InputError(f"source {name!r} needs the field {kind.needs!r}; set it in the config")
    if spec.setdefault("on_damage", "error") not in damaged_records.POLICIES:
        raise InputError(
            f"on_damage must be one of {', '.join(damaged_records.POLICIES)}, got "
            f"{spec['on_damage']!r}"
        )
    # 3. Open the set and take the part that is asked for.
    source = subsets.apply(kind.open(spec), spec)
    # 4. Last, so that an image of another split or part never replaces a damaged one.
    return damaged_records.SkipDamaged(source) if spec["on_damage"] == "skip" else source


def _synthetic(spec: Fields) -> Source:
    source = SyntheticSource(spec["path"], spec.get("caption", ""))
    return source.first_copies(spec["copies"]) if "copies" in spec else source


def _image_folder(spec: Fields) -> Source:
    path, stand_in = spec["path"], spec.get("standin")
    source: Source
    if stand_in is not None and not os.path.exists(path):
        source = standin.make(stand_in, path)
    else:
        source = ImageFolder(path, spec.get("root", ""), spec.get("upright"))
    # Hold out: the same images for every run, as the seed is fixed.
    split, held_out = spec.get("split"), spec.get("held_out")
    if split is None and held_out is None:
        return source
    if split not in ("train", "validation") or held_out is None:
        raise InputError(
            f"image_folder needs split and held_out together, got {split!r} and "
            f"{held_out!r}; split is 'train' or 'validation', held_out how many images of "
            "every class go to validation"
        )
    validation = subsets.per_class(source, held_out, seed=_HELD_OUT_SEED)
    if split == "validation":
        return validation
    rest = Subset(source, np.setdiff1d(np.arange(len(source)), validation.indices))
    # A class may have had no more images than are held out.
    empty = np.flatnonzero(np.bincount(rest.labels, minlength=len(source.class_names)) == 0)
    if empty.size:
        raise InputError(
            f"held_out={held_out} leaves no image of {source.class_names[empty[0]]!r} to train on; "
            "choose fewer"
        )
    return rest


def _tfds(spec: Fields) -> Source:
    fields = {key: spec[key] for key in _TFDS_FIELDS if key in spec}
    path, data_set = spec.get("path"), spec.get("data_set")
    if (path is None) == (data_set is None) or (path and spec.get("data_dir")):
        raise InputError("source 'tfds' needs path, or data_set and perhaps data_dir")
    folder = path or tfds_prepared.locate(spec["data_set"], spec.get("data_dir"))
    source = TfdsSource(folder, spec["split"], **fields)
    # Shards may hold records without even a readable label; other sources cannot.
    return damaged_records.leave_out(source, source.faults, spec["on_damage"])


def _parquet(spec: Fields) -> ParquetSource:
    fields = {key: spec[key] for key in _PARQUET_FIELDS if key in spec}
    return ParquetSource(spec["path"], **fields)


def _webdataset(spec: Fields) -> WebDataset:
    fields = {key: spec[key] for key in _WEBDATASET_FIELDS if key in spec}
    return WebDataset(spec["path"], **fields)


_TFDS_FIELDS = ("image", "label", "key", "upright", "caption")
_PARQUET_FIELDS = ("split", "image", "label", "class_names", "row_groups", "upright", "caption")
_WEBDATASET_FIELDS = ("caption", "class_names", "upright")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A row of the table of sources."""

    open: Callable[[Fields], Source]
    needs: str  # the required field
    may_have: tuple[str, ...] = ()  # its other fields, without those that every source has


# To add a source: a row here, and its new fields in `lacking.py`.
KINDS = {
    "digits": _Kind(lambda spec: digits(spec["split"]), "split"),
    "synthetic": _Kind(_synthetic, "path", ("copies", "caption")),
    "image_folder": _Kind(
        _image_folder, "path", ("root", "split", "held_out", "upright", "standin")
    ),
    "tfds": _Kind(_tfds, "split", ("path", "data_set", "data_dir", *_TFDS_FIELDS)),
    "parquet": _Kind(_parquet, "path", _PARQUET_FIELDS),
    "webdataset": _Kind(_webdataset, "path", _WEBDATASET_FIELDS),
}
