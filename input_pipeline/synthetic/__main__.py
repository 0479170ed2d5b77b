"""Exports a synthetic set for trainers that do not read TFRecord.

python -m input_pipeline.synthetic --set=runs/synthetic --export=webdataset --to=DIR
python -m input_pipeline.synthetic --set=runs/synthetic --export=folder --to=DIR
python -m input_pipeline.synthetic --set=runs/synthetic --export=array_record --to=DIR

folder        DIR/CLASS/00000012.png: a folder for each class, for torchvision's ImageFolder,
              which numbers the classes in order of their names; classes.txt has them by label
webdataset    DIR/NAME-000000.tar: files 00000012.png, .cls (the label) and .json
array_record  DIR: random access for Grain and TFDS (`tfds.data_source`), without TensorFlow

The same command resumes an interrupted export. Each shard is read once, and its checksums are
verified.
"""

import concurrent.futures
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath
from tqdm import tqdm

from input_pipeline.records import tfds_metadata
from input_pipeline.records.array_record import write_array_record
from input_pipeline.records.tfrecord import TFRecordFile
from input_pipeline.synthetic.source import SyntheticSource, parse
from input_pipeline.synthetic.writer import REPAIR, description
from launch import files
from launch.cli import exit_code, parse_flags, say
from launch.cpus import usable_cpus
from launch.errors import InputError
from launch.runtime.locks import lock

CLAIM, CLASSES = "export.json", "classes.txt"
_LONGEST = 255  # bytes in a file name, on most file systems
SUFFIXES = {"png": ".png", "jpeg": ".jpg"}


class Export:
    """What all formats need: the set's records, the folder, and which shards are done."""

    def __init__(self, source: SyntheticSource, folder: str, kind: str):
        """Starts or resumes an export to a folder; `kind` is a key of `WRITERS`."""
        self.source, self.kind = source, kind
        manifest = source.manifest
        self.name, self.num_shards = manifest["name"], source.plan.num_shards
        self.suffix = SUFFIXES[manifest["encoding"]["format"]]
        if not files.is_local(folder):
            raise InputError(f"{folder}: exports need a mounted folder; mount or copy it")
        self.folder = Path(folder)
        # 1. The folder must hold this export, or nothing.
        # The manifest has all checksums, so it identifies the set.
        claim = {"format": kind, "set": files.json_digest(manifest)}
        path = self.folder / CLAIM
        if path.exists():
            if {k: files.read_object(path).get(k) for k in claim} != claim:
                raise InputError(f"{folder} has another export; choose another folder")
        elif self.folder.exists() and any(p.name[0] != "." for p in self.folder.iterdir()):
            # Hidden files may be left over from an export that was killed at its start.
            raise InputError(f"{folder} is not empty; choose another folder")
        # 2. Take it. `.done` has an empty file for each finished shard.
        lock(epath.Path(folder))
        files.write_json(path, claim)
        (self.folder / ".done").mkdir(exist_ok=True)
        files.remove_temporaries(self.folder)

    def pending(self) -> list[int]:
        """Shards that are not exported yet."""
        done = {int(path.name) for path in (self.folder / ".done").iterdir()}
        return [shard for shard in range(self.num_shards) if shard not in done]

    def finished(self, shard: int) -> None:
        """Notes that a shard is exported and on the disk."""
        (self.folder / ".done" / str(shard)).touch()

    def records(self, shard: int) -> Iterator[dict[str, Any]]:
        """Yields the fields of each record of a shard, with texts decoded."""
        path, source = self.source.shard(shard).path, self.source
        indices = source.plan.indices(shard).tolist()
        for record, (_, data) in enumerate(TFRecordFile.scan(path)):
            if isinstance(data, InputError):
                raise data
            where = f"{path}: record {record}"
            fields = parse(data, where)
            label = int(source.labels[indices[record]])
            # Checksums vouch for the bytes; the plan says which image this must be.
            own = {"index": indices[record], "label": label}
            own["class_name"] = source.class_names[label].encode()
            if any(fields[name] != value for name, value in own.items()):
                raise InputError(f"{where} must be image {indices[record]} of this set; {REPAIR}")
            try:
                prompt = fields["prompt"].decode()
            except UnicodeDecodeError:
                raise InputError(f"{where}: its prompt must be text; {REPAIR}") from None
            yield {**fields, "class_name": source.class_names[label], "prompt": prompt}


def to_folder(export: Export, shard: int) -> None:
    """Writes one file per image, in the folder of its class."""
    folders = set()
    for fields in export.records(shard):
        folder = export.folder / class_folder(fields["class_name"])
        if folder not in folders:
            folder.mkdir(exist_ok=True)
            folders.add(folder)
        (folder / f"{fields['index']:08d}{export.suffix}").write_bytes(fields["image"])
    # One sync for all images, before the shard is noted as done.
    os.sync()


