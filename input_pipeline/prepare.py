r"""Copies a config's images into a form that is read faster: resized, as ArrayRecord.

python -m input_pipeline.prepare --config=configs/imagenet/resnet50.py:data=imagenet.zip \
    --source=train_sources.real --to=data/imagenet_320 --raw
python -m input_pipeline.prepare --config=configs/cifar10/resnet.py \
    --source=train_sources.real --to=data/cifar10_32 --size=32 --raw
python -m input_pipeline.prepare --config=configs/imagenet/vit_s16.py \
    --source=train_sources.real --to=data/imagenet_256 --size=256 --workers=16

The copy keeps the order, labels and names of the images. Training reads it as the source
dict(name="tfds", path=DIR, split="train"), or as `prepared=DIR` in configs/imagenet. Images whose
shorter side is longer than --size are shrunk to it, by the same rule as in training. With --raw
they are not compressed: three to four times the bytes, and next to no time to decode.

The same command resumes an interrupted copy. A folder without dataset_info.json is not complete.
"""

import concurrent.futures
import functools
import hashlib
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from input_pipeline import sources
from input_pipeline.augment.resize import resize
from input_pipeline.batches.workers import end_with_parent
from input_pipeline.records import image_codec, tf_example, tfds_metadata
from input_pipeline.records.array_record import write_array_record
from input_pipeline.source import Source, check_labels
from launch import files
from launch.cli import exit_code, parse_flags, say
from launch.cpus import usable_cpus
from launch.errors import InputError
from launch.fields import Fields
from launch.runtime.config import load_config, plain
from launch.runtime.locks import lock

NAME, CLAIM, INDEX = "prepared", "prepared.json", "index"
PER_SHARD = 1024  # images; for ImageNet 100 MB as JPEG, 400 MB raw


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Brings the shorter side of an image [h, w, c] down to `size` pixels, if it is longer."""
    shorter = min(image.shape[:2])
    if shorter <= size:
        return image
    height, width = (size * length // shorter for length in image.shape[:2])
    return resize(image, (height, width))


class Copy:
    """A copy of a source in a local folder, complete or in progress; it can be pickled."""

    def __init__(self, source: Source, folder: epath.PathLike, size: int, quality: int):
        """Describes a copy, and writes nothing yet.

        `size` limits the shorter side, in pixels; `quality` is JPEG's, 1 to 100, and 0 is
        uncompressed.
        """
        # ArrayRecord needs a file system; a copy must not turn synthetic images into real ones.
        if not files.is_local(folder):
            raise InputError(f"--to must be a local or mounted folder, got {folder}; use one")
        # A wrong label would only show when the copy is read.
        check_labels(source)
        if source.domain.any():
            raise InputError(
                "--source has synthetic images, and the copy would count them as real; use "
                "input_pipeline.synthetic for those"
            )
        if (channels := source[0]["image"].shape[-1]) != 3:
            raise InputError(f"--source must have images in colour, got {channels} channel")
        self.source, self.folder = source, Path(folder)
        self.size, self.quality = size, quality
        self.per_shard = PER_SHARD
        self.num_shards = -(-len(source) // self.per_shard)

    def claim(self) -> None:
        """Creates or resumes the folder and locks it; InputError if it holds something else."""
        # 1. What decides about the bytes of the copy. Resuming needs the same.
        labels = hashlib.sha256(self.source.labels.astype("<i4").tobytes()).hexdigest()
        made_of = dict(
            source=self.source.digest(),
            labels=labels,
            class_names=list(self.source.class_names),
            size=self.size,
            quality=self.quality,
            images_per_shard=self.per_shard,
        )
        # 2. The folder must be ours, or empty.
        path = self.folder / CLAIM
        if path.exists():
            # Another source, size or quality would mix two copies.
            changed = files.differences(files.read_sealed(path), made_of)
            if changed:
                names = ", ".join(field.partition(".")[0] for field in changed)
                raise InputError(
                    f"--to={self.folder} has a copy with a different {names}; choose another folder"
                )
        elif self.folder.exists() and any(p.name[0] != "." for p in self.folder.iterdir()):
            # Hidden files may be left over from a copy that was killed at its start.
            raise InputError(
                f"--to must be an empty folder, got {self.folder}; choose another folder"
            )
        # 3. Take it. Temporary files left by a killed process go only now that nobody else writes.
        lock(epath.Path(self.folder))
        files.write_sealed(path, made_of)
        (self.folder / INDEX).mkdir(exist_ok=True)
        for folder in (self.folder, self.folder / INDEX):
            files.remove_temporaries(folder)

    def path(self, shard: int) -> Path:
        """The file of a shard, named as TFDS does."""
        return self.folder / f"{NAME}-train.array_record-{shard:05d}-of-{self.num_shards:05d}"

    def rows(self, shard: int) -> range:
        """Indices in the source of a shard's images."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.source)))

    def entry(self, shard: int) -> dict[str, Any] | None:
        """The size and checksum noted for a complete shard; None if it is missing or incomplete."""
        try:
            entry = files.read_sealed(self._entry_path(shard))
            size = self.path(shard).stat().st_size
        except (InputError, FileNotFoundError):
            return None
        return entry if size == entry["num_bytes"] else None

    def _entry_path(self, shard: int) -> Path:
        return self.folder / INDEX / f"{shard:05d}-of-{self.num_shards:05d}.json"

    def write(self, shard: int) -> int:
        """Writes a shard, then its entry, each whole or not at all; returns how many images."""
        path, rows = self.path(shard), self.rows(shard)
        write_array_record(path, map(self._record, rows))
        # The entry comes last: a shard without one is written again.
        entry = dict(num_bytes=path.stat().st_size, sha256=files.sha256(path))
        files.write_sealed(self._entry_path(shard), entry)
        return len(rows)

    def _record(self, i: int) -> bytes:
        example = self.source[i]
        image = shrink(example["image"], self.size)
        # BMP keeps every value; JPEG loses some quality once more.
        if self.quality:
            data = image_codec.encode_jpeg(image, self.quality)
        else:
            data = image_codec.encode_bmp(image)
        label, name = int(example["label"]), self.source.key(i)
        return tf_example.encode_example({"image": data, "label": label, "file_name": name})

    def finish(self) -> None:
        """Writes TFDS's metadata, which makes the copy complete."""
        sizes = [self.path(shard).stat().st_size for shard in range(self.num_shards)]
        tfds_metadata.write_metadata(
            self.folder,
            NAME,
            # TFDS has no BMP: None leaves the format to the reader.
            tfds_metadata.image_features(
                self.source.class_names,
                (None, None, 3),
                "jpeg" if self.quality else None,
                texts=("file_name",),
            ),
            [len(self.rows(shard)) for shard in range(self.num_shards)],
            sum(sizes),
            (
                f"{len(self.source):,} real images of {len(self.source.class_names):,} "
                f"classes, resized to {self.size} pixels on the shorter side; see {CLAIM} for "
                "their source."
            ),
            homepage=CLAIM,
            file_format="array_record",
        )


