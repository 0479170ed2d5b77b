"""Labelled images in Parquet files, in the layout of the Hugging Face Hub."""

import collections
import glob
import hashlib
import json
import operator
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64

from input_pipeline import imagenet
from input_pipeline.source import Example
from input_pipeline.sources.image_folder import decode, decoded_digest
from launch import files
from launch.errors import InputError, listed

# NAME-00000-of-00012.parquet; older files of the Hub have a hash after the numbers.
_NUMBERED = re.compile(r"(.+)-\d+-of-(\d+)(?:-\w+)?\.parquet")
_AGAIN = "download it again"
# Names of files that hold a whole split, such as train.parquet.
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")
NO_CLASSES = ("all",)  # the only class of a set without labels
_BATCH_ROWS = 64  # below Arrow's 2 GB even with images of 30 MB


class ParquetSource:
    """Images with random access by row group; their labels are known without reading an image.

    Reading one image costs its whole row group: for shuffled training choose files with small
    groups, or array_record. It holds no open file, so it can be pickled and shared by threads.
    """

    def __init__(
        self,
        path: os.PathLike | str,
        split: str | None = None,
        image: str = "image",
        label: str = "label",
        class_names: Sequence[str] | None = None,
        row_groups: int = 4,
        upright: Any = None,
        caption: str = "",
    ):
        """Reads the footers and the column of labels.

        Args:
            path: a mounted folder that holds `*.parquet`, or a pattern that matches such files.
            split: takes only the files `SPLIT-00000-of-0000N.parquet`, or `SPLIT.parquet`, of the
                folder.
            image: a column of bytes, or of structs with the field `bytes`.
            label: a column of integers; '' puts all images into one class.
            class_names: by label, where the files do not name them.
            row_groups: how many decompressed row groups to keep in memory.
            upright: see `ImageFolder`.
            caption: a column of texts, which become the examples' 'caption'; '' is none.

        Raises:
            InputError: a file is missing or damaged, its schema or classes differ from those of the
                first, or a label is out of range.
        """
        # 1. Footers and labels of all files.
        self._paths = _paths(os.fspath(path), split)
        self._root = os.path.commonpath([os.path.dirname(path) for path in self._paths])
        self._columns = (image, caption) if caption else (image,)
        self._row_groups = row_groups
        opened = [_File(path, image, label, caption) for path in self._paths]
        if not label and class_names is None:
            class_names = NO_CLASSES
        # 2. Classes. ImageNet's get their WordNet ids, as folders, lists and runs name them.
        self.class_names = imagenet.canonical_names(_class_names(opened, class_names))
        self._upright = imagenet.upright(upright, self.class_names)
        self._footers = [file.footer for file in opened]
        self._digests = [file.digest for file in opened]
        groups = [(n, g, rows) for n, file in enumerate(opened) for g, rows in file.groups()]
        # 3. Where each image is.
        self._groups: Int64[np.ndarray, "groups 4"] = _table(groups)
        self.labels = np.concatenate([file.labels for file in opened])
        self.domain = np.zeros(len(self.labels), np.int32)
        _check_labels(self.labels, len(self.class_names), self._where)
        self._empty_cache()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Example i in RGB, at its own size; InputError if its row group or image is damaged."""
        i = operator.index(i)
        group, _, row = self._locate(i)
        try:
            fields = self._group(group)
            data = fields[0][row].as_py()
            data = data["bytes"] if isinstance(data, dict) else data
            texts = [column[row].as_py() for column in fields[1:]]
            # Some sets of the Hub store a path instead of the bytes.
            if not data:
                raise InputError("has no image bytes; download a file that has its images")
            pixels = decode(data, self._upright)
        except InputError as error:
            raise InputError(f"{self._where(i)}: {error}") from None
        if None in texts:
            raise InputError(
                f"{self._where(i)} has no caption; leave out its file, or the field caption"
            )
        example = {"image": pixels, "label": self.labels[i], "domain": self.domain[i]}
        return example | dict(zip(("caption",), texts, strict=False))

    def key(self, i: int) -> str:
        """`file:row` of image i."""
        _, path, _ = self._locate(i)
        return f"{os.path.relpath(path, self._root)}:{self._row(i)}"

    def digest(self) -> str:
        """Covers labels, file names and footers, which have every column's size; and `upright`."""
        names = [os.path.relpath(path, self._root) for path in self._paths]
        facts = json.dumps([names, self._digests, self.class_names]).encode()
        digest = hashlib.sha256(facts + self.labels.astype("<i4").tobytes()).hexdigest()
        return decoded_digest(digest, self._upright)

    def __getstate__(self) -> dict[str, Any]:
        # Locks cannot be pickled; every process has its own cache.
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_cache")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._empty_cache()

    def _empty_cache(self) -> None:
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def _locate(self, i: int) -> tuple[int, str, int]:
        """The row group, its file, and the row within the group."""
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        group = int(np.searchsorted(self._groups[:, 3], i, side="right"))
        first = int(self._groups[group - 1, 3]) if group else 0
        return group, self._paths[self._groups[group, 0]], int(i) - first

    def _row(self, i: int) -> int:
        group, _, row = self._locate(i)
        return int(self._groups[group, 2]) + row

    def _where(self, i: int) -> str:
        return f"{self._locate(i)[1]}: row {self._row(i)}"

    def _group(self, group: int) -> Any:
        with self._lock:
            # Most recently used last.
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        # Two threads may read the same group; waiting for each other would cost more.
        images = self._read(group)
        with self._lock:
            self._cache[group] = images
            # Drop the least recently used ones.
            while len(self._cache) > self._row_groups:
                self._cache.popitem(last=False)
        return images

    def _read(self, group: int) -> Any:
        # Imported late: tasks without Parquet need not wait for it.
        import pyarrow as pa
        import pyarrow.parquet as pq

        number, inner = self._groups[group, :2].tolist()
        num_rows = self._footers[number].row_group(inner).num_rows
        try:
            with pq.ParquetFile(
                self._paths[number], metadata=self._footers[number], page_checksum_verification=True
            ) as file:
                # Arrow can neither read nor join structs of more than 2 GB at once.
                batches = list(file.iter_batches(_BATCH_ROWS, [inner], list(self._columns)))
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"its row group cannot be read ({_line(error)}); {_AGAIN}") from None
        if (length := sum(map(len, batches))) != num_rows:
            raise InputError(f"its row group must have {num_rows} images, got {length}; {_AGAIN}")
        return [pa.chunked_array([part.column(name) for part in batches]) for name in self._columns]


