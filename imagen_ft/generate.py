r"""Samples a labelled set of synthetic images and writes it as TFRecord shards, a TFDS folder.

python -m imagen_ft.generate --config=configs/digits/generate.py --workdir=runs/digits/synthetic
python -m imagen_ft.generate --config=configs/digits/generate.py --workdir=runs/digits/synthetic \
    --verify
python -m imagen_ft.generate --config=configs/imagenet/generate.py --workdir=data/set --worker=3 \
    --num_workers=64

For every class it draws as many images as the real set has, times config.copies. The same command
resumes where it stopped: a complete shard is never drawn again. Any number of workers, each a
process or a job of several hosts (--coordinator), can share one folder; the last one completes
it. --verify reads a set back, --repair draws again what is damaged or missing.

config.start, a source like config.real_source, and config.skip_steps start from real images in
place of noise (real guidance, He et al. 2023): each image from one of its class, chosen by the seed
and the image's number, and noised to the step after those that the base skips.
"""

import dataclasses
import functools
import time

import ml_collections
from absl import flags
from etils import epath

from imagen_ft.cascade import load_cascade
from imagen_ft.cascade.imported import as_imported
from imagen_ft.cascade.loading import (
    lacking_in_cascade,
    lacking_in_mesh,
    mesh_of,
    parameter_shapes,
    with_dtypes,
)
from imagen_ft.cascade.starts import Starts, check_start, lacking_in_start
from imagen_ft.generation.contents import lacking_in_set, set_fields
from imagen_ft.generation.repair import check, check_sound, discard_damaged
from imagen_ft.generation.worker import generate
from input_pipeline.synthetic.verify import verify
from input_pipeline.synthetic.writer import PROVENANCE, SyntheticWriter
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.devices import distributed, joining
from launch.runtime.limits import BATCH, MOST, SEED, check_numbers
from launch.runtime.locks import join
from launch.runtime.optional_fields import Defaults

_LIMITS = {
    "seed": SEED,
    "batch_size": BATCH,
    "copies": (1, MOST),
    "images_per_shard": (0, MOST),
}


def define_flags(values: flags.FlagValues) -> None:
    """Flags of this task alone."""
    joining.define_flags(values)
    flags.DEFINE_integer(
        "worker", 0, "index of this worker among --num_workers, from 0", flag_values=values
    )
    flags.DEFINE_integer("num_workers", 1, "workers that share --workdir", flag_values=values)
    flags.DEFINE_bool("verify", False, "read a set back and check every record", flag_values=values)
    flags.DEFINE_bool(
        "repair",
        False,
        "read a set back, and generate again what is damaged or missing",
        flag_values=values,
    )


def lacking(config: ml_collections.ConfigDict) -> Defaults:
    """Fields that a config lacks and the command line can set."""
    return {
        **lacking_in_cascade(config),
        **lacking_in_mesh(config),
        **lacking_in_set(config),
        **lacking_in_start(config),
    }


def _see(folder: epath.Path) -> None:
    # Waits up to 60 s until this host sees what the first one has written: network mounts lag.
    for _ in range(60):
        if (folder / PROVENANCE).exists():
            return
        time.sleep(1)
    raise InputError(
        f"{folder} must be the same folder on all hosts; choose one that all of them see"
    )


def main(args: app.Arguments) -> None:
    """Runs the task."""
    # 1. Check the config and the flags.
    values, args = args.flags, dataclasses.replace(args, config=with_dtypes(args.config))
    check_numbers(args.config, _LIMITS)
    if not 0 <= values.worker < values.num_workers:
        raise InputError(
            f"--worker must be from 0 to {values.num_workers - 1}, got {values.worker}"
        )
    if values.repair and values.num_workers > 1:
        raise InputError("--repair needs one worker; leave --num_workers out")
    check_start(args.config)
    # 2. Tasks that draw nothing.
    if args.dry_run:
        app.describe(args, **parameter_shapes(args.config))
        return
    if values.verify:
        check_sound(args, check(args))
        return
    # 3. Load the cascade, and settle what the set is.
    starts = Starts.open(args.config)
    args = dataclasses.replace(args, config=as_imported(args.config))
    cascade = load_cascade(args.config, mesh_of(args.config))
    fields = set_fields(args, cascade, starts)
    SyntheticWriter.check(**fields)

    # 4. Join the set as this worker, or remove its damage; one process does so for the job.
    def claim() -> None:
        if values.repair:
            discard_damaged(args, fields)
        else:
            join(args.workdir, values.worker, values.num_workers)
            SyntheticWriter(args.workdir, **fields)

    distributed.on_first_process(claim)
    distributed.agree(functools.partial(_see, args.workdir))
    # 5. Draw.
    generate(args, cascade, fields, starts)
    # 6. After a repair, read everything back once more.
    if values.repair:
        distributed.on_first_process(lambda: check_sound(args, verify(args.workdir)))


if __name__ == "__main__":
    app.run(main, __doc__, define_flags, lacking=lacking)