def to_webdataset(export: Export, shard: int) -> None:
    """Writes one tar per shard."""
    path = export.folder / f"{export.name}-{shard:06d}.tar"
    with files.atomic_file(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for fields in export.records(shard):
            kept = {key: fields[key] for key in ("label", "class_name", "prompt", "index")}
            for suffix, data in (
                (export.suffix, fields["image"]),
                (".cls", str(fields["label"]).encode()),
                (".json", json.dumps(kept, sort_keys=True).encode()),
            ):
                # TarInfo's defaults (no time, no owner) give the same bytes in every export.
                member = tarfile.TarInfo(f"{fields['index']:08d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def to_array_record(export: Export, shard: int) -> None:
    """Writes one array_record file per shard, with the same tf.train.Examples."""
    file = export.source.shard(shard)
    path = export.folder / _array_record_name(export, shard)
    write_array_record(path, (file[record] for record in range(len(file))))


def _array_record_name(export: Export, shard: int) -> str:
    return f"{export.name}-train.array_record-{shard:05d}-of-{export.num_shards:05d}"


def finish_array_record(export: Export) -> None:
    """Writes TFDS's metadata, which makes the folder a data set."""
    manifest, plan = export.source.manifest, export.source.plan
    paths = [export.folder / _array_record_name(export, s) for s in range(export.num_shards)]
    tfds_metadata.write_metadata(
        export.folder,
        export.name,
        tfds_metadata.synthetic_features(
            export.source.class_names, manifest["image_shape"], manifest["encoding"]["format"]
        ),
        [plan.shard_size(shard) for shard in range(export.num_shards)],
        sum(path.stat().st_size for path in paths),
        description(plan, manifest["image_shape"]),
        homepage=CLAIM,
        file_format="array_record",
    )


def class_folder(name: str) -> str:
    """A folder name for a class: no separators, and not hidden."""
    # A leading dot would hide the folder from readers.
    return name.replace("/", "_").replace("\0", "_").lstrip(".") or "_"


WRITERS: dict[str, Callable[[Export, int], None]] = {
    "folder": to_folder,
    "webdataset": to_webdataset,
    "array_record": to_array_record,
}


def export_set(source: SyntheticSource, kind: str, folder: str) -> None:
    """Exports a set to a folder, as `kind`, a key of `WRITERS`."""
    if kind == "folder":
        # 1. Before anything is written.
        _check_class_folders(source.class_names)
    export = Export(source, folder, kind)
    # 2. The shards that are left, one per core at a time.
    pending, plan = export.pending(), source.plan
    left = sum(map(plan.shard_size, pending))
    bar = tqdm(total=plan.num_images, initial=plan.num_images - left, unit="image", desc=kind)

    def write(shard: int) -> None:
        WRITERS[kind](export, shard)
        export.finished(shard)
        bar.update(plan.shard_size(shard))

    with bar, concurrent.futures.ThreadPoolExecutor(usable_cpus()) as pool:
        try:
            for _ in pool.map(write, pending):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    # 3. What describes the whole.
    if kind == "array_record":
        finish_array_record(export)
    if kind == "folder":
        # Readers of folders number classes by sorted name; this file keeps the set's own order.
        text = "".join(f"{name}\n" for name in source.class_names)
        files.write_atomic(export.folder / CLASSES, text.encode())


def _check_class_folders(class_names: Sequence[str]) -> None:
    names = [class_folder(name) for name in class_names]
    # "a/b" and "a_b", for example.
    if len(set(names)) < len(names):
        raise InputError("two classes would share a folder; export as webdataset")
    # Names that most file systems, or classes.txt, cannot hold.
    for name in names:
        if name in (CLASSES, CLAIM):
            raise InputError(
                f"class {name!r} would have the name of another file as its folder; export as "
                "webdataset"
            )
        if len(name.encode()) > _LONGEST:
            raise InputError(
                f"class {name[:40]!r}... is too long for a folder name; export as webdataset"
            )
        if not name.isprintable():
            raise InputError(f"class {name!r} is not one line of text; export as webdataset")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("set", None, "folder of a synthetic set", flag_values=values)
    flags.DEFINE_enum("export", None, sorted(WRITERS), "the format", flag_values=values)
    flags.DEFINE_string(
        "to", None, "folder of the export; the same folder resumes", flag_values=values
    )


def main(argv: Sequence[str]) -> None:
    """Parses the command line and does the work; raises InputError for wrong flags."""
    values = parse_flags(argv, __doc__ or "", define_flags, required=("set", "export", "to"))
    if values is not None:
        export_set(SyntheticSource(values.set), values.export, values.to)
        say(f"{values.to}: complete", sys.stdout)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, see `launch.cli`."""
    argv = list(sys.argv if argv is None else argv)
    return exit_code(lambda: main(argv), "run the same command again to resume")


if __name__ == "__main__":
    sys.exit(run())
