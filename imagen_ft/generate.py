"""Samples a labelled set of synthetic images and writes it as TFRecord shards, a TFDS folder.

python -m imagen_ft.generate --config=configs/digits/generate.py --workdir=runs/digits/generated

For every class it makes as many images as the real set has, times config.copies. The same command
goes on where it stopped: a complete shard is never made again. --verify reads a finished set back.
"""

import json
from importlib import metadata

import numpy as np
from absl import flags
from tqdm import tqdm

from imagen_ft.assembly import load_cascade, parameter_shapes
from imagen_ft.cascade import Cascade
from input_pipeline import sources
from input_pipeline.files import InputError
from input_pipeline.synthetic import SyntheticWriter, verify
from launch.runtime import app
from launch.runtime.config import plain
from launch.runtime.workdir import lock


def define_flags(values: flags.FlagValues) -> None:
    """Flags of this task alone."""
    flags.DEFINE_bool(
        "verify", False, "read a finished set back and check every record", flag_values=values
    )


def make_writer(args: app.Arguments, cascade: Cascade) -> SyntheticWriter:
    """Opens the set in the work directory, with all that decides about its images."""
    config = args.config
    real = sources.load(config.real_source)
    if tuple(real.class_names) != cascade.class_names:
        raise InputError("config.real_source and the cascade have different class names")
    size = cascade.stages[-1].denoiser.size
    return SyntheticWriter(
        args.workdir,
        name=config.name,
        class_names=real.class_names,
        image_shape=(size, size, cascade.stages[-1].denoiser.channels),
        counts=np.bincount(real.labels, minlength=len(real.class_names)),
        copies=config.copies,
        images_per_shard=config.images_per_shard,
        provenance={
            "config": plain(config),
            "weights": list(cascade.digests),
            "version": metadata.version("imagen-ft"),
        },
    )


def generate(args: app.Arguments, cascade: Cascade, writer: SyntheticWriter) -> None:
    """Writes the shards that are missing, then the metadata and the manifest."""
    ranges = {shard: writer.shard_range(shard) for shard in writer.pending_shards()}
    total, left = len(writer.labels), sum(last - first for first, last in ranges.values())
    names = np.array(cascade.class_names)
    with tqdm(total=total, initial=total - left, desc=args.workdir.name, unit="image") as bar:
        for shard, (first, last) in ranges.items():
            indices = np.arange(first, last)
            prompts = names[writer.labels[indices]].tolist()
            images = cascade.sample(
                prompts, args.config.seed, indices, args.config.batch_size, bar.update
            )
            writer.write_shard(shard, images, prompts)
    if ranges or not writer.complete:
        writer.finish()


def main(args: app.Arguments) -> None:
    """Runs the task."""
    if args.flags.verify and not args.dry_run:
        report = verify(args.workdir)
        print(json.dumps(report, indent=2))
        if not report["ok"]:
            raise InputError(f"{args.workdir} has faults (above): delete its shards and run again")
        return
    if args.dry_run:
        app.describe(args.config, **parameter_shapes(args.config))
        return
    if args.config.batch_size < 1:
        raise InputError(f"config.batch_size={args.config.batch_size}: at least 1 is needed")
    cascade = load_cascade(args.config)
    writer = make_writer(args, cascade)
    lock(args.workdir)
    generate(args, cascade, writer)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags)
