"""Images with captions in tars in WebDataset's layout: `000001.jpg`, `000001.txt` side by side."""

import glob
import hashlib
import json
import operator
import os
import re
import tarfile
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from tqdm import tqdm

from input_pipeline import imagenet
from input_pipeline.records import byte_ranges, index_cache
from input_pipeline.records.index_cache import CacheKey
from input_pipeline.source import Example
from input_pipeline.sources.image_folder import SUFFIXES, decode, decoded_digest
from input_pipeline.sources.parquet import NO_CLASSES
from launch import files
from launch.errors import InputError

_JSON = "json:"
# Of the index, one row per sample; see `Sample`.
_COLUMNS = ("key", "image", "caption", "label")
# A range of numbered tars: {00000..00099}.
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Sample(NamedTuple):
    """Where a sample's files are in its tar: (first byte, size), or (-1, 0) for none."""

    key: str
    image: tuple[int, int]
    caption: tuple[int, int]
    label: int


class WebDataset:
    """Tars in WebDataset's layout with random access; their index is made once and kept."""

    def __init__(
        self,
        path: str,
        caption: str = "",
        class_names: Sequence[str] | None = None,
        upright: Any = None,
    ):
        """Lists the samples.

        Args:
            path: a tar, a pattern such as `data/*.tar`, or a range such as `{00000..00099}.tar`.
            caption: the suffix of caption files, such as 'txt', or `json:FIELD` for a field of
                `.json` files; '' reads none.
            class_names: by label, as in `.cls` files; without it all samples are of one class.
            upright: see `ImageFolder`.

        Raises:
            InputError: no file matches; one is damaged, compressed or not a tar; a sample lacks its
                image, caption or label, or has two.
        """
        self._paths = _paths(path)
        self._root = os.path.commonpath([os.path.dirname(path) for path in self._paths])
        self._caption, self._has_labels = caption, class_names is not None
        self.class_names = NO_CLASSES if class_names is None else tuple(class_names)
        self._upright = imagenet.upright(upright, self.class_names)
        # 1. The index of each tar: cumulated, then joined.
        shards = [self._index(path) for path in tqdm(self._paths, desc="tars", disable=None)]
        self._ends = np.cumsum([len(shard["key"]) for shard in shards])
        self._keys, self._images, self._captions, labels = (
            np.concatenate([shard[name] for shard in shards]) for name in _COLUMNS
        )
        # 2. Check labels before the cast to 32 bits, in which a huge one could become a valid one.
        self.labels = labels
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if outside.size:
            i = int(outside[0])
            raise InputError(
                f"{self._where(i)}: its label must be below the {len(self.class_names)} "
                f"classes, got {labels[i]}; give all class_names"
            )
        if not len(labels):
            raise InputError(f"{path} has no samples; choose tars that have some")
        self.labels = labels.astype(np.int32)
        self.domain = np.zeros(len(self.labels), np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Example i in RGB, at its own size, with its caption; InputError if one is damaged."""
        i = operator.index(i)
        with byte_ranges.opened(self._path(i)) as file:
            image = file.read(*map(int, self._images[i]))
            text = file.read(*map(int, self._captions[i])) if self._caption else b""
        try:
            pixels = decode(image, self._upright)
            caption = self._text(text)
        except InputError as error:
            raise InputError(f"{self._where(i)}: {error}") from None
        example = {"image": pixels, "label": self.labels[i], "domain": self.domain[i]}
        return {**example, "caption": caption} if self._caption else example

    def key(self, i: int) -> str:
        """`tar:sample` of sample i."""
        return f"{self._name(self._path(i))}:{self._key(i)}"

    def digest(self) -> str:
        """Covers the names, positions and sizes of all files, and whether images are turned."""
        digest = hashlib.sha256(json.dumps([*map(self._name, self._paths)]).encode())
        digest.update(json.dumps([self._caption, *self.class_names]).encode())
        for column in (self._keys, self._images, self._captions, self.labels):
            digest.update(column.tobytes())
        return decoded_digest(digest.hexdigest(), self._upright)

    def _path(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return self._paths[int(np.searchsorted(self._ends, i, side="right"))]

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self._root)

    def _key(self, i: int) -> str:
        # Names in a tar need not be UTF-8.
        return self._keys[i].decode("utf-8", "surrogateescape")

    def _where(self, i: int) -> str:
        return f"{self._path(i)}: sample {self._key(i)}"

    def _text(self, data: bytes) -> str:
        try:
            text = data.decode()
            if self._caption.startswith(_JSON):
                text = json.loads(text)[self._caption.removeprefix(_JSON)]
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise InputError(
                f"its caption must be {self._caption} in UTF-8, got {data[:40]!r} "
                f"({type(error).__name__}); set caption"
            ) from None
        if not isinstance(text, str):
            raise InputError(f"its caption must be a string, got {text!r}; set caption")
        return text

    def _index(self, path: str) -> dict[str, np.ndarray]:
        # What the index depends on besides the tar.
        asked = f"webdataset.{self._caption.replace(':', '_')}.{int(self._has_labels)}"
        key = CacheKey.of_file(path, asked)
        columns = index_cache.load(key, _COLUMNS)
        if columns is None:
            samples = _samples(path, self._caption, self._has_labels)
            keys = [os.fsencode(sample.key) for sample in samples]
            columns = {
                "key": np.array(keys, np.bytes_),
                # [n, 2], also where there is no sample.
                "image": np.array([sample.image for sample in samples], np.int64).reshape(-1, 2),
                "caption": np.array([s.caption for s in samples], np.int64).reshape(-1, 2),
                "label": np.array([sample.label for sample in samples], np.int64),
            }
            index_cache.save(key, columns)
        return columns


def _samples(path: str, caption: str, has_labels: bool) -> list[Sample]:
    # 1. Group the tar's files by sample. "r:" refuses compression, which has no random access.
    suffix = ".json" if caption.startswith(_JSON) else f".{caption}"
    found: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, name = os.path.split(member.name)
                # The key of a sample is its path up to the first dot of the file name.
                stem, dot, end = name.partition(".")
                end = f".{end.lower()}"
                kind = "image" if end in SUFFIXES else "caption" if end == suffix else end[1:]
                sample = found.setdefault(os.path.join(folder, stem), {})
                if not dot or (kind in ("image", "caption", "cls") and kind in sample):
                    raise InputError(
                        f"{path}: sample {stem} must have only one {kind}, got {member.name} as "
                        "well; write the tar again"
                    )
                sample[kind] = member.offset_data, member.size
                if kind == "cls" and has_labels:
                    file = archive.extractfile(member)
                    assert file is not None  # it is a file
                    sample["label"] = _label(file.read(), f"{path}: {member.name}")
            end_of_files = archive.offset
        _check_end(path, end_of_files)
    except (tarfile.TarError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} must be a complete, uncompressed tar, got {reason}; download or unpack it "
            "again"
        ) from None
    # 2. Every sample must be complete.
    needed = ["image", *["caption"] * bool(caption), *["label"] * has_labels]
    for key, sample in found.items():
        if missing := [kind for kind in needed if kind not in sample]:
            suffixes = {"image": "|".join(SUFFIXES), "caption": suffix, "label": ".cls"}
            raise InputError(
                f"{path}: sample {key} must have a file {suffixes[missing[0]]} ({missing[0]}), got "
                f"{', '.join(sample)}; set caption or class_names, or write the tar again"
            )
    # 3. In the order of the tar.
    none = (-1, 0)
    return [
        Sample(key, sample["image"], sample.get("caption", none), sample.get("label", 0))
        for key, sample in found.items()
    ]


def _check_end(path: str, offset: int) -> None:
    """Raises unless zeros follow the last file: tarfile takes any damage there for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no file and no end at byte {offset:,}")


def _label(data: bytes, where: str) -> int:
    try:
        # Through int64, for what the index can store.
        return int(np.int64(int(data)))
    except (OverflowError, ValueError):
        raise InputError(f"{where} must be a label, got {data[:20]!r}; write it again") from None


def _paths(path: str) -> list[str]:
    if not files.is_local(path):
        raise InputError(f"{path}: tars need a mounted folder; mount or copy them")
    # 1. A range: every tar of it must exist.
    if bounds := _RANGE.search(path):
        first, last = bounds.groups()
        if int(first) > int(last):
            raise InputError(f"{path}: the range ends before it begins; swap its ends")
        names = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        paths = [f"{path[: bounds.start()]}{name}{path[bounds.end() :]}" for name in names]
        if missing := [name for name in paths if not os.path.isfile(name)]:
            raise InputError(f"{missing[0]}: no such tar; download it, or use a shorter range")
        return paths
    # 2. A folder, a pattern or a file.
    pattern = os.path.join(path, "*.tar") if os.path.isdir(path) else path
    if paths := sorted(glob.glob(pattern)):
        return paths
    raise InputError(f"{path}: no such tar, and no file matches; check the path")
