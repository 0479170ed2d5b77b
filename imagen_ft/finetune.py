"""Trains one stage of the cascade: from scratch, from another run, or from public weights.

python -m imagen_ft.finetune --config=configs/digits/finetune_base4.py --workdir=runs/base4
python -m imagen_ft.finetune --config=configs/imagenet/imagen_base64.py --preflight=v4:4x4x16

The same command goes on where it stopped: it takes its own newest sound checkpoint, and only if
there is none the weights of --config.init_from, and if that is empty new ones. On several hosts
start it on each; it finds the others by --coordinator or by what the cluster says.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from imagen_ft import class_names
from imagen_ft.assembly import make_denoiser, text_shapes
from imagen_ft.losses import DiffusionLoss, make_loss
from imagen_ft.stage import Denoiser
from imagen_ft.text import TextEncoder, make_text_encoder
from imagen_ft.training import loss_name, make_evaluation, make_update, table_of
from imagen_ft.training_pictures import make_pictures
from imagen_ft.warm_start import check_start, make_create
from input_pipeline import loader, sources
from input_pipeline.augment.crop import central_crop, random_crop
from input_pipeline.augment.flip import random_flip
from input_pipeline.augment.resize import square
from input_pipeline.files import InputError
from launch.runtime import app, distributed, preflight
from launch.runtime.ema import MAIN, Decay, make_decays
from launch.runtime.loop import check_training, fit
from launch.runtime.mesh import batch_sharding, local_rows, make_mesh, replicate, with_shardings
from launch.runtime.optimizers import frozen_parameters, make_optimizer, make_schedule
from launch.runtime.state import TrainState, abstract_state
from launch.runtime.step import TrainStep, make_step
from launch.runtime.workdir import claim_workdir

Batch = dict[str, Any]


def define_flags(values: flags.FlagValues) -> None:
    """The task's own flags."""
    distributed.define_flags(values)
    preflight.define_flags(values)


@dataclasses.dataclass(frozen=True)
class Training:
    """What a config says of a run, with nothing loaded and nothing allocated.

    Attributes:
        config: of the run.
        denoiser: the network, at the size that it is trained at.
        loss: what is minimised.
        text_shape: of one prompt's states.
        names: of the classes; empty where the images' own will do.
        tx: the optimiser.
        decays: of the moving averages.
        frozen: which parameters stay as they are.
        abstract: shapes of the state.
    """

    config: ml_collections.ConfigDict
    denoiser: Denoiser
    loss: DiffusionLoss
    text_shape: tuple[int, int]
    names: tuple[str, ...]
    tx: optax.GradientTransformation
    decays: dict[str, Decay]
    frozen: Any
    abstract: TrainState

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Training":
        """Reads a config.

        Raises:
            InputError: a field is wrong.
        """
        denoiser = _crop(make_denoiser(config.stage), config.get("crop_size", 0))
        loss, decays = make_loss(config.loss, denoiser), make_decays(config.ema)
        text_shape, _ = text_shapes(config.text)
        frozen = frozen_parameters(config.frozen, denoiser.shapes(text_shape)["params"])
        tx = make_optimizer(config.optimizer, config.total_steps, frozen)
        args = jax.random.key(config.seed), jnp.zeros(text_shape)
        abstract = abstract_state(denoiser.init, args, tx, decays)
        names = class_names.resolve(config.class_names)
        return cls(config, denoiser, loss, text_shape, names, tx, decays, frozen, abstract)

    def step(self, mesh: Mesh, text_table: Any, null_text: Any) -> TrainStep:
        """The update on a mesh.

        Args:
            mesh: where the state lives.
            text_table: states of every class's prompt, [classes, n, d].
            null_text: states that stand for no text, [n, d].
        """
        update = make_update(
            self.config,
            self.denoiser,
            self.loss,
            self.tx,
            make_schedule(self.config.optimizer, self.config.total_steps),
            self.decays,
            self.frozen,
            unroll=mesh.devices.flat[0].platform == "cpu",
        )
        return make_step(update, mesh, self.abstract, (text_table, null_text))

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The update's program for a mesh whose devices need not be there."""
        shape = jax.ShapeDtypeStruct
        dtype = self.denoiser.model.dtype
        whole = NamedSharding(mesh, P())
        table = shape((max(1, len(self.names)), *self.text_shape), dtype, sharding=whole)
        step = self.step(mesh, table, shape(self.text_shape, dtype, sharding=whole))
        check_config(self, mesh)
        size, count = self.denoiser.size, self.config.batch_size
        place = batch_sharding(mesh)
        batch = dict(
            image=shape((count, size, size, self.denoiser.channels), np.uint8, sharding=place),
            label=shape((count,), np.int32, sharding=place),
        )
        with jax.set_mesh(mesh):
            return step.lower(with_shardings(mesh, self.abstract), batch)


