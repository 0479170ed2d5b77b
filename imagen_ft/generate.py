"""Samples a labelled set of synthetic images and writes it as TFRecord shards, a TFDS folder.

python -m imagen_ft.generate --config=configs/digits/generate.py --workdir=runs/digits/generated
python -m imagen_ft.generate --config=... --workdir=DIR --worker=3 --num_workers=64

For every class it makes as many images as the real set has, times config.copies. The same command
goes on where it stopped: a complete shard is never made again. Any number of workers, each a
process or a job of several hosts (--coordinator), share one folder, and whoever is last completes
it. --verify reads a set back, --repair makes what is damaged or missing in it again.
"""

import dataclasses
import functools
import json
import subprocess
import time
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from imagen_ft import class_names
from imagen_ft.assembly import load_cascade, parameter_shapes
from imagen_ft.cascade import Cascade
from imagen_ft.generation import Progress, ShardStream
from input_pipeline import files, sources
from input_pipeline.files import InputError
from input_pipeline.synthetic_card import make_card
from input_pipeline.synthetic_check import Report, verify
from input_pipeline.synthetic_writer import INDEX, MANIFEST, PROVENANCE, SyntheticWriter
from launch.runtime import app, distributed
from launch.runtime.config import plain
from launch.runtime.mesh import make_mesh
from launch.runtime.workdir import join, lock, one_at_a_time

# No image depends on these fields, wherever in the config: what they name is known by its digest,
# and counts are told as such.
FREE = ("batch_size", "cache", "counts", "mesh", "real_source", "remat", "run")


def define_flags(values: flags.FlagValues) -> None:
    """Flags of this task alone."""
    distributed.define_flags(values)
    options = dict(flag_values=values)
    flags.DEFINE_integer("worker", 0, "which of --num_workers this one is, from 0", **options)
    flags.DEFINE_integer("num_workers", 1, "workers that share --workdir", **options)
    flags.DEFINE_bool("verify", False, "read a set back and check every record", **options)
    flags.DEFINE_bool(
        "repair", False, "read a set back, and make again what is damaged or missing", **options
    )


def real_counts(config: ml_collections.ConfigDict) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes, and how many images the real set has of each.

    Args:
        config: `real_source`, or `counts`: a JSON file, class -> number; and `class_names`.

    Raises:
        InputError: they are not the config's classes, or neither or both of the fields are there.
    """
    source, path = config.get("real_source"), config.get("counts")
    if bool(source) == bool(path):
        raise InputError("config.real_source or config.counts: one of them says how many images")
    if source:
        real = sources.load(source)
        names = tuple(real.class_names)
        class_names.resolve(config.class_names, names, "config.real_source")
        return names, np.bincount(real.labels, minlength=len(names)).tolist()
    found = files.read_object(path)
    wrong = [name for name, n in found.items() if type(n) is not int or n < 0]
    if wrong:
        raise InputError(f"{path}: the count of {wrong[0]!r} is {found[wrong[0]]!r}, no number")
    wanted = class_names.resolve(config.class_names) or tuple(found)
    if wanted != tuple(found) and sorted(found) != sorted(wanted):
        wanted = tuple(sorted(found))  # WordNet ids
        class_names.resolve(config.class_names, wanted, path)
    return wanted, [found[name] for name in wanted]


def set_fields(args: app.Arguments, cascade: Cascade) -> dict[str, Any]:
    """All that decides about the images of the set, as arguments of `SyntheticWriter`.

    Raises:
        InputError: a field of the config is wrong.
    """
    config = args.config
    names, counts = real_counts(config)
    denoiser = cascade.stages[-1].denoiser
    encoding = dict(plain(config.get("encoding", {"format": "png"})))
    size = encoding.pop("size", 0) or denoiser.size
    if size > denoiser.size:
        raise InputError(f"config.encoding.size={size}: the cascade draws {denoiser.size} px")
    encoder = getattr(cascade, "encoder", None)
    return dict(
        name=config.name,
        class_names=names,
        image_shape=(size, size, denoiser.channels),
        counts=counts,
        copies=config.copies,
        images_per_shard=config.get("images_per_shard", 0),
        provenance={
            "config": without(plain(config), FREE),
            "weights": list(cascade.digests),
            "text": encoder.digest if encoder else "",
        },
        encoding=encoding,
    )


def without(config: Any, names: Collection[str]) -> Any:
    """A config less the fields of these names, at any depth."""
    if isinstance(config, dict):
        return {key: without(x, names) for key, x in config.items() if key not in names}
    return config


def generate(args: app.Arguments, cascade: Cascade, fields: dict[str, Any]) -> None:
    """Writes this worker's shards that are missing; the last worker completes the set.

    Args:
        args: of the command.
        cascade: draws the images.
        fields: see `set_fields`.
    """
    writer = SyntheticWriter(args.workdir, **fields)
    pending = _pending(writer, args.flags.worker, args.flags.num_workers)
    began, plan = time.perf_counter(), writer.plan
    own = writer.own_shards(args.flags.worker, args.flags.num_workers)
    indices = np.concatenate([plan.indices(shard) for shard in pending] or [[]]).astype(int)
    prompts = class_names.resolve(args.config.class_names) or writer.class_names
    drawing = dataclasses.replace(cascade, class_names=prompts).draw_classes(
        plan.labels[indices], args.config.seed, indices, args.config.batch_size
    )
    with (
        Progress(writer, own, pending, args.workdir.name) as progress,
        ShardStream(writer, pending, prompts) as stream,
    ):
        for images in drawing:
            distributed.agree(functools.partial(stream.add, images))
            progress.drew(len(images))
        distributed.agree(stream.finish)
    if len(indices):
        seconds = time.perf_counter() - began
        print(f"{len(indices):,} images in {seconds:,.0f} s, {len(indices) / seconds:.4g} a second")
    distributed.on_first_process(lambda: _finish(writer, pending))


def _pending(writer: SyntheticWriter, worker: int, num_workers: int) -> list[int]:
    """Shards to be written, the same on every process of the job."""
    own = writer.own_shards(worker, num_workers)
    missing = np.zeros(len(own), bool)
    if jax.process_index() == 0:
        missing[:] = np.isin(own, writer.pending_shards(worker, num_workers))
    if jax.process_count() > 1:
        missing = np.asarray(multihost_utils.broadcast_one_to_all(missing))
    return [shard for shard, wanted in zip(own, missing, strict=True) if wanted]


def _finish(writer: SyntheticWriter, written: list[int]) -> None:
    with one_at_a_time(writer.folder):
        if (writer.folder / MANIFEST).exists():
            print(f"{writer.folder}: complete, {writer.plan.num_images:,} images")
            return
        missing = {shard for shard, found in enumerate(writer.sidecars()) if found is None}
        if lost := sorted(missing & set(written)):
            raise InputError(
                f"{writer.folder}: shard {lost[0]}, which this job has written, is not to be seen "
                "here: all its hosts need one folder"
            )
        if missing:
            print(
                f"{writer.folder}: {len(missing)} shards of other workers are not written yet; "
                "whoever writes the last one completes the set"
            )
            return
        writer.finish(make_card(writer, writer.config["provenance"]), code_version())
        print(f"{writer.folder}: complete, {writer.plan.num_images:,} images")


def code_version() -> str:
    """Of this code: the package's, and the commit where there is one."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
        commit = found.stdout.strip() if found.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    try:
        version = metadata.version("imagen-ft")
    except metadata.PackageNotFoundError:
        version = ""
    return " ".join(filter(None, (version, commit))) or "unknown"