def prepare(copy: Copy, workers: int) -> None:
    """Writes the shards that a copy lacks, several at a time, each in its own process."""
    copy.claim()
    # Shards with an entry are complete: that is how a copy resumes.
    pending = [shard for shard in range(copy.num_shards) if copy.entry(shard) is None]
    left = sum(len(copy.rows(shard)) for shard in pending)
    total = len(copy.source)
    with tqdm(total=total, initial=total - left, unit="image", desc="prepare") as bar:
        for count in _written(copy, pending, min(workers, len(pending))):
            bar.update(count)
    copy.finish()


def _written(copy: Copy, shards: Sequence[int], workers: int) -> Iterator[int]:
    """Yields the number of images of each shard as it is finished, in any order."""
    if workers <= 1:
        yield from map(copy.write, shards)
        return
    # "spawn", since a forked child of a process with threads may hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin, (copy,)
    )
    with pool:
        try:
            writing = [pool.submit(_write, shard) for shard in shards]
            for future in concurrent.futures.as_completed(writing):
                yield future.result()
        except BrokenProcessPool:
            raise InputError(
                f"--workers={workers}: one of them was killed, perhaps for lack of memory; "
                "use fewer, and run the same command again to resume"
            ) from None
        except BaseException:
            # Ctrl-C or a damaged image: do not start the shards still waiting.
            pool.shutdown(cancel_futures=True)
            raise


_COPY: Copy  # set once in each worker, so that the labels are not pickled for every shard


def _begin(copy: Copy) -> None:
    global _COPY
    end_with_parent(0, 1)
    _COPY = copy


def _write(shard: int) -> int:
    return _COPY.write(shard)


def find_source(config: Fields, field: str) -> Source:
    """Opens the source in a config's field, such as `train_sources.real`."""
    spec: Any = plain(config)
    for name in field.split("."):
        if not isinstance(spec, Mapping) or name not in spec:
            raise InputError(
                f"--source must be a field of the config, got {field}: it has no {name!r}"
            )
        spec = spec[name]
    if not isinstance(spec, Mapping):
        raise InputError(f"--source={field} must be a source with a name, got {spec!r}")
    return sources.load(spec)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_string("config", None, "FILE.py[:arguments]", flag_values=values)
    flags.DEFINE_string("source", None, "config field of the images", flag_values=values)
    flags.DEFINE_string(
        "to", None, "folder of the copy; the same folder resumes", flag_values=values
    )
    number("size", 320, "length of the shorter side in pixels", lower_bound=1, upper_bound=2**14)
    number("quality", 95, "of JPEG", lower_bound=1, upper_bound=100)
    flags.DEFINE_bool("raw", False, "store pixels uncompressed", flag_values=values)
    number("workers", None, "processes; by default one per CPU", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Parses the command line and does the work; raises InputError for wrong flags."""
    values = parse_flags(argv, __doc__ or "", define_flags, required=("config", "source", "to"))
    if values is None:
        return
    # Quality 0 stands for --raw.
    source = find_source(load_config(values.config), values.source)
    copy = Copy(source, values.to, values.size, 0 if values.raw else values.quality)
    prepare(copy, values.workers or usable_cpus())
    say(f'{values.to}: complete; dict(name="tfds", path={values.to!r}, split="train")', sys.stdout)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, see `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return exit_code(lambda: main(argv), "run the same command again to resume")


if __name__ == "__main__":
    sys.exit(run())
