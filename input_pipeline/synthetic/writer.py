"""Writes synthetic image sets, as shards that appear whole, so that writing can be resumed."""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from input_pipeline.records import image_codec, tf_example, tfds_metadata
from input_pipeline.records.tfrecord import starts_of, write_tfrecord
from input_pipeline.synthetic.plan import Plan
from input_pipeline.synthetic.provenance import checked_config, plan_of
from launch import files
from launch.errors import InputError

RESUME = "run imagen_ft.generate again"
REPAIR = "run imagen_ft.generate with --repair"
PROVENANCE, MANIFEST, INDEX = "provenance.json", "manifest.json", "index"
CARD = "README.md"
PNG = {"format": "png"}


def _described(changed: Mapping[str, tuple[Any, Any]]) -> str:
    pairs = ((field, *map(reprlib.repr, values)) for field, values in changed.items())
    return ", ".join(f"{field} = {before} (now {now})" for field, before, now in pairs)


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """The name that TFDS expects of a shard."""
    return f"{name}-train.tfrecord-{shard:05d}-of-{num_shards:05d}"


def sidecar_path(folder: epath.Path, shard: int, num_shards: int) -> epath.Path:
    """The file with a shard's size, checksum and record lengths."""
    return folder / INDEX / f"{shard:05d}-of-{num_shards:05d}.json"


def description(plan: Plan, image_shape: Sequence[int]) -> str:
    """A synthetic set in words, for TFDS."""
    height, width, _ = image_shape
    classes = sum(count > 0 for count in plan.counts)
    return (
        f"{plan.num_images:,} images of {classes:,} classes, {height}x{width} pixels, drawn by a "
        f"diffusion model: {plan.copies} for each of {plan.copy_size:,} real ones, class by class. "
        f"No image is real. {CARD} and {MANIFEST} of the set say how they were made."
    )


