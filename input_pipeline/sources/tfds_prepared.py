"""Data sets that TFDS prepared: where they are, and which records form a split."""

import dataclasses
import os
import re
from collections.abc import Iterator

from etils import epath

from launch.errors import InputError, listed

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SHARD = re.compile(r".+-\d{5}-of-\d{5}")
_FORMATS = ("array_record", "tfrecord")


@dataclasses.dataclass(frozen=True)
class ShardSlice:
    """Consecutive records of a shard."""

    path: str
    skip: int  # records before the first
    take: int  # records
    records: int  # in the whole shard


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of a split, or of a slice of splits, and what their records mean."""

    folder: str
    file_format: str  # 'array_record' or 'tfrecord'
    class_names: tuple[str, ...]  # by label
    key: str  # the field that names a record; '' if none does
    slices: tuple[ShardSlice, ...]  # in TFDS's order


def locate(data_set: str, data_dir: epath.PathLike | None = None) -> epath.Path:
    """The folder of a data set by TFDS's name for it, `name[/config][:version]`.

    The newest version by default, and the config if there is only one. `data_dir` defaults to
    `$TFDS_DATA_DIR`, then to `~/tensorflow_datasets`. Raises InputError if it is not there, or
    several configs are.
    """
    matched = re.fullmatch(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?", data_set)
    if not matched:
        raise InputError(
            f"data_set must be name, name/config or name/config:1.0.0, got {data_set!r}"
        )
    name, config, version = matched.groups()
    base = epath.Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    )
    folder = base / name / config if config else base / name
    if not folder.exists():
        raise InputError(
            f"{folder}: {data_set} is not prepared; where TensorFlow is installed run 'tfds build "
            f"{name}{f'/{config}' if config else ''} --file_format=array_record --data_dir={base}' "
            f"(some sets need files in {base}/downloads/manual first), or set data_dir"
        )
    return find(folder, version)


def find(folder: epath.PathLike, version: str | None = None) -> epath.Path:
    """The folder that holds the records: `folder` itself, or its newest version."""
    folder = epath.Path(folder)
    if (folder / "dataset_info.json").exists():
        return folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; prepare the data set there with 'tfds build'")
    # 1. NAME/1.0.0: compared as numbers, so that 10.0.0 is newer than 9.0.0.
    versions = {path.name: path for path in folder.iterdir() if _is_prepared(path)}
    if versions and version is None:
        return max(versions.values(), key=lambda path: [int(x) for x in path.name.split(".")])
    if version is not None and (versions or not _configs(folder)):
        if version not in versions:
            found = listed(sorted(versions)) or "none"
            raise InputError(f"{folder} has no version {version}, only {found}; use one of these")
        return versions[version]
    # 2. NAME/CONFIG/1.0.0, or a helpful error.
    configs = _configs(folder)
    if not configs and any(_SHARD.fullmatch(path.name) for path in folder.iterdir()):
        raise InputError(
            f"{folder}: has shards without dataset_info.json, which other tools than TFDS write, "
            "with other fields and sometimes labels from 1; read the original images as "
            "image_folder or parquet, or prepare the set with 'tfds build'"
        )
    if len(configs) != 1:
        content = f"configs {listed(configs)}; choose one of them" if configs else "no data set"
        raise InputError(f"{folder} has {content}{('' if configs else ' that TFDS prepared')}")
    return find(folder / configs[0], version)


def _is_prepared(folder: epath.Path) -> bool:
    return bool(_VERSION.fullmatch(folder.name)) and (folder / "dataset_info.json").exists()


def _configs(folder: epath.Path) -> list[str]:
    below = (path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    return sorted(path.name for path in below if any(_is_prepared(v) for v in path.iterdir()))


def open_split(
    folder: epath.PathLike,
    split: str,
    image: str = "image",
    label: str = "label",
    key: str = "",
    caption: str = "",
) -> Split:
    """Reads `dataset_info.json` and `features.json` of a prepared data set.

    `split` is in TFDS's syntax: `train[:99%]`, `train[5:10]+validation`. `image`, `label` and
    `caption` name fields; `key` names the text that identifies a record, '' takes `file_name` if
    there is one.
    """
    # Imported late: it takes half a second.
    import tensorflow_datasets as tfds

    folder = os.fspath(folder)
    try:
        info = tfds.builder_from_directory(folder).info
        features, file_format = dict(info.features), info.file_format.value
    except Exception as error:  # TFDS passes on whatever its parsers raise
        said = f"{type(error).__name__}: {_line(error)}"
        raise InputError(
            f"{folder}: its metadata cannot be read ({said}); prepare it again"
        ) from None
    if file_format not in _FORMATS:
        raise InputError(
            f"{folder}: its format must be {' or '.join(_FORMATS)}, got {file_format}; "
            "prepare it again"
        )
    for name, kind in ((image, "Image"), (label, "ClassLabel"), (key, "Text"), (caption, "Text")):
        _check_field(folder, features, name, kind)
    return Split(
        folder=folder,
        file_format=file_format,
        class_names=_class_names(folder, label, features[label]),
        key=key or ("file_name" if _kind(features.get("file_name")) == "Text" else ""),
        slices=tuple(_slices(folder, info.splits, split)),
    )


def _check_field(folder: str, features: dict, name: str, kind: str) -> None:
    if name and _kind(features.get(name)) != kind:
        fields = listed(f"{n} ({_kind(f)})" for n, f in sorted(features.items()))
        raise InputError(f"{folder} has no field {name!r} of kind {kind}; it has {fields}")


def _kind(feature: object) -> str:
    return type(feature).__name__


def _class_names(folder: str, label: str, feature) -> tuple[str, ...]:
    path = epath.Path(folder) / f"{label}.labels.txt"
    if not path.exists():
        return tuple(map(str, range(feature.num_classes)))  # TFDS's own names
    names = tuple(path.read_text().strip("\n").split("\n"))
    if len(names) != feature.num_classes:
        raise InputError(
            f"{path} must have the {feature.num_classes} class names of features.json, got "
            f"{len(names)}; prepare the data set again"
        )
    return names


def _slices(folder: str, splits, split: str) -> Iterator[ShardSlice]:
    try:
        instructions = splits[split].file_instructions
    except (ValueError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"{folder}: split {split!r}: {_line(error)} It has {listed(sorted(splits))}; slices "
            "are written like train[:99%]"
        ) from None
    if not sum(instruction.take for instruction in instructions):
        raise InputError(f"{folder}: split {split!r} has no record; choose a larger slice")
    for instruction in instructions:
        path, records = os.fspath(instruction.filename), instruction.examples_in_shard
        yield ShardSlice(path, instruction.skip, instruction.take, records)


def _line(error: Exception) -> str:
    # TFDS's first lines say that parsing failed, the last one why. str() of a KeyError adds quotes.
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return lines[-1] if lines else ""
