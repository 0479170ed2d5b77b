"""One worker's part of a generated set: it draws its shards, and completes the set if it is last.

All processes of a job are one worker, and make the same calls.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from imagen_ft.cascade import Cascade, Request
from imagen_ft.cascade.starts import Starts
from imagen_ft.generation.stream import SetProgressBar, ShardStream
from input_pipeline import class_names
from input_pipeline.synthetic.card import make_card
from input_pipeline.synthetic.writer import MANIFEST, SyntheticWriter
from launch.cli import say
from launch.code_version import code_version
from launch.errors import InputError, listed
from launch.runtime import app
from launch.runtime.devices import distributed
from launch.runtime.locks import one_at_a_time


def generate(
    args: app.Arguments, cascade: Cascade, fields: dict[str, Any], starts: Starts | None
) -> None:
    """Writes this worker's shards that are missing; the last worker completes the set.

    Args:
        args: of the command; its config has `class_names` and `seed`.
        cascade: draws the images.
        fields: see `contents.set_fields`.
        starts: real images that it begins with; None is noise.
    """
    writer = SyntheticWriter(args.workdir, **fields)
    workers = args.flags.worker, args.flags.num_workers
    own = writer.own_shards(*workers)
    pending = distributed.decide_on_first_process(lambda: _pending(writer, *workers))
    prompts = class_names.resolve(args.config.class_names) or writer.class_names
    began, count = time.perf_counter(), sum(map(writer.plan.shard_size, pending))
    with (
        SetProgressBar(writer, own, pending, args.workdir.name) as progress,
        ShardStream(writer, pending, prompts) as stream,
    ):
        if pending:
            request = _request(writer, pending, args.config, starts)
            # A cascade that draws any text draws the set's classes.
            for [images] in dataclasses.replace(cascade, class_names=prompts).stream(request):
                distributed.agree(functools.partial(stream.add, images))
                progress.drew(len(images))
        distributed.agree(stream.finish)
    if count:
        seconds = time.perf_counter() - began
        print(f"{count:,} images in {seconds:,.0f} s, {count / seconds:.4g} a second")
    distributed.on_first_process(lambda: complete(writer, pending))


def _request(
    writer: SyntheticWriter,
    shards: Sequence[int],
    config: ml_collections.ConfigDict,
    starts: Starts | None,
) -> Request:
    """The images of some shards."""
    plan, seed = writer.plan, config.seed
    indices = np.concatenate([plan.indices(shard) for shard in shards])
    positions = np.concatenate([plan.positions(shard) for shard in shards])
    labels = plan.labels[indices]
    request = Request(labels=labels, seed=seed, indices=indices, positions=positions)
    if starts is None:
        return request
    start = starts.of_classes(writer.class_names, labels, indices, seed)
    return dataclasses.replace(request, start=start, skip_steps=config.skip_steps)


def _pending(writer: SyntheticWriter, worker: int, num_workers: int) -> list[int]:
    """A worker's shards that are to be written; says which of them were there, but damaged."""
    pending = writer.pending_shards(worker, num_workers)
    if damaged := sorted(writer.shards_there() & set(pending)):
        say(f"{writer.folder}: shards {listed(damaged)} are damaged; making them again")
    return pending


def complete(writer: SyntheticWriter, written: Sequence[int]) -> None:
    """Completes the set if no shard is missing; prints what there is.

    Args:
        writer: of the set.
        written: shards that this job has written.

    Raises:
        InputError: one of these is missing.
    """
    with one_at_a_time(writer.folder):
        if (writer.folder / MANIFEST).exists():
            damaged = writer.damaged_metadata()
            if not damaged:
                say(f"{writer.folder}: complete, {writer.plan.num_images:,} images", sys.stdout)
                return
            names = ", ".join(damaged)
            say(f"{writer.folder}: {names} missing or damaged; writing again")
        missing = {shard for shard, sidecar in enumerate(writer.sidecars()) if sidecar is None}
        if lost := sorted(missing & set(written)):
            raise InputError(
                f"{writer.folder}: shard {lost[0]}, which this job has written, is not "
                "visible here; all its hosts need one folder"
            )
        if missing:
            count = f"{len(missing)} shards" if len(missing) > 1 else "1 shard"
            verb = "are" if len(missing) > 1 else "is"
            say(
                f"{writer.folder}: {count} of other workers {verb} not written yet; "
                "whoever writes the last one completes the set",
                sys.stdout,
            )
            return
        writer.finish(make_card(writer, writer.config["provenance"]), code_version())
        say(f"{writer.folder}: complete, {writer.plan.num_images:,} images", sys.stdout)
