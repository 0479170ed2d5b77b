"""Images that TFDS prepared, as array_record or tfrecord, read without TensorFlow."""

import functools
import hashlib
import json
import operator
import os
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int32

from input_pipeline import imagenet
from input_pipeline.records import tf_example
from input_pipeline.source import Example
from input_pipeline.sources import tfds_prepared
from input_pipeline.sources.image_folder import decode, decoded_digest
from input_pipeline.sources.tfds_shards import NO_LABEL, IndexedShard, field, open_shards
from launch.errors import InputError


class TfdsSource:
    """A split of a prepared data set with random access; it can be pickled."""

    def __init__(
        self,
        folder: os.PathLike | str,
        split: str,
        image: str = "image",
        label: str = "label",
        key: str = "",
        upright: Any = False,
        caption: str = "",
    ):
        """Opens a split.

        Args:
            folder: see `tfds_prepared.find`.
            split: in TFDS's syntax: `train[:99%]`, `train[5:10]+validation`.
            image: the field of images.
            label: the field of labels.
            key: the text field that names a record, see `tfds_prepared.open_split`.
            upright: turns images as their EXIF orientation says, which TFDS itself ignores.
            caption: a text field, which becomes the examples' 'caption'; '' is none.

        Raises:
            InputError: see `open_split`; a shard is missing or of another set; a label is out of
                range.
        """
        # 1. What the metadata say.
        found = tfds_prepared.find(folder)
        self._split = tfds_prepared.open_split(found, split, image, label, key, caption)
        self._fields, self._caption = (image, label), caption
        self._upright = imagenet.upright(upright, ())
        self.class_names = self._split.class_names
        # 2. The shards with their indexes; the first time each is read whole.
        slices = self._split.slices
        self._shards = open_shards(
            {piece.path: piece.records for piece in slices},
            self._split.file_format,
            label,
            self._split.key,
        )
        # 3. Labels in the order of the split, which may take parts of shards.
        self._ends = np.cumsum([piece.take for piece in slices])
        labels = {path: shard.labels for path, shard in self._shards.items()}
        self.labels: Int32[np.ndarray, " n"] = self._in_order(labels)
        self.domain = np.zeros(len(self.labels), np.int32)
        # Number of each record too damaged to have a label -> what is wrong with it.
        self.faults = {int(i): self._fault(int(i)) for i in np.flatnonzero(self.labels == NO_LABEL)}
        self._check_labels()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Example i in RGB, at its own size; InputError if its record or image is damaged."""
        i = operator.index(i)
        shard, record = self._locate(i)
        if i in self.faults:
            raise InputError(self.faults[i])
        data = shard.file[record]
        image, label = self._fields
        try:
            fields = tf_example.decode_example(data)
            # A shard that was replaced by one of the same size and time would otherwise mix up
            # labels.
            stored = field(fields, label, int)
            if stored != self.labels[i]:
                raise InputError(
                    f"its label is {stored}, but {self.labels[i]} in the index; remove "
                    f"{shard.index_paths()}"
                )
            pixels = decode(field(fields, image, bytes), self._upright)
            names = [self._caption] if self._caption else []
            texts = [_text(field(fields, name, bytes), name) for name in names]
        except InputError as error:
            raise InputError(f"{shard.file.where(record)}: {error}") from None
        example = {"image": pixels, "label": self.labels[i], "domain": self.domain[i]}
        return example | dict(zip(("caption",), texts, strict=False))

    def key(self, i: int) -> str:
        """The data set's name of record i, else `shard:record`; InputError if two have the same."""
        shard, record = self._locate(i)
        if not self._split.key:
            return f"{os.path.basename(shard.path)}:{record}"
        return self._names[i].decode(errors="surrogateescape")

    @functools.cached_property
    def _names(self) -> np.ndarray:
        names = self._gather("key")
        # Damaged records have no name, so only the others must differ.
        named = names[self.labels != NO_LABEL]
        distinct, times = np.unique(named, return_counts=True)
        if (times > 1).any():
            twice = distinct[times > 1][0].decode(errors="surrogateescape")
            raise InputError(
                f"{self._split.folder}: {self._split.key} must differ between records, got "
                f"{twice!r} twice; choose another field as key"
            )
        return names

    def digest(self) -> str:
        """Covers class names, labels, checksums of all records, and whether images are turned."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        digest.update(self.labels.astype("<i4").tobytes())
        digest.update(self._gather("crc").astype("<u4").tobytes())
        return decoded_digest(digest.hexdigest(), self._upright)

    def _locate(self, i: int) -> tuple[IndexedShard, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        # self._ends[number] - piece.take is where the slice starts in the split.
        piece = self._split.slices[number]
        return self._shards[piece.path], piece.skip + int(i) - int(self._ends[number]) + piece.take

    def _gather(self, column: str) -> np.ndarray:
        return self._in_order({path: s.column(column) for path, s in self._shards.items()})

    def _in_order(self, of_shards: Mapping[str, np.ndarray]) -> np.ndarray:
        slices = self._split.slices
        return np.concatenate([of_shards[s.path][s.skip :][: s.take] for s in slices])

    def _fault(self, i: int) -> str:
        shard, record = self._locate(i)
        return shard.fault(record)

    def _check_labels(self) -> None:
        wrong = (self.labels < 0) | (self.labels >= len(self.class_names))
        wrong &= self.labels != NO_LABEL
        if wrong.any():
            i = int(np.argmax(wrong))
            shard, record = self._locate(i)
            raise InputError(
                f"{shard.path}: record {record}: its label must be below the "
                f"{len(self.class_names)} classes, got {self.labels[i]}; choose a split "
                "with labels, or prepare it again"
            )


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(
            f"field {name!r} must be UTF-8 text, got {data[:40]!r}; leave the field caption out"
        ) from None