class _File:
    """What a file says apart from its images."""

    def __init__(self, path: str, image: str, label: str, caption: str):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                self.path, self.footer, self.schema = path, file.metadata, file.schema_arrow
                self._check_columns(image, label, caption)
                column = file.read([label]).column(0) if label else None
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{path} is not a complete Parquet file ({_line(error)}); {_AGAIN}"
            ) from None
        self.digest, self._label = _footer_digest(path), label
        rows = sum(rows for _, rows in self.groups())
        if column is None:
            self.labels = np.zeros(rows, np.int32)
            return
        if len(column) != rows:
            raise InputError(f"{path} must have one label per row; {_AGAIN}")
        if column.null_count:
            raise InputError(
                f"{path} has {column.null_count} rows without a label; choose another split"
            )
        self.labels = column.to_numpy().astype(np.int32)

    def groups(self) -> list[tuple[int, int]]:
        """(number, rows) of each row group."""
        footer = self.footer
        return [(g, footer.row_group(g).num_rows) for g in range(footer.num_row_groups)]

    def class_names(self) -> tuple[str, ...] | None:
        """From the metadata that Hugging Face's `datasets` writes; None if there is none."""
        data = (self.schema.metadata or {}).get(b"huggingface", b"{}")
        node: Any = files.parse_json(data, f"{self.path}, its metadata 'huggingface'")
        for field in ("info", "features", self._label, "names"):
            node = node.get(field) if isinstance(node, dict) else None
        return tuple(map(str, node)) if node and isinstance(node, list) else None

    def _check_columns(self, image: str, label: str, caption: str) -> None:
        import pyarrow as pa

        columns = listed(f"{field.name} ({field.type})" for field in self.schema)
        for name, kind, fits in (
            (image, "bytes or of structs with bytes", _holds_bytes),
            (label, "integers", pa.types.is_integer),
            (caption, "texts", _holds_text),
        ):
            # Without labels or captions; an image column there must be.
            if name == "" and kind != "bytes or of structs with bytes":
                continue
            if name not in self.schema.names or not fits(self.schema.field(name).type):
                raise InputError(
                    f"{self.path} has no column {name!r} of {kind}; use one of {columns}"
                )


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _paths(path: str, split: str | None) -> list[str]:
    if not files.is_local(path):
        raise InputError(f"{path}: Parquet needs a mounted folder; mount or copy it")
    # 1. A file or a pattern.
    if not os.path.isdir(path):
        if split is not None:
            raise InputError(f"{path}: split={split!r} needs a folder; leave it out here")
        paths = sorted(glob.glob(path, recursive=True))
        if not paths:
            raise InputError(f"{path}: no such folder, and no file matches; check the path")
        return paths
    # 2. The files of the split.
    path, split = _inner_folder(path, split)
    names = present = _parquet_names(path)
    numbered = {name: m for name in names if (m := _NUMBERED.fullmatch(name))}
    split_of = {name: numbered[name][1] if name in numbered else name[:-8] for name in names}
    splits = sorted({s for name, s in split_of.items() if name in numbered or s in _SPLITS})
    if split is not None:
        names = {name for name in names if split_of[name] == split}
    if not names:
        others = listed(splits) or listed(sorted(present)) or "no *.parquet"
        raise InputError(f"{path} has no files {split or '*'}-*.parquet; it has {others}")
    if len(splits) > 1 and split is None:
        raise InputError(f"{path} has the splits {listed(splits)}; choose one as split")
    # 3. All of NAME-00000-of-00012 must be there: nothing else would show that one is missing.
    totals = {m[2] for name, m in numbered.items() if name in names}
    if totals and (len(totals) > 1 or len(names) != int(next(iter(totals)))):
        raise InputError(
            f"{path} has {len(names)} files of {' and '.join(sorted(totals))}; download the "
            "missing ones, or select files with a pattern"
        )
    return [os.path.join(path, name) for name in sorted(names)]


