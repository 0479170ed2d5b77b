"""Synthetic image sets: folders of shards that TFDS opens.

NAME-train.tfrecord-00000-of-00009   image, label, class name, prompt, index of the image
index/00000-of-00009.json            its sidecar: size, checksum, record lengths; written after it
provenance.json                      what the set is made from; written before the first shard
dataset_info.json, features.json     and the class names, for `tfds.builder_from_directory`
README.md, samples.png               what people read about the set
manifest.json                        written last: a set that has it is complete

python -m input_pipeline.synthetic --set=DIR --export=folder --to=DIR    # for other trainers
"""

from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

import numpy as np
from etils import epath
from jaxtyping import UInt8

from input_pipeline.records import image_codec, tf_example
from input_pipeline.records.tfrecord import TFRecordFile, starts_of
from input_pipeline.source import Example, Subset
from input_pipeline.synthetic.provenance import check_names, plan_of
from input_pipeline.synthetic.writer import MANIFEST, REPAIR, RESUME, sidecar_path
from launch import files
from launch.errors import InputError

SYNTHETIC = 1  # the domain of synthetic images; that of real ones is 0
CAPTIONS = ("prompt", "class_name")
FIELDS = {"image": bytes, "label": int, "class_name": bytes, "prompt": bytes, "index": int}


class SyntheticSource:
    """A complete synthetic set with random access; labels are known without reading a shard."""

    def __init__(self, folder: epath.PathLike, caption: str = ""):
        """Opens a complete set; InputError if it is incomplete, or a shard is missing or cut short.

        `caption` is the field that becomes the examples' 'caption', 'prompt' or 'class_name'; '' is
        none.
        """
        if caption not in ("", *CAPTIONS):
            raise InputError(f"caption must be one of {', '.join(CAPTIONS)}, got {caption!r}")
        self._caption = caption
        # Imports that threads must not trigger later, see there.
        tf_example.load_messages()
        self._folder = epath.Path(folder)
        # 1. The manifest, and the plan that follows from it.
        path = self._folder / MANIFEST
        if not path.exists():
            raise InputError(f"{self._folder} is not complete (it has no {MANIFEST}); {RESUME}")
        try:
            self.manifest: dict[str, Any] = files.read_sealed(path)
            self._digest = files.sha256(path)
            check_names(self.manifest, path)
            self.plan = plan_of(self.manifest, path)
            self.class_names = tuple(self.manifest["class_names"])
            shards = [entry["num_examples"] for entry in self.manifest["shards"]]
            if (len(shards), sum(shards)) != (self.plan.num_shards, self.plan.num_images):
                raise InputError(
                    f"{path}: its shards have a different number of images than it says"
                )
        except (KeyError, TypeError):
            raise InputError(f"{path} is from another version of this project; {RESUME}") from None
        except InputError as error:
            raise InputError(f"{error}; {REPAIR}") from None
        # 2. Labels and domain; broadcast, so that the domain takes no memory.
        self.labels = self.plan.labels
        self.domain = np.broadcast_to(np.int32(SYNTHETIC), self.labels.shape)
        self._shards: dict[int, TFRecordFile] = {}
        # 3. The sizes of all shards, in parallel: in a store each one is a request.
        files.in_parallel(self._check_size, range(self.plan.num_shards))

    def _check_size(self, number: int) -> None:
        entry = self.manifest["shards"][number]
        path = self._folder / entry["file"]
        if not path.exists():
            raise InputError(f"{path}: no such shard; {REPAIR}")
        size = path.stat().length
        if size != entry["num_bytes"]:
            raise InputError(f"{path} must have {entry['num_bytes']} bytes, got {size}; {REPAIR}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        """Example i; InputError if its record is damaged or belongs to another image."""
        record = self._record(range(len(self))[i])
        example = {"image": record["image"], "label": self.labels[i], "domain": self.domain[i]}
        return {**example, "caption": record[self._caption]} if self._caption else example

    def records(self, indices: Iterable[SupportsIndex] | None = None) -> Iterator[dict[str, Any]]:
        """Yields the records of the given images, or of all: `for record in source.records()`.

        Each has `image` (uint8 [h, w, c] in [0, 255]), `label`, `class_name`, `prompt` and `index`.
        Raises InputError for a damaged record, IndexError for an index that the set lacks.
        """
        for i in range(len(self)) if indices is None else indices:
            yield self._record(range(len(self))[i])

    def _record(self, i: int) -> dict[str, Any]:
        number, record = self.plan.locate(i)
        fields = self.read(number, record)
        # The checksums cannot tell whether a shard belongs in this place; these fields can.
        if (fields["index"], fields["label"]) != (i, self.labels[i]):
            raise InputError(f"{self._where(number, record)} must be image {i}; {REPAIR}")
        image = decode(fields["image"], self.manifest["image_shape"])
        if image is None:
            raise InputError(f"{self._where(number, record)} is not an image of this set; {REPAIR}")
        texts = {name: fields[name].decode() for name in ("class_name", "prompt")}
        return {**fields, **texts, "image": image}

    def key(self, i: int) -> str:
        """The index of image i, as text."""
        return str(i)

    def digest(self) -> str:
        """That of the manifest, which has the checksums of all shards."""
        return self._digest

    def shard(self, number: int) -> TFRecordFile:
        """A shard's records; their positions are read from its sidecar at the first use."""
        if number not in self._shards:
            entry = self.manifest["shards"][number]
            path = sidecar_path(self._folder, number, self.plan.num_shards)
            try:
                sidecar = files.read_object(path)
            except InputError as error:
                raise InputError(f"{error}; {REPAIR}") from None
            # The positions follow from the lengths, so the shard is not scanned.
            starts = starts_of(sidecar.get("lengths", ()))
            file = TFRecordFile(self._folder / entry["file"], starts)
            # A sidecar of another shard would point between records.
            if len(file) != entry["num_examples"] or file.starts[-1] != entry["num_bytes"]:
                raise InputError(f"{path} is not the index of its shard; {REPAIR}")
            self._shards[number] = file
        return self._shards[number]

    def read(self, number: int, record: int) -> dict[str, Any]:
        """One record's `image`, `class_name`, `prompt` (all bytes), `label` and `index`."""
        file = self.shard(number)
        return parse(file[record], self._where(number, record))

    def first_copies(self, copies: int) -> Subset:
        """The first `copies` times N images, with the class balance of the real set; see `Plan`."""
        if type(copies) is not int or not 1 <= copies <= self.plan.copies:
            raise InputError(
                f"{self._folder}: copies must be at most {self.plan.copies}, as in "
                f"the set, got {copies!r}; choose fewer, or generate more"
            )
        return Subset(self, np.arange(copies * self.plan.copy_size))

    def _where(self, number: int, record: int) -> str:
        return f"{self.shard(number).path}: record {record}"


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The fields of a record; InputError, naming `where`, if it is not of a synthetic set."""
    try:
        fields = tf_example.decode_example(data)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    for name, kind in FIELDS.items():
        if [type(value) for value in fields.get(name, [])] != [kind]:
            raise InputError(f"{where} has no field {name!r}; {REPAIR}")
    return {name: fields[name][0] for name in FIELDS}


def decode(data: bytes, shape: list[int]) -> UInt8[np.ndarray, "h w c"] | None:
    """The image, or None if the bytes are not an image of this shape."""
    try:
        image = image_codec.decode_image(data, shape[2])
    except InputError:
        return None
    return image if image.shape == tuple(shape) else None
