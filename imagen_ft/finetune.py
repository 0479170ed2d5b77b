"""Trains one stage of the cascade: from scratch, from another run, or from public weights.

python -m imagen_ft.finetune --config=configs/digits/finetune_base4.py --workdir=runs/base4
python -m imagen_ft.finetune --config=configs/imagenet/imagen_base64.py --preflight=v4:4x4x16

The same command goes on where it stopped: it takes its own newest sound checkpoint, and only if
there is none the weights of --config.init_from, and if that is empty new ones. On several hosts
start it on each; it finds the others by --coordinator or by what the cluster says.
"""

import functools
from collections.abc import Sequence

import jax
from absl import flags
from jax.sharding import Mesh

from imagen_ft.text import class_names
from imagen_ft.text.encoders import TextEncoder, make_text_encoder, text_shapes
from imagen_ft.training.pictures import make_pictures
from imagen_ft.training.run import Training, augment, check_config, transform, watch
from imagen_ft.training.update import make_evaluation, table_of
from imagen_ft.training.warm_start import check_start, make_create
from input_pipeline import sources
from input_pipeline.batches import loader
from input_pipeline.source import Source
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.devices import distributed
from launch.runtime.devices.mesh import (
    local_rows,
    make_mesh,
    replicate,
)
from launch.runtime.preflight import preflight
from launch.runtime.training.loop import fit
from launch.runtime.workdir import claim_workdir


def define_flags(values: flags.FlagValues) -> None:
    """The task's own flags."""
    distributed.define_flags(values)
    preflight.define_flags(values)


def _load_images(training: Training) -> tuple[Source, tuple[str, ...]]:
    source = sources.load(training.config.train_source)
    names = class_names.resolve(training.config.class_names, source.class_names)
    channels = source[0]["image"].shape[-1]
    if channels != training.denoiser.channels:
        raise InputError(
            f"config.stage.channels={training.denoiser.channels}, but the images of "
            f"config.train_source have {channels}"
        )
    watched = sources.load(training.config.evaluation_source).class_names
    if watched != source.class_names:
        raise InputError(
            f"config.evaluation_source has {len(watched)} classes, not the "
            f"{len(source.class_names)} of config.train_source: "
            f"{_difference(watched, source.class_names)}"
        )
    return source, names


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    odd = sorted(set(ours) ^ set(theirs))
    return f"{odd[0]} is in one of them only" if odd else "they come in another order"


def _train(args: app.Arguments, training: Training, encoder: TextEncoder, mesh: Mesh) -> None:
    config, denoiser = args.config, training.denoiser
    source, names = _load_images(training)
    inputs = {"text": encoder.digest} if encoder.digest else {}
    # A resumed run would draw other batches from other images.
    digest = source.digest()
    inputs |= check_start(config) | ({"train_source": digest} if digest else {})
    text_table = table_of(encoder.embed(names), denoiser)
    null_text = table_of(encoder.null()[0], denoiser)
    # A stage that is trained on parts of its images is watched on parts from their middle.
    size, crop, flip = config.stage.size, config.get("crop_size", 0), config.get("flip", False)
    whole = functools.partial(transform, size=size)
    watched = functools.partial(watch, size=size, crop=denoiser.size)
    random = functools.partial(augment, size=size, crop=crop, flip=flip)
    batches = loader.batches(
        source,
        config.batch_size,
        config.seed,
        transform=whole,
        augment=random if crop or flip else None,
        rows=local_rows(mesh, config.batch_size),
    )
    placed = replicate(mesh, text_table), replicate(mesh, null_text)
    evaluate = make_evaluation(config, denoiser, training.loss, mesh, placed[0], watched)
    pictures = None
    if config.get("pictures_every", 0):
        pictures = make_pictures(config, denoiser, mesh, names, text_table, null_text, watched)
    claim_workdir(args.workdir, config, inputs)
    with jax.set_mesh(mesh):
        fit(
            workdir=args.workdir,
            config=config,
            mesh=mesh,
            abstract=training.abstract,
            create=make_create(
                config, denoiser, training.text_shape, training.tx, training.decays, mesh
            ),
            train_step=training.step(mesh, *placed),
            batches=functools.partial(
                loader.iterate, batches, workers=config.get("loader_workers", 0)
            ),
            evaluate=evaluate,
            pictures=pictures,
            label=args.workdir.name,
        )


def main(args: app.Arguments) -> None:
    """Runs the task."""
    training = Training.of(args.config)
    if args.dry_run:
        _, encoder_shapes = text_shapes(args.config.text)
        shapes = training.abstract.variables["params"]
        app.describe(args.config, unet=shapes, **encoder_shapes)
        return
    if args.flags.preflight:
        count = sum(leaf.size for leaf in jax.tree.leaves(training.abstract.variables["params"]))
        preflight.run(
            args.flags.preflight,
            training.lower,
            args.config.mesh,
            count,
            args.flags.preflight_effort,
        )
        return
    mesh = make_mesh(args.config.mesh)
    check_config(training, mesh)
    _train(args, training, make_text_encoder(args.config.text), mesh)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags)