def check(args: app.Arguments) -> Report:
    """Reads the set back and prints what was found."""
    with tqdm(desc=f"verifying {args.workdir.name}", unit="image", mininterval=1) as bar:
        report = verify(args.workdir, bar.update)
    print(json.dumps(report.as_json(), indent=2))
    return report


def check_sound(args: app.Arguments, report: Report) -> None:
    """What is left to do, by what was found.

    Raises:
        InputError: something is.
    """
    if report.shards or len(report.faults["damaged"]):
        raise InputError(f"{args.workdir} has faults (above): --repair makes them again")
    if foreign := report.faults["foreign"]:
        raise InputError(f"{foreign[0]}: of another set; take such files away")
    if report.faults["blank"]:
        raise InputError(
            f"{args.workdir}: images of one colour (above): so the cascade draws them, to make "
            "them again changes nothing; look at its guidance and thresholds"
        )


def discard_damaged(args: app.Arguments, fields: dict[str, Any]) -> None:
    """Takes away what is damaged, so that it is made again."""
    folder = args.workdir
    if not any((folder / name).exists() for name in (PROVENANCE, MANIFEST, INDEX)):
        raise InputError(f"{folder}: holds no generated set; check the path")
    lock(folder)
    writer = SyntheticWriter(folder, **fields, repair=True)
    report = check(args)
    for shard in report.shards:
        writer.discard(shard)
    if not report.ok:
        (writer.folder / MANIFEST).unlink(missing_ok=True)


def _see(folder: epath.Path) -> None:
    """Looks whether this host sees what the first one has begun; a mount can be late."""
    for _ in range(60):
        if (folder / PROVENANCE).exists():
            return
        time.sleep(1)
    raise InputError(f"{folder} is not the same folder on all hosts: name one that all see")


def _mesh(config: ml_collections.ConfigDict) -> Mesh | None:
    return make_mesh(config.get("mesh", {"data": -1})) if jax.device_count() > 1 else None


def main(args: app.Arguments) -> None:
    """Runs the task."""
    values = args.flags
    if args.dry_run:
        app.describe(args.config, **parameter_shapes(args.config))
        return
    if not 0 <= values.worker < values.num_workers:
        raise InputError(f"--worker={values.worker} is not in 0 .. {values.num_workers - 1}")
    if values.repair and values.num_workers > 1:
        raise InputError("--repair is one worker's work: leave --num_workers away")
    if values.verify:
        check_sound(args, check(args))
        return
    if args.config.batch_size < 1:
        raise InputError(f"config.batch_size={args.config.batch_size}: at least 1 is needed")
    distributed.check_joined()
    cascade = load_cascade(args.config, _mesh(args.config))
    fields = set_fields(args, cascade)
    SyntheticWriter.check(**fields)

    def claim() -> None:
        if values.repair:
            discard_damaged(args, fields)
        else:
            join(args.workdir, values.worker, values.num_workers)
            SyntheticWriter(args.workdir, **fields)

    distributed.on_first_process(claim)
    distributed.agree(functools.partial(_see, args.workdir))
    generate(args, cascade, fields)
    if values.repair:
        distributed.on_first_process(lambda: check_sound(args, verify(args.workdir)))


if __name__ == "__main__":
    app.run(main, __doc__, define_flags)