def _parquet_names(folder: str) -> set[str]:
    return {name for name in os.listdir(folder) if name.endswith(".parquet") and name[0] != "."}


def _inner_folder(path: str, split: str | None) -> tuple[str, str | None]:
    """The folder of a Hub snapshot that has the files, and the split left to choose there."""
    # 1. In the snapshot itself.
    if _parquet_names(path):
        return path, split
    # 2. In `data/`, or in one folder per split: `train/` or `default/train/`.
    walk = [folder for folder, _, _ in os.walk(path) if _parquet_names(folder)]
    below = {os.path.relpath(folder, path): folder for folder in sorted(walk)}
    named = [folder for name, folder in below.items() if os.path.basename(name) == split]
    if len(named) == 1:
        return named[0], None
    if len(below) == 1:
        return next(iter(below.values())), split
    if below:
        raise InputError(
            f"{path} has Parquet files in {listed(below)}; use one of these folders, or a split "
            "with the name of one"
        )
    return path, split


def _class_names(opened: Sequence[_File], given: Sequence[str] | None) -> tuple[str, ...]:
    # A string is a sequence too, of its letters.
    if isinstance(given, str):
        raise InputError(
            f"class_names must be a list of names, got {given!r}; write ['...', '...']"
        )
    # All files must be of one data set.
    first = opened[0].class_names()
    for file in opened:
        if file.class_names() != first or not file.schema.equals(opened[0].schema):
            raise InputError(
                f"{file.path} has other columns or classes than {opened[0].path}; keep one data "
                "set per folder"
            )
    if given is None:
        if first is None:
            raise InputError(f"{opened[0].path} has no class names; set class_names in the config")
        return first
    if first is not None and tuple(given) not in (first, imagenet.canonical_names(first)):
        raise InputError(
            f"class_names must equal those of {opened[0].path}, got {len(given)} others; leave "
            "class_names out"
        )
    return tuple(given)


def _check_labels(labels: np.ndarray, classes: int, where: Any) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise InputError(
            f"{where(i)}: its label must be below the {classes} classes, got {labels[i]}; "
            "choose a split with labels, or give all class_names"
        )


def _table(groups: Sequence[tuple[int, int, int]]) -> Int64[np.ndarray, "groups 4"]:
    # [groups, 4]: number of the file, of the row group, its first row in the file, and its end
    # among all rows of this source.
    rows, in_file, end = [], 0, 0
    for number, group, length in groups:
        in_file = 0 if group == 0 else in_file
        end += length
        rows.append((number, group, in_file, end))
        in_file += length
    return np.array(rows, np.int64).reshape(-1, 4)


# A Parquet file ends with: footer, length of the footer (4 bytes), "PAR1".
def _footer_digest(path: str) -> str:
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
