"""Writing generated image sets: shards that appear whole and can be resumed."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8

from input_pipeline import examples, files, tfds_folder
from input_pipeline.files import InputError
from input_pipeline.tfrecord import write_tfrecord

RESUME = "run imagen_ft.generate again"
_FORMAT = 1


def labels_for(counts: Sequence[int], copies: int) -> Int32[np.ndarray, " n"]:
    """Labels of a generated set in its global order.

    Image n is image n % N of copy n // N, N = sum(counts), and a copy is sorted by class. So the
    first k * N images are exactly k times the real set, with its balance.

    Args:
        counts: images of each class in the real set.
        copies: how many times the real set.
    """
    return np.tile(np.repeat(np.arange(len(counts), dtype=np.int32), counts), copies)


def _shard_name(name: str, shard: int, num_shards: int) -> str:
    return f"{name}-train.tfrecord-{shard:05d}-of-{num_shards:05d}"


def _differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            difference
            for key in sorted(ours.keys() | theirs.keys())
            for difference in _differences(ours.get(key), theirs.get(key), f"{name}.{key}")
        ]
    return [] if ours == theirs else [name.lstrip(".")]


class SyntheticWriter:
    """Writes a generated set shard by shard; a new one on the same folder goes on with it.

    Several processes may write different shards of one folder; one of them calls `finish`.

    Attributes:
        labels: the label of every image, in global order.
        num_shards: how many shards the set has.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        name: str,
        class_names: Sequence[str],
        image_shape: Sequence[int],
        counts: Sequence[int],
        copies: int,
        images_per_shard: int,
        provenance: Mapping[str, Any],
    ):
        """Opens or starts a set.

        Args:
            folder: made if it is missing.
            name: of the data set: lower-case letters, digits and underscores.
            class_names: the name of each label; all different, as TFDS demands.
            image_shape: [h, w, 1 or 3].
            counts: images of each class in the real set.
            copies: size of the generated set in real sets.
            images_per_shard: the last shard may have fewer.
            provenance: all that decides about the images (config, weights, seed), as JSON.

        Raises:
            InputError: a value is wrong, or the folder holds a set made from something else.
        """
        self._config = _checked_config(
            name=name,
            class_names=class_names,
            image_shape=image_shape,
            counts=counts,
            copies=copies,
            images_per_shard=images_per_shard,
            provenance=provenance,
        )
        self._folder = epath.Path(folder)
        self._manifest = self._folder / "manifest.json"
        self.labels = labels_for(counts, copies)
        self.num_shards = -(-len(self.labels) // images_per_shard)
        self._claim_folder()

    def _claim_folder(self) -> None:
        claim = self._folder / "provenance.json"
        for path in (claim, self._manifest):
            if path.exists():
                found = {key: files.read_json(path).get(key) for key in self._config}
                if differences := _differences(self._config, found):
                    raise InputError(
                        f"{self._folder}: holds a set made with another {', '.join(differences)}; "
                        "choose another folder or delete this one"
                    )
        if not claim.exists():
            if self._folder.exists() and any(self._folder.glob("*.tfrecord-*")):
                raise InputError(
                    f"{self._folder}: holds shards of unknown origin (no provenance.json); "
                    "choose another folder or delete this one"
                )
            (self._folder / "index").mkdir(parents=True, exist_ok=True)
            files.write_json(claim, self._config)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First key index of a shard, and one past its last."""
        size = self._config["images_per_shard"]
        return shard * size, min((shard + 1) * size, len(self.labels))

    def pending_shards(self) -> list[int]:
        """Shards that are missing, damaged or without a sidecar: those to write (again)."""
        return [shard for shard in range(self.num_shards) if not self._is_written(shard)]

    @property
    def complete(self) -> bool:
        """Whether the set is finished and every shard still has its size and digest."""
        return self._manifest.exists() and not self.pending_shards()

    def write_shard(
        self, shard: int, images: UInt8[np.ndarray, "m h w c"], prompts: Sequence[str]
    ) -> None:
        """Writes one shard and then its sidecar; each is complete or absent.

        Args:
            shard: its number.
            images: those of `shard_range(shard)`, values [0, 255].
            prompts: the prompt of each.
        """
        first, last = self.shard_range(shard)
        expected = (last - first, *self._config["image_shape"])
        if images.shape != expected or images.dtype != np.uint8 or len(prompts) != last - first:
            raise ValueError(
                f"shard {shard}: expected uint8 {expected} and {last - first} prompts, got "
                f"{images.dtype} {images.shape} and {len(prompts)}"
            )
        self._manifest.unlink(missing_ok=True)  # a repair: not complete until it is finished
        path, sidecar = self._shard_path(shard), self._sidecar_path(shard)
        for target in (path, sidecar):
            files.remove_temporaries(target.parent, target.name)
        records = (
            self._encode(first + i, image, prompt)
            for i, (image, prompt) in enumerate(zip(images, prompts, strict=True))
        )
        write_tfrecord(path, records)
        files.write_json(sidecar, self._describe(shard))

    def finish(self) -> None:
        """Makes the folder a TFDS data set and, last, marks it as complete.

        Raises:
            InputError: shards are pending.
        """
        if pending := self.pending_shards():
            some = ", ".join(map(str, pending[:5])) + (", ..." if len(pending) > 5 else "")
            raise InputError(f"{self._folder}: shards {some} are not written; {RESUME}")
        shards = [
            {"file": self._shard_path(s).name, **files.read_json(self._sidecar_path(s))}
            for s in range(self.num_shards)
        ]
        tfds_folder.write_metadata(
            self._folder,
            self._config["name"],
            self._config["class_names"],
            self._config["image_shape"],
            [shard["num_examples"] for shard in shards],
            sum(shard["num_bytes"] for shard in shards),
        )
        for folder in (self._folder, self._folder / "index"):
            files.remove_temporaries(folder)
        totals = {"num_examples": len(self.labels), "class_counts": self._counts(self.labels)}
        files.write_json(self._manifest, {**self._config, **totals, "shards": shards})

    def _shard_path(self, shard: int) -> epath.Path:
        return self._folder / _shard_name(self._config["name"], shard, self.num_shards)

    def _sidecar_path(self, shard: int) -> epath.Path:
        return self._folder / "index" / f"{shard:05d}-of-{self.num_shards:05d}.json"

    def _counts(self, labels: Int32[np.ndarray, " n"]) -> list[int]:
        return np.bincount(labels, minlength=len(self._config["class_names"])).tolist()

    def _encode(self, index: int, image: UInt8[np.ndarray, "h w c"], prompt: str) -> bytes:
        label = int(self.labels[index])
        return examples.encode_example(
            {
                "image": examples.encode_png(image),
                "label": label,
                "class_name": self._config["class_names"][label],
                "prompt": prompt,
                "index": index,
            }
        )

    def _describe(self, shard: int) -> dict[str, Any]:
        """The sidecar that the shard on disk should have."""
        first, last = self.shard_range(shard)
        path = self._shard_path(shard)
        return {
            "num_examples": last - first,
            "num_bytes": path.stat().length,
            "sha256": files.sha256(path),
            "class_counts": self._counts(self.labels[first:last]),
            "first_index": first,
        }

    def _is_written(self, shard: int) -> bool:
        if not self._shard_path(shard).exists() or not self._sidecar_path(shard).exists():
            return False
        try:
            return files.read_json(self._sidecar_path(shard)) == self._describe(shard)
        except InputError:
            return False


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"provenance must be JSON, got {value!r}")


def _checked_config(**values: Any) -> dict[str, Any]:
    """The values as JSON gives them back, so that they compare with a file; InputError if wrong."""
    config = json.loads(json.dumps({"format": _FORMAT, **values}, default=_plain))
    for fault in _faults(config):
        raise InputError(f"generated set: {fault}")
    return config


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    names, counts, shape = config["class_names"], config["counts"], config["image_shape"]
    if not re.fullmatch("[a-z][a-z0-9_]*", config["name"]):
        yield f"name {config['name']!r}: use lower-case letters, digits and _, a letter first"
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        yield f"class names {repeated} occur twice; give every class its own"
    if len(names) != len(counts):
        yield f"{len(names)} class names but {len(counts)} counts; give one of each a class"
    if min(counts, default=0) < 0 or not sum(counts):
        yield f"counts {counts}: give numbers >= 0, not all 0"
    if len(shape) != 3 or shape[2] not in (1, 3):
        yield f"image shape {shape}: use [h, w, 1 or 3]"
    for key in ("copies", "images_per_shard"):
        if config[key] < 1:
            yield f"{key}={config[key]}: must be at least 1"
