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
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from imagen_ft.cascade import Cascade, load_cascade
from imagen_ft.cascade.loading import parameter_shapes
from imagen_ft.generation.contents import code_version, set_fields
from imagen_ft.generation.repair import check, check_sound, discard_damaged
from imagen_ft.generation.stream import Progress, ShardStream
from imagen_ft.text import class_names
from input_pipeline.synthetic.card import make_card
from input_pipeline.synthetic.verify import verify
from input_pipeline.synthetic.writer import MANIFEST, PROVENANCE, SyntheticWriter
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.devices import distributed
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.locks import join, one_at_a_time


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
