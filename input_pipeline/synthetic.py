"""Generated image sets: folders of shards that TFDS opens.

NAME-train.tfrecord-00000-of-00009   image, label, class name, prompt, key index
index/00000-of-00009.json            its sidecar: size, digest, counts; written after the shard
provenance.json                      what the set is made from; written before the first shard
dataset_info.json, features.json     and the class names, for `tfds.builder_from_directory`
manifest.json                        written last: with it the set is complete
"""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from input_pipeline import examples, files
from input_pipeline.files import InputError
from input_pipeline.subsets import Subset
from input_pipeline.synthetic_writer import RESUME, SyntheticWriter, labels_for
from input_pipeline.tfrecord import TFRecordFile

__all__ = ["SYNTHETIC", "SyntheticSource", "SyntheticWriter", "labels_for", "verify"]

SYNTHETIC = 1  # the domain of generated images
_FIELDS = {"image": bytes, "label": int, "class_name": bytes, "prompt": bytes, "index": int}


class SyntheticSource:
    """A complete generated set with random access; its labels are known without reading a shard.

    Attributes:
        manifest: what the folder's `manifest.json` says.
    """

    def __init__(self, folder: epath.PathLike):
        """Opens a set.

        Raises:
            InputError: the set is not complete, or a shard is missing or has another size.
        """
        self._folder = epath.Path(folder)
        if not (self._folder / "manifest.json").exists():
            raise InputError(f"{self._folder}: not complete (no manifest.json): {RESUME}")
        self.manifest: dict[str, Any] = files.read_json(self._folder / "manifest.json")
        self.class_names = tuple(self.manifest["class_names"])
        self.labels = labels_for(self.manifest["counts"], self.manifest["copies"])
        self.domain = np.full(len(self.labels), SYNTHETIC, np.int32)
        self._shards: dict[int, TFRecordFile] = {}
        for number in range(len(self.manifest["shards"])):
            self._check_size(number)

    def _check_size(self, number: int) -> None:
        entry = self.manifest["shards"][number]
        path = self._folder / entry["file"]
        if not path.exists() or path.stat().length != entry["num_bytes"]:
            self.shard(number)  # names the record where the file ends
            raise InputError(f"{path}: not the {entry['num_bytes']} bytes of its index; {RESUME}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Example i, decoded.

        Raises:
            InputError: its record is damaged or is not the record of image i.
        """
        number, record = divmod(i, self.manifest["images_per_shard"])
        fields = self.read(number, record)
        if (fields["index"], fields["label"]) != (i, self.labels[i]):
            raise InputError(f"{self._where(number, record)}: not image {i}; {RESUME}")
        image = self.decode(fields["image"])
        if image is None:
            raise InputError(f"{self._where(number, record)}: no image of this set; {RESUME}")
        return {"image": image, "label": self.labels[i], "domain": self.domain[i]}

    def key(self, i: int) -> str:
        """The key index of image i."""
        return str(i)

    def shard(self, number: int) -> TFRecordFile:
        """A shard's records, indexed when it is first used."""
        if number not in self._shards:
            entry = self.manifest["shards"][number]
            file = TFRecordFile(self._folder / entry["file"])
            if len(file) != entry["num_examples"]:
                raise InputError(
                    f"{file.path}: {len(file)} records instead of {entry['num_examples']}; {RESUME}"
                )
            self._shards[number] = file
        return self._shards[number]

    def read(self, number: int, record: int) -> dict[str, Any]:
        """The fields of one record: `image`, `class_name`, `prompt` (bytes), `label`, `index`.

        Raises:
            InputError: the record is damaged, or a field is missing.
        """
        data = self.shard(number)[record]
        try:
            fields = examples.decode_example(data)
        except InputError as error:
            raise InputError(f"{self._where(number, record)}: {error}") from None
        for name, kind in _FIELDS.items():
            if [type(value) for value in fields.get(name, [])] != [kind]:
                raise InputError(f"{self._where(number, record)}: no field {name!r}; {RESUME}")
        return {name: fields[name][0] for name in _FIELDS}

    def decode(self, data: bytes) -> UInt8[np.ndarray, "h w c"] | None:
        """An image of this set, or None if the bytes are no image or one of another size."""
        shape = tuple(self.manifest["image_shape"])
        try:
            image = examples.decode_image(data, shape[2])
        except InputError:
            return None
        return image if image.shape == shape else None

    def first_copies(self, copies: int) -> Subset:
        """The first images, exactly so many times the real set with its class balance.

        Raises:
            InputError: the set has fewer copies.
        """
        if not 1 <= copies <= self.manifest["copies"]:
            raise InputError(
                f"{self._folder}: copies={copies}, but the set holds {self.manifest['copies']}; "
                "choose fewer or generate more"
            )
        return Subset(self, np.arange(copies * sum(self.manifest["counts"])))

    def _where(self, number: int, record: int) -> str:
        return f"{self.shard(number).path}: record {record}"


def verify(folder: epath.PathLike) -> dict[str, Any]:
    """Reads a whole set: checksums, digests, every image and every index.

    Returns:
        `num_examples`; `class_counts` (name -> records found); the key indices that are `missing`,
        `double`, `undecodable` (no image of the set's size) or `mislabelled`; and `ok`, whether
        these four are empty.

    Raises:
        InputError: the set is not complete, or a record is damaged (the first one is named).
    """
    source = SyntheticSource(folder)
    indices, labels = [], []
    faults: dict[str, list[int]] = {"undecodable": [], "mislabelled": []}
    for number, entry in enumerate(source.manifest["shards"]):
        for record in range(entry["num_examples"]):
            fields = source.read(number, record)
            index, label = fields["index"], fields["label"]
            indices.append(index)
            labels.append(label)
            if source.decode(fields["image"]) is None:
                faults["undecodable"].append(index)
            if not _is_label_of(source, index, label, fields["class_name"]):
                faults["mislabelled"].append(index)
        path = source.shard(number).path
        if files.sha256(path) != entry["sha256"]:
            raise InputError(f"{path}: not the file of its index (other digest); {RESUME}")
    found, times = np.unique(np.array(indices, np.int64), return_counts=True)
    faults["missing"] = np.setdiff1d(np.arange(len(source)), found).tolist()
    faults["double"] = found[times > 1].tolist()
    counts = np.bincount(labels, minlength=len(source.class_names)).tolist()
    return {
        "num_examples": len(indices),
        "class_counts": dict(zip(source.class_names, counts, strict=False)),
        "ok": not any(faults.values()),
        **faults,
    }


def _is_label_of(source: SyntheticSource, index: int, label: int, class_name: bytes) -> bool:
    if not 0 <= index < len(source) or label != source.labels[index]:
        return False
    return class_name.decode(errors="replace") == source.class_names[label]
