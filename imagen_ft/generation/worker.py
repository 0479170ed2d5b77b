"""One worker's part of a synthetic set: it draws its shards; the last worker completes the set.

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
    """Draws and writes this worker's missing shards; the last worker completes the set.

    `fields` come from `contents.set_fields`; `starts` are real images to start from, None: noise.
    """
    # 1. Find this worker's shards that are missing. One process looks for all: others may see an
    # older state of a shared folder, and would then draw other images.
    writer = SyntheticWriter(args.workdir, **fields)
    workers = args.flags.worker, args.flags.num_workers
    own = writer.own_shards(*workers)
    pending = distributed.decide_on_first_process(lambda: _pending(writer, *workers))
    # 2. Draw their images as one stream across shards.
    prompts = class_names.resolve(args.config.class_names) or writer.class_names
    began, count = time.perf_counter(), sum(map(writer.plan.shard_size, pending))
    with (
        SetProgressBar(writer, own, pending, args.workdir.name) as progress,
        ShardStream(writer, pending, prompts) as stream,
    ):
        if pending:
            request = _request(writer, pending, args.config, starts)
            # A cascade that draws any text gets the set's classes here: labels index into them.
            for [images] in dataclasses.replace(cascade, class_names=prompts).stream(request):
                # If one process fails to write, all stop; else the others would wait for it.
                distributed.agree(functools.partial(stream.add, images))
                progress.drew(len(images))
        distributed.agree(stream.finish)
    if count:
        seconds = time.perf_counter() - began
        print(f"{count:,} images in {seconds:,.0f} s, {count / seconds:.4g} per second")
    # 3. Complete the set if no shard is missing.
    distributed.on_first_process(lambda: complete(writer, pending))


def _request(
    writer: SyntheticWriter,
    shards: Sequence[int],
    config: ml_collections.ConfigDict,
    starts: Starts | None,
) -> Request:
    # Positions place each image in the drawing order of the whole set. They fix its row in a batch,
    # so that its last bits do not depend on which shards are missing or whose they are.
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
    # The worker's shards to write; says which of them exist but are damaged.
    pending = writer.pending_shards(worker, num_workers)
    if damaged := sorted(writer.shards_there() & set(pending)):
        say(f"{writer.folder}: shards {listed(damaged)} are damaged; making them again")
    return pending


def complete(writer: SyntheticWriter, written: Sequence[int]) -> None:
    """Completes the set if no shard is missing, and prints its state.

    Raises `InputError` if a shard in `written`, by this job, cannot be seen here.
    """
    # Several workers may finish at the same time: one of them completes the set.
    with one_at_a_time(writer.folder):
        # 1. Complete already? Its metadata may still be damaged.
        if (writer.folder / MANIFEST).exists():
            damaged = writer.damaged_metadata()
            if not damaged:
                say(f"{writer.folder}: complete, {writer.plan.num_images:,} images", sys.stdout)
                return
            names = ", ".join(damaged)
            say(f"{writer.folder}: {names} missing or damaged; writing again")
        # 2. Shards still missing: another worker will complete the set.
        missing = {shard for shard, sidecar in enumerate(writer.sidecars()) if sidecar is None}
        if lost := sorted(missing & set(written)):
            raise InputError(
                f"{writer.folder}: shard {lost[0]}, which this job has written, is not visible "
                "here; use a folder that all hosts share"
            )
        if missing:
            count = f"{len(missing)} shards" if len(missing) > 1 else "1 shard"
            verb = "are" if len(missing) > 1 else "is"
            say(
                f"{writer.folder}: {count} of other workers {verb} not written yet; the worker "
                "that writes the last one completes the set",
                sys.stdout,
            )
            return
        # 3. Write the metadata, the manifest last.
        writer.finish(make_card(writer, writer.config["provenance"]), code_version())
        say(f"{writer.folder}: complete, {writer.plan.num_images:,} images", sys.stdout)