def _crop(denoiser: Denoiser, size: int) -> Denoiser:
    """The same network for parts of its images; 0 is whole images."""
    if not size:
        return denoiser
    factor = denoiser.size // max(1, denoiser.low_size)
    if not 0 < size <= denoiser.size or size % factor or not denoiser.low_size:
        raise InputError(
            f"config.crop_size={size}: a multiple of {factor} up to stage.size={denoiser.size} is "
            "needed, and a stage of super-resolution; 0 trains on whole images"
        )
    return dataclasses.replace(denoiser, size=size, low_size=size // factor)


def check_config(training: Training, mesh: Mesh) -> None:
    """Looks for numbers that training could not work with.

    Raises:
        InputError: names the field.
    """
    config = training.config
    check_training(config, mesh)
    parts = config.accumulation
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if parts < 1 or config.batch_size % (ways * parts):
        raise InputError(
            f"config.accumulation={parts}: batch_size={config.batch_size} cannot be taken in so "
            f"many parts on {ways} devices of mesh.data x mesh.fsdp"
        )
    if not 0.0 <= config.text_drop <= 1.0:
        raise InputError(f"config.text_drop={config.text_drop}: a probability is in [0, 1]")
    if config.evaluation_draws < 1:
        raise InputError(f"config.evaluation_draws={config.evaluation_draws}: at least 1 is needed")
    if config.get("pictures_every", 0) and config.pictures.count < 1:
        raise InputError(f"config.pictures.count={config.pictures.count}: at least 1 is needed")
    measured = [loss_name(name) for name in training.decays or (MAIN,)]
    if config.get("best") and config.best.metric not in measured:
        raise InputError(
            f"config.best.metric={config.best.metric!r} is not evaluated: there is "
            f"{', '.join(measured)}"
        )


def _transform(example: Batch, size: int) -> Batch:
    return {**example, "image": square(example["image"], size)}


def _watch(example: Batch, size: int, crop: int) -> Batch:
    return central_crop(_transform(example, size), crop)


def _augment(example: Batch, rng: np.random.Generator, size: int, crop: int, flip: bool) -> Batch:
    if crop and crop != size:
        example = random_crop(example, rng, crop)
    return random_flip(example, rng) if flip else example


def _load_images(training: Training) -> tuple[sources.Source, tuple[str, ...]]:
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
    digest = sources.digest(config.train_source)
    inputs |= check_start(config) | ({"train_source": digest} if digest else {})
    text_table = table_of(encoder.embed(names), denoiser)
    null_text = table_of(encoder.null()[0], denoiser)
    # A stage that is trained on parts of its images is watched on parts from their middle.
    size, crop, flip = config.stage.size, config.get("crop_size", 0), config.get("flip", False)
    whole = functools.partial(_transform, size=size)
    watched = functools.partial(_watch, size=size, crop=denoiser.size)
    augment = functools.partial(_augment, size=size, crop=crop, flip=flip)
    batches = loader.batches(
        source,
        config.batch_size,
        config.seed,
        transform=whole,
        augment=augment if crop or flip else None,
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
