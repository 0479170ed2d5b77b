"""Samples a labelled set of synthetic images and writes it as TFRecord shards, a TFDS folder.

python -m imagen_ft.generate --config=configs/digits/generate.py --workdir=runs/digits/generated
python -m imagen_ft.generate --config=... --workdir=DIR --worker=3 --num_workers=64

For every class it makes as many images as the real set has, times config.copies. The same command
goes on where it stopped: a complete shard is never made again. Any number of workers, each a
process or a job of several hosts (--coordinator), share one folder, and whoever is last completes
it. --verify reads a set back, --repair makes what is damaged or missing in it again.
"""

import dataclasses
import json
import time
from importlib import metadata

import jax
import ml_collections
import numpy as np
from absl import flags
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
from input_pipeline.synthetic_writer import MANIFEST, SyntheticWriter
from launch.runtime import app, distributed
from launch.runtime.config import plain
from launch.runtime.mesh import make_mesh
from launch.runtime.workdir import join, lock

# No image depends on them.
FREE = ("batch_size", "mesh")


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


def make_writer(args: app.Arguments, cascade: Cascade) -> SyntheticWriter:
    """Opens the set in the work directory, with all that decides about its images."""
    config = args.config
    names, counts = real_counts(config)
    denoiser = cascade.stages[-1].denoiser
    encoding = dict(plain(config.get("encoding", {"format": "png"})))
    size = encoding.pop("size", 0) or denoiser.size
    if size > denoiser.size:
        raise InputError(f"config.encoding.size={size}: the cascade draws {denoiser.size} px")
    kept = {name: value for name, value in plain(config).items() if name not in FREE}
    return SyntheticWriter(
        args.workdir,
        name=config.name,
        class_names=names,
        image_shape=(size, size, denoiser.channels),
        counts=counts,
        copies=config.copies,
        images_per_shard=config.get("images_per_shard", 0),
        provenance={
            "config": kept,
            "weights": list(cascade.digests),
            "version": metadata.version("imagen-ft"),
        },
        encoding=encoding,
        repair=args.flags.repair,
    )


def generate(args: app.Arguments, cascade: Cascade, writer: SyntheticWriter) -> None:
    """Writes this worker's shards that are missing; the last worker completes the set."""
    values = args.flags
    pending = _pending(writer, values.worker, values.num_workers)
    began, plan = time.perf_counter(), writer.plan
    own = writer.own_shards(values.worker, values.num_workers)
    with Progress(writer, own, pending, args.workdir.name) as progress:
        indices = np.concatenate([plan.indices(shard) for shard in pending] or [[]]).astype(int)
        labels = plan.labels[indices]
        prompts = cascade.class_names or writer.class_names
        cascade = dataclasses.replace(cascade, class_names=prompts)
        with ShardStream(writer, pending, prompts) as stream:
            batch_size = args.config.batch_size
            for images in cascade.draw_classes(labels, args.config.seed, indices, batch_size):
                stream.add(images)
                progress.drew(len(images))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all shards are written")
    if len(indices):
        seconds = time.perf_counter() - began
        print(f"{len(indices):,} images in {seconds:,.0f} s, {len(indices) / seconds:.4g} a second")
    distributed.on_first_process(lambda: _finish(writer, bool(pending)))


def _pending(writer: SyntheticWriter, worker: int, num_workers: int) -> list[int]:
    """Shards to be written, the same on every process of the job."""
    own = writer.own_shards(worker, num_workers)
    written = np.zeros(len(own), bool)
    if jax.process_index() == 0:
        there = writer.shards_there()
        known = [number for number, shard in enumerate(own) if shard in there]
        for number in tqdm(known, desc="looking at shards", unit="shard", delay=5):
            written[number] = writer.is_written(own[number])
    if jax.process_count() > 1:
        written = np.asarray(multihost_utils.broadcast_one_to_all(written))
    return [shard for shard, done in zip(own, written, strict=True) if not done]


def _finish(writer: SyntheticWriter, wrote: bool) -> None:
    if not wrote and (writer.folder / MANIFEST).exists():
        return
    missing = writer.plan.num_shards - len(writer.shards_there())
    if missing:
        print(f"{writer.folder}: {missing} shards of other workers are not written yet")
        return
    writer.finish(make_card(writer, writer.config["provenance"]))
    print(f"{writer.folder}: complete, {writer.plan.num_images:,} images")


def check(args: app.Arguments) -> Report:
    """Reads the set back and prints what was found."""
    with tqdm(desc=f"verifying {args.workdir.name}", unit="image", mininterval=1) as bar:
        report = verify(args.workdir, bar.update)
    print(json.dumps(report.as_json(), indent=2))
    return report


def repair(args: app.Arguments) -> None:
    """Makes what is damaged or missing again."""
    lock(args.workdir)
    cascade = load_cascade(args.config, _mesh(args.config))
    writer = make_writer(args, cascade)
    report = check(args)
    for shard in report.shards:
        writer.discard(shard)
    if report.faults["damaged"]:
        (writer.folder / MANIFEST).unlink(missing_ok=True)
    generate(args, cascade, writer)
    if report.faults["foreign"]:
        raise InputError(f"{report.faults['foreign'][0]}: of another set; take such files away")
    if report.faults["blank"]:
        raise InputError(f"{args.workdir}: blank images (above) are what the cascade draws")


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
    if values.repair and (values.num_workers > 1 or jax.process_count() > 1):
        raise InputError("--repair is one process's work: leave --num_workers away")
    if values.verify:
        if not check(args).ok:
            raise InputError(f"{args.workdir} has faults (above): --repair makes them again")
        return
    if args.config.batch_size < 1:
        raise InputError(f"config.batch_size={args.config.batch_size}: at least 1 is needed")
    distributed.check_joined()
    if values.repair:
        repair(args)
        return
    cascade = load_cascade(args.config, _mesh(args.config))

    def claim() -> None:
        join(args.workdir, values.worker, values.num_workers)
        make_writer(args, cascade)

    distributed.on_first_process(claim)
    generate(args, cascade, make_writer(args, cascade))


if __name__ == "__main__":
    app.run(main, __doc__, define_flags)
