"""Shards that TFDS prepared, each with an index: labels, names and checksums of its records."""

import concurrent.futures
import functools
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.records import index_cache, tf_example
from input_pipeline.records.array_record import ArrayRecordFile
from input_pipeline.records.tfrecord import TFRecordFile, masked_crc
from launch.cli import say
from launch.cpus import usable_cpus
from launch.errors import InputError

NO_LABEL = np.iinfo(np.int32).min  # the label of a record too damaged to have one

_FILES: dict[str, type[ArrayRecordFile] | type[TFRecordFile]] = {
    "array_record": ArrayRecordFile,
    "tfrecord": TFRecordFile,
}
_THREADS = min(16, 2 * usable_cpus())
_REST = -1  # the fault of all records after the last readable byte


class IndexedShard:
    """A shard and its index: what is known of it without decoding an image."""

    def __init__(self, path: str, file_format: str, records: int, label: str, key: str):
        """Reads the index, or makes it, which reads the whole shard.

        `label` and `key` name fields of a record; InputError if it does not have `records` of them.
        """
        self.path, self._format = path, file_format
        try:
            self._cache_key = index_cache.CacheKey.of_file(path, f"{label}-{key}")
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such shard; prepare or download the data set again"
            ) from None
        self._faults: dict[int, str] = {}
        self._columns: Mapping[str, np.ndarray] = {}
        # Why the index could not be stored.
        self.unkept: OSError | None = None
        kept = index_cache.load(self._cache_key, ("label",))
        # Whether the index had to be made now.
        self.built = kept is None
        # `NO_LABEL` where a record is damaged.
        self.labels: np.ndarray = (kept or self._make_index(label, key))["label"]
        # After a damaged length nothing more can be read, but the metadata say how many are lost.
        if _REST in self._faults and len(self.labels) < records:
            lost = np.full(records - len(self.labels), NO_LABEL, np.int32)
            self.labels = np.concatenate([self.labels, lost])
        if len(self.labels) != records:
            raise InputError(
                f"{path} must have the {records} records of dataset_info.json, got "
                f"{len(self.labels)}: not a shard of this set; prepare or download it again"
            )

    @functools.cached_property
    def file(self) -> TFRecordFile | ArrayRecordFile:
        """The records, opened at the first use."""
        if self._format == "array_record":
            return ArrayRecordFile(self.path)
        return TFRecordFile(self.path, self._load_column("starts"))

    def column(self, name: str) -> np.ndarray:
        """A column of the index, `crc` or `key` (bytes), with zeros for lost records."""
        column = self._load_column(name)
        lost = len(self.labels) - len(column)
        return np.concatenate([column, np.zeros(lost, column.dtype)]) if lost else column

    def _load_column(self, name: str) -> np.ndarray:
        # Read from disk each time: names of millions of records are not worth holding.
        columns = self._columns or index_cache.load(self._cache_key, (name,))
        if columns is None:
            raise InputError(
                f"{self.path}: its index was removed while it was being read; run the same command "
                "again"
            )
        return columns[name]

    def fault(self, record: int) -> str:
        """What is wrong with a record that has no label."""
        return self._faults.get(record) or self._faults[_REST]

    def index_paths(self) -> str:
        """Where the index may be, for messages."""
        return " or ".join(map(str, self._cache_key.paths()))

    def _make_index(self, label: str, key: str) -> Mapping[str, np.ndarray]:
        columns = self._read_columns(label, key)
        # Damage may be repaired without a change of size or time, so its index is not stored.
        self.unkept = None if self._faults else index_cache.save(self._cache_key, columns)
        if self._faults or self.unkept:
            self._columns = columns
        return columns

    def _read_columns(self, label: str, key: str) -> dict[str, np.ndarray]:
        labels: list[int] = []
        crcs: list[int] = []
        keys: list[bytes] = []
        starts: list[int | None] = [0]
        try:
            for i, (end, data) in enumerate(_FILES[self._format].scan(self.path)):
                try:
                    row = self._read_record(i, data, label, key)
                except InputError as error:
                    self._faults[i] = str(error)
                    # Only this record is damaged, or it lacks a field; the scan continues.
                    row = NO_LABEL, b"", 0
                labels.append(row[0])
                keys.append(row[1])
                crcs.append(row[2])
                starts.append(end)
        except InputError as error:
            # The scan itself failed: nothing after this byte can be read.
            self._faults[_REST] = str(error)
        columns: dict[str, np.ndarray] = {
            "label": np.array(labels, np.int32),
            "crc": np.array(crcs, np.uint32),
            "key": np.array(keys, np.bytes_) if keys else np.array([], "S1"),
        }
        if self._format == "tfrecord":
            columns["starts"] = np.array(starts, np.int64)
        return columns

    def _read_record(
        self, i: int, data: bytes | InputError, label: str, key: str
    ) -> tuple[int, bytes, int]:
        if isinstance(data, InputError):
            raise data
        try:
            fields = tf_example.decode_example(data)
            entry = field(fields, label, int), field(fields, key, bytes) if key else b""
        except InputError as error:
            raise InputError(f"{self.path}: record {i}: {error}") from None
        return *entry, masked_crc(data)


def field(fields: Mapping[str, list[Any]], name: str, kind: type) -> Any:
    """The only value of a field; InputError if there is none or it is of another type."""
    values = fields.get(name, [])
    if [type(value) for value in values] != [kind]:
        raise InputError(f"no field {name!r} of one {kind.__name__}; prepare this shard again")
    return values[0]


def open_shards(
    paths: Mapping[str, int], file_format: str, label: str, key: str
) -> dict[str, IndexedShard]:
    """Opens shards (path -> number of records) in parallel; says so if indexing takes long."""
    # A random order per process: those that start together index different shards first, and find
    # the others' indexes later.
    order = random.SystemRandom().sample(sorted(paths), len(paths))
    progress = _IndexingLog(len(order))

    def open_one(path: str) -> IndexedShard:
        shard = IndexedShard(path, file_format, paths[path], label, key)
        progress.count(shard)
        return shard

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        opened = [pool.submit(open_one, path) for path in order]
        try:
            shards = {path: future.result() for path, future in zip(order, opened, strict=True)}
        except BaseException:
            # Ctrl-C or a damaged shard: do not open those still waiting.
            pool.shutdown(cancel_futures=True)
            raise
    progress.end([shards[path] for path in order])
    return shards


class _IndexingLog:
    """Reports on stderr that shards are being indexed, and how far that is."""

    def __init__(self, total: int):
        self._lock = threading.Lock()
        self._total, self._built = total, 0
        self._start = self._said = time.monotonic()

    def count(self, shard: IndexedShard) -> None:
        with self._lock:
            self._built += shard.built
            now = time.monotonic()
            if shard.built and now - self._said > 30:  # seconds
                self._said = now
                folder = os.path.dirname(shard.path)
                say(
                    f"{folder}: {self._built} of {self._total} shards are indexed (needed "
                    "only once)"
                )

    def end(self, shards: Sequence[IndexedShard]) -> None:
        seconds = time.monotonic() - self._start
        if self._built and seconds > 30:
            say(f"{os.path.dirname(shards[0].path)}: {self._built} shards indexed, {seconds:.0f} s")
        if unkept := [shard for shard in shards if shard.unkept]:
            say(
                f"{unkept[0].path}: its index cannot be saved in {unkept[0].index_paths()} "
                f"({unkept[0].unkept}), nor can {len(unkept) - 1} others, so the shards are read "
                "at every start; set XDG_CACHE_HOME to a writable folder"
            )