class SyntheticWriter:
    """Writes a synthetic set shard by shard; a new writer on the same folder resumes it."""

    def __init__(
        self,
        folder: epath.PathLike,
        name: str,
        class_names: Sequence[str],
        image_shape: Sequence[int],
        counts: Sequence[int] | Int[np.ndarray, " classes"],
        copies: int,
        images_per_shard: int,
        provenance: Mapping[str, Any],
        encoding: Mapping[str, Any] = PNG,
        repair: bool = False,
    ):
        """Starts or resumes a set.

        Args:
            folder: created if it is missing.
            name: of the data set: lower-case letters, digits and underscores.
            class_names: by label; all different, as TFDS demands.
            image_shape: [h, w, 1 or 3].
            counts: images of each class in the real set.
            copies: size of the synthetic set, in real sets.
            images_per_shard: the last shard may have fewer; 0 makes shards of 100 to 200 MB.
            provenance: all that decides about the images (config, weights, seed), for JSON.
            encoding: `format` png, or jpeg with `quality` (1 to 100).
            repair: whether a damaged `provenance.json` or `manifest.json` is deleted.

        Raises:
            InputError: a value is wrong, the folder holds a set made from something else, or one of
                these two files is damaged.
        """
        self.config = checked_config(
            name=name,
            class_names=class_names,
            image_shape=image_shape,
            counts=counts,
            copies=copies,
            images_per_shard=images_per_shard,
            provenance=provenance,
            encoding=encoding,
        )
        # What sidecars name, so that shards of another set are recognised.
        self.set_id = files.json_digest(self.config)
        self.folder, self.class_names = epath.Path(folder), tuple(class_names)
        self.plan = plan_of(self.config, self.folder)
        self._repair = repair
        self._claim_folder()

    @staticmethod
    def check(**fields: Any) -> None:
        """Raises InputError if arguments of `__init__` are wrong; writes nothing."""
        checked_config(**fields)

    def _claim_folder(self) -> None:
        # 1. If it holds a set, that must be made from the same.
        is_own = False
        for name in (PROVENANCE, MANIFEST):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                recorded = files.read_sealed(path)
            except InputError as error:
                if not self._repair:
                    raise InputError(f"{error}; {REPAIR}") from None
                # Repair: the file is written again, from the config.
                path.unlink()
                continue
            # A manifest has more fields than the provenance.
            recorded = {key: recorded[key] for key in self.config.keys() & recorded.keys()}
            if changed := files.differences(recorded, self.config):
                raise InputError(
                    f"{self.folder} has a set made with {_described(changed)}; choose "
                    "another folder or delete this one"
                )
            is_own = self._repair
        # 2. Without provenance, it must be empty, or its shards must be this set's.
        claim = self.folder / PROVENANCE
        if claim.exists():
            return
        is_own = is_own or (self._repair and any(map(self._is_mine, range(self.plan.num_shards))))
        if not is_own and (strangers := self._strangers()):
            raise InputError(
                f"{self.folder} has {strangers[0]}, but no {PROVENANCE}, so it is not a synthetic "
                f"set; choose another folder, or if it was one, {REPAIR}"
            )
        # 3. Claim it, before the first shard.
        (self.folder / INDEX).mkdir(parents=True, exist_ok=True)
        files.write_sealed(claim, self.config)

    def _strangers(self) -> list[str]:
        names = (path.name for path in self.folder.iterdir()) if self.folder.exists() else ()
        return sorted(name for name in names if name[0] != "." and name != INDEX)

    def _is_mine(self, shard: int) -> bool:
        sidecar = self.sidecar(shard)
        return sidecar is not None and sidecar.get("set") == self.set_id

    # Several processes may write different shards of one folder; the last to finish calls `finish`.
    def own_shards(self, worker: int = 0, num_workers: int = 1) -> range:
        """The shards of one of several workers; neighbouring ones, which can share batches."""
        count = self.plan.num_shards
        # Contiguous parts whose sizes differ by at most one.
        return range(worker * count // num_workers, (worker + 1) * count // num_workers)

    def is_written(self, shard: int) -> bool:
        """Whether a shard of this set is there with its size and checksum; reads the shard."""
        sidecar, path = self.sidecar(shard), self.shard_path(shard)
        if sidecar is None or not self.is_there(shard, sidecar):
            return False
        return files.sha256(path) == sidecar.get("sha256")

    def is_there(self, shard: int, sidecar: Mapping[str, Any] | None = None) -> bool:
        """Whether a shard of this set is there with its size; does not read the shard."""
        sidecar = self.sidecar(shard) if sidecar is None else sidecar
        path = self.shard_path(shard)
        if sidecar is None or sidecar.get("set") != self.set_id or not path.exists():
            return False
        # Sidecars are JSON that anything may have damaged: check types before adding lengths up.
        lengths, size = sidecar.get("lengths"), self.plan.shard_size(shard)
        if not isinstance(lengths, list) or {type(length) for length in lengths} != {int}:
            return False
        if not len(lengths) == sidecar.get("num_examples") == size:
            return False
        return path.stat().length == sidecar.get("num_bytes") == int(starts_of(lengths)[-1])

    def pending_shards(self, worker: int = 0, num_workers: int = 1) -> list[int]:
        """A worker's shards still to be written: missing, damaged or without a sidecar."""
        own = self.own_shards(worker, num_workers)
        written = files.in_parallel(self.is_written, own)
        return [shard for shard, done in zip(own, written, strict=True) if not done]

    def shards_there(self) -> set[int]:
        """Shards, of all workers, that have a sidecar; only lists names."""
        sidecars = self.folder.glob(f"{INDEX}/[0-9]*-of-{self.plan.num_shards:05d}.json")
        return {int(path.name.partition("-")[0]) for path in sidecars}

    def discard(self, shard: int) -> None:
        """Deletes a shard so that it is written again; the set is no longer complete."""
        # In this order no interruption leaves a manifest or a sidecar of a shard that is gone.
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for path in (self.sidecar_path(shard), self.shard_path(shard)):
            path.unlink(missing_ok=True)

    def write_encoded(self, shard: int, encoded: Iterable[tuple[bytes, str]]) -> None:
        """Writes one shard and then its sidecar; each is complete or absent.

        `encoded` has (file from `encode`, prompt) for each of `plan.indices(shard)`, in this order.
        """
        # 1. In a repair there is a manifest; without it the set counts as incomplete.
        (self.folder / MANIFEST).unlink(missing_ok=True)
        path, sidecar = self.shard_path(shard), self.sidecar_path(shard)
        sidecar.unlink(missing_ok=True)
        # 2. Leftovers of a process that was killed while writing this shard.
        for target in (path, sidecar):
            files.remove_temporaries(target.parent, target.name)
        # 3. The shard, record by record as images come, then the sidecar that vouches for it.
        indices = self.plan.indices(shard).tolist()
        records = (
            self._record(index, image, prompt)
            for index, (image, prompt) in zip(indices, encoded, strict=True)
        )
        written = write_tfrecord(path, records)
        files.write_atomic(sidecar, json.dumps(self.describe(**written._asdict())).encode())

    def describe(self, num_bytes: int, sha256: str, lengths: Sequence[int]) -> dict[str, Any]:
        """The sidecar of a shard with this size, checksum and record lengths."""
        return {
            "set": self.set_id,
            "num_examples": len(lengths),
            "num_bytes": num_bytes,
            "sha256": sha256,
            "lengths": list(lengths),
        }

    def damaged_metadata(self) -> list[str]:
        """Files of a complete set, other than shards, that are missing or changed."""
        digests = files.read_sealed(self.folder / MANIFEST)["files"]
        paths = {name: self.folder / name for name in digests}
        return [
            name
            for name, path in paths.items()
            if not path.exists() or files.sha256(path) != digests[name]
        ]

    def finish(self, card: Iterable[tuple[str, bytes]] = (), code: str = "") -> None:
        """Makes the folder a TFDS data set and, last, marks it as complete; one process at a time.

        `card` has names and contents of files for people; `code` is the version of the code.
        """
        # 1. All shards must be there.
        sidecars = self.sidecars()
        if pending := [shard for shard, sidecar in enumerate(sidecars) if sidecar is None]:
            some = ", ".join(map(str, pending[:5])) + (", ..." if len(pending) > 5 else "")
            raise InputError(f"{self.folder}: shards {some} are not written; {RESUME}")
        # 2. TFDS's metadata and the card.
        kept = ("num_examples", "num_bytes", "sha256")
        shards = [
            {"file": self.shard_path(shard).name, **{key: sidecar[key] for key in kept}}
            for shard, sidecar in enumerate(filter(None, sidecars))
        ]
        names = tfds_metadata.write_metadata(
            self.folder,
            self.config["name"],
            tfds_metadata.synthetic_features(
                self.config["class_names"],
                self.config["image_shape"],
                self.config["encoding"]["format"],
            ),
            [shard["num_examples"] for shard in shards],
            sum(shard["num_bytes"] for shard in shards),
            description(self.plan, self.config["image_shape"]),
            homepage=CARD,
        )
        for name, data in card:
            files.write_atomic(self.folder / name, data)
            names.append(name)
        # 3. Leftovers of killed processes, but not those of shards: a worker may be writing one.
        for name in (*names, MANIFEST, PROVENANCE):
            files.remove_temporaries(self.folder, name)
        # 4. The manifest.
        counts = [count * self.plan.copies for count in self.plan.counts]
        digests = {name: files.sha256(self.folder / name) for name in sorted(names)}
        # The manifest seals config, counts, and the checksums of all files.
        totals = {"num_examples": self.plan.num_images, "class_counts": counts, "files": digests}
        totals["code"] = code
        files.write_sealed(self.folder / MANIFEST, {**self.config, **totals, "shards": shards})

    def shard_path(self, shard: int) -> epath.Path:
        """Where a shard is."""
        return self.folder / shard_name(self.config["name"], shard, self.plan.num_shards)

    def sidecar_path(self, shard: int) -> epath.Path:
        """Where its sidecar is."""
        return sidecar_path(self.folder, shard, self.plan.num_shards)

    def sidecars(self) -> list[dict[str, Any] | None]:
        """By shard; None where the shard is not there, see `is_there`."""

        def find(shard: int) -> dict[str, Any] | None:
            sidecar = self.sidecar(shard)
            return sidecar if self.is_there(shard, sidecar) else None

        return files.in_parallel(find, range(self.plan.num_shards))

    def sidecar(self, shard: int) -> dict[str, Any] | None:
        """A shard's sidecar; None if it is missing or damaged."""
        try:
            return files.read_object(self.sidecar_path(shard))
        except InputError:
            return None

    def encode(self, image: np.ndarray) -> bytes:
        """The bytes of an image file, in the set's encoding."""
        expected, encoding = tuple(self.config["image_shape"]), self.config["encoding"]
        if image.shape != expected or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {expected}, got {image.dtype} {image.shape}")
        if encoding["format"] == "png":
            return image_codec.encode_png(image)
        return image_codec.encode_jpeg(image, encoding["quality"])

    def _record(self, index: int, image: bytes, prompt: str) -> bytes:
        label = int(self.plan.labels[index])
        return tf_example.encode_example(
            {
                "image": image,
                "label": label,
                "class_name": self.config["class_names"][label],
                "prompt": prompt,
                "index": index,
            }
        )
