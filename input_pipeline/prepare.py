r"""Makes a copy of a config's images that is read faster: resized, as ArrayRecord.

python -m input_pipeline.prepare --config=configs/imagenet/resnet50.py:data=imagenet.zip \
    --source=train_sources.real --to=data/imagenet_320 --raw
python -m input_pipeline.prepare --config=configs/cifar10/resnet.py \
    --source=train_sources.real --to=data/cifar10_32 --size=32 --raw
python -m input_pipeline.prepare --config=configs/imagenet/vit_s16.py \
    --source=train_sources.real --to=data/imagenet_256 --size=256 --workers=16

The copy has the order, labels and names of the images; training reads it as the source
dict(name="tfds", path=DIR, split="train"), or as `prepared=DIR` in configs/imagenet. Images whose
shorter side is longer than --size are shrunk to it by the rule of training. With --raw they are not
compressed: three to four times the bytes, and next to no time to decode.

The same command resumes where it stopped. Folders without dataset_info.json are not complete.
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
PER_SHARD = 1024  # images: those of ImageNet make 100 MB as JPEG, 400 MB raw


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """An image [h, w, c] with its shorter side brought to `size`, if that is longer."""
    shorter = min(image.shape[:2])
    if shorter <= size:
        return image
    height, width = (size * length // shorter for length in image.shape[:2])
    return resize(image, (height, width))


class Copy:
    """A folder with a copy of a source, complete or in the making; it can be pickled."""

    def __init__(self, source: Source, folder: epath.PathLike, size: int, quality: int):
        """Describes a copy; nothing is written.

        Args:
            source: real images in colour.
            folder: of the copy.
            size: of the shorter side at most, in pixels.
            quality: of JPEG, 1 to 100; 0 is uncompressed.

        Raises:
            InputError: the folder is in a store, or the source is empty, grey or generated.
        """
        if not files.is_local(folder):
            raise InputError(f"--to must be a mounted folder, got {folder}; mount one")
        check_labels(source)
        if source.domain.any():
            raise InputError(
                "--source has synthetic images, and the copy would make them real ones; "
                "use input_pipeline.synthetic for those"
            )
        if (channels := source[0]["image"].shape[-1]) != 3:
            raise InputError(f"--source must have images in colour, got {channels} channel")
        self.source, self.folder = source, Path(folder)
        self.size, self.quality = size, quality
        self.per_shard = PER_SHARD
        self.num_shards = -(-len(source) // self.per_shard)

    def claim(self) -> None:
        """Begins the folder, or goes on with it, and keeps other processes out.

        Raises:
            InputError: it holds something else, or another process is in it.
        """
        labels = hashlib.sha256(self.source.labels.astype("<i4").tobytes()).hexdigest()
        made_of = dict(
            source=self.source.digest(),
            labels=labels,
            class_names=list(self.source.class_names),
            size=self.size,
            quality=self.quality,
            images_per_shard=self.per_shard,
        )
        path = self.folder / CLAIM
        if path.exists():
            changed = files.differences(files.read_sealed(path), made_of)
            if changed:
                names = ", ".join(field.partition(".")[0] for field in changed)
                raise InputError(
                    f"--to={self.folder} has a copy with another {names}; choose another folder"
                )
        elif self.folder.exists() and any(p.name[0] != "." for p in self.folder.iterdir()):
            # Hidden files are what one that was killed at its start has left.
            raise InputError(
                f"--to must be an empty folder, got {self.folder}; choose another folder"
            )
        lock(epath.Path(self.folder))
        files.write_sealed(path, made_of)
        (self.folder / INDEX).mkdir(exist_ok=True)
        for folder in (self.folder, self.folder / INDEX):
            files.remove_temporaries(folder)

    def path(self, shard: int) -> Path:
        """Where a shard is."""
        return self.folder / f"{NAME}-train.array_record-{shard:05d}-of-{self.num_shards:05d}"

    def rows(self, shard: int) -> range:
        """The source's images in a shard."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.source)))

    def entry(self, shard: int) -> dict[str, Any] | None:
        """What is noted of a shard that is written whole; None where it is not."""
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
        entry = dict(num_bytes=path.stat().st_size, sha256=files.sha256(path))
        files.write_sealed(self._entry_path(shard), entry)
        return len(rows)

    def _record(self, i: int) -> bytes:
        example = self.source[i]
        image = shrink(example["image"], self.size)
        if self.quality:
            data = image_codec.encode_jpeg(image, self.quality)
        else:
            data = image_codec.encode_bmp(image)
        label, name = int(example["label"]), self.source.key(i)
        return tf_example.encode_example({"image": data, "label": label, "file_name": name})

    def finish(self) -> None:
        """Makes the folder a TFDS data set, with which it is complete."""
        sizes = [self.path(shard).stat().st_size for shard in range(self.num_shards)]
        tfds_metadata.write_metadata(
            self.folder,
            NAME,
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
    """Writes what is missing of a copy, several shards at a time, each in a process of its own.

    Raises:
        InputError: see `Copy.claim`; an image is damaged; or a process was killed.
    """
    copy.claim()
    pending = [shard for shard in range(copy.num_shards) if copy.entry(shard) is None]
    left = sum(len(copy.rows(shard)) for shard in pending)
    total = len(copy.source)
    with tqdm(total=total, initial=total - left, unit="image", desc="prepare") as bar:
        for count in _written(copy, pending, min(workers, len(pending))):
            bar.update(count)
    copy.finish()


def _written(copy: Copy, shards: Sequence[int], workers: int) -> Iterator[int]:
    """Images of each shard that has been written, in any order."""
    if workers <= 1:
        yield from map(copy.write, shards)
        return
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
            pool.shutdown(cancel_futures=True)
            raise


_COPY: Copy  # Of a process that writes.


def _begin(copy: Copy) -> None:
    global _COPY
    end_with_parent(0, 1)
    _COPY = copy


def _write(shard: int) -> int:
    return _COPY.write(shard)


def find_source(config: Fields, field: str) -> Source:
    """Opens the source that a config has in a field, such as `train_sources.real`.

    Raises:
        InputError: there is no such field, or see `sources.load`.
    """
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
    """Adds the flags of this command."""
    number = functools.partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_string("config", None, "FILE.py[:arguments]", flag_values=values)
    flags.DEFINE_string("source", None, "the config field with the images", flag_values=values)
    flags.DEFINE_string("to", None, "a new folder, or one to resume", flag_values=values)
    number("size", 320, "of the shorter side, in pixels", lower_bound=1, upper_bound=2**14)
    number("quality", 95, "of JPEG", lower_bound=1, upper_bound=100)
    flags.DEFINE_bool("raw", False, "do not compress", flag_values=values)
    number("workers", None, "processes; by default one per CPU", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Parses the command line and does the work.

    Raises:
        InputError: wrong flags, or see `prepare`.
    """
    values = parse_flags(argv, __doc__ or "", define_flags, required=("config", "source", "to"))
    if values is None:
        return
    source = find_source(load_config(values.config), values.source)
    copy = Copy(source, values.to, values.size, 0 if values.raw else values.quality)
    prepare(copy, values.workers or usable_cpus())
    say(f'{values.to}: complete; dict(name="tfds", path={values.to!r}, split="train")', sys.stdout)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, by the conventions of `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return exit_code(lambda: main(argv), "run the same command again to resume")


if __name__ == "__main__":
    sys.exit(run())
