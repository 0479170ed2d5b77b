r"""Trains classifiers on real images, generated images, or both; one run a seed.

python -m classifiers.train --config=configs/digits/classifier.py:arm=real+generated,k=10 \
    --workdir=runs/classifier

The same command goes on where it stopped. Seed n is trained in the folder seed_n of the run
directory, and learning_curves.png shows how all went. All images of config.train_sources count the
same, unless config.synthetic_weight says which share of every batch is synthetic;
config.loader_workers processes read them, 0 for threads.
config.augment, repeats and mix say what happens to images before the model sees them.
config.init_from names a run, or weights that classifiers.weights imported, to begin with.
config.vmap_seeds trains all seeds as one program: faster where one does not fill a chip.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from classifiers import from_config
from classifiers.models.presets import Classifier
from classifiers.training import curves, vmap_seeds, warm_start
from classifiers.training.update import Batch, Training
from input_pipeline import sources
from input_pipeline.augment.policy import Transform
from input_pipeline.batches import loader
from input_pipeline.batches.mixture import Union, check_weight
from input_pipeline.source import Source, check_labels, in_memory
from launch.errors import InputError
from launch.runtime import app
from launch.runtime.devices import distributed
from launch.runtime.devices.mesh import local_rows, make_mesh, put_batch
from launch.runtime.images import to_float
from launch.runtime.preflight import preflight
from launch.runtime.state import TrainState
from launch.runtime.training.loop import check_training, fit
from launch.runtime.workdir import claim_workdir

Reader = Callable[[int], Callable[[int, int], Iterator[Batch]]]
Measure = Callable[[dict[str, Any]], float]


def define_flags(values: flags.FlagValues) -> None:
    """The task's own flags."""
    distributed.define_flags(values)
    preflight.define_flags(values)


def make_measure(
    source: Source,
    model: Classifier,
    batch_size: int,
    transform: Transform | None,
    mesh: Mesh,
) -> Measure:
    """Accuracy of variables on a source, whose images all processes share among them."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-batch_size // ways) * ways
    rows = local_rows(mesh, batch_size)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def count(variables: dict[str, Any], batch: Batch) -> Array:
        found = jnp.argmax(model.apply(variables, to_float(batch["image"])), axis=-1)
        return ((found == batch["label"]) & batch["mask"]).sum()

    def measure(variables: dict[str, Any]) -> float:
        batches = loader.eval_batches(source, batch_size, transform, rows)
        correct = [count(variables, put_batch(mesh, batch)) for batch in batches]
        return sum(map(int, correct)) / len(source)

    return measure


def join_training_images(
    config: ml_collections.ConfigDict, opened: Mapping[str, Source], validation: Source
) -> Source:
    """The union of all sources to train on.

    Args:
        config: `in_memory`, `synthetic_weight`.
        opened: the sources of `config.train_sources`.
        validation: the source that training watches itself with.

    Raises:
        InputError: one is missing or has other classes, a label is of none of them, or a domain
            that the config speaks of has no images.
    """
    source = Union(list(opened.values()))
    if tuple(source.class_names) != tuple(validation.class_names):
        raise InputError("config.train_sources and config.evaluation_source have different classes")
    for each in (source, validation):
        check_labels(each)
    if config.get("synthetic_weight") is not None:
        check_weight(source.domain, config.synthetic_weight)
    return in_memory(source) if config.in_memory else source


def train(
    args: app.Arguments, training: Training, validation: Source, inputs: dict[str, str]
) -> None:
    """Trains every seed.

    Args:
        args: of the command.
        training: what the config says.
        validation: images that training watches itself with.
        inputs: digests of what the run begins with.
    """
    config, mesh = args.config, make_mesh(args.config.mesh)
    augment, transform = from_config.make_augment(config), from_config.make_transform(config)
    opened = {name: sources.load(spec) for name, spec in config.train_sources.items()}
    source = join_training_images(config, opened, validation)
    digests = {name: source.digest() for name, source in opened.items()} | inputs
    digests = {name: digest for name, digest in digests.items() if digest}
    claim_workdir(args.workdir, config, digests)

    workers, together = config.get("loader_workers", 0), config.get("vmap_seeds")
    if together:
        workers = -(-workers // config.seeds)

    def reader(seed: int) -> Callable[[int, int], Iterator[Batch]]:
        data = loader.batches(
            source,
            config.batch_size,
            seed,
            # Without augmentation an image of training is prepared as one of evaluation.
            transform=None if augment else transform,
            augment=augment,
            rows=local_rows(mesh, config.batch_size),
            synthetic_weight=config.get("synthetic_weight"),
            repeats=config.get("repeats", 1),
        )
        return functools.partial(loader.iterate, data, workers=workers)

    names = validation.class_names
    distributed.on_first_process(lambda: from_config.save_class_names(args.workdir, names))
    measure = make_measure(
        validation, training.model, config.evaluation_batch_size, transform, mesh
    )
    run = _train_together if together else _train_in_turn
    with jax.set_mesh(mesh):
        run(args.workdir, training, mesh, reader, measure)
    distributed.on_first_process(lambda: curves.write(args.workdir, config.seeds))


def _train_in_turn(
    workdir: epath.Path, training: Training, mesh: Mesh, reader: Reader, measure: Measure
) -> None:
    train_step = training.step(mesh)
    for seed in range(training.config.seeds):
        fit(
            workdir=workdir / f"seed_{seed}",
            config=training.config,
            mesh=mesh,
            abstract=training.abstract,
            create=functools.partial(warm_start.create, training, seed, mesh),
            train_step=train_step,
            batches=reader(seed),
            evaluate=lambda state: {"validation_accuracy": measure(state.inference_variables)},
            label=f"{workdir.name} seed {seed}",
        )


def _train_together(
    workdir: epath.Path, training: Training, mesh: Mesh, reader: Reader, measure: Measure
) -> None:
    count, whole = training.config.seeds, vmap_seeds.stacked(training)

    def evaluate(state: TrainState) -> dict[str, Any]:
        found = np.array([measure(vmap_seeds.variables_of(state, seed)) for seed in range(count)])
        return {"validation_accuracy": found.mean(), "validation_accuracy_by_seed": found}

    state = fit(
        workdir=workdir / vmap_seeds.FOLDER,
        config=training.config,
        mesh=mesh,
        abstract=whole.abstract,
        create=lambda: vmap_seeds.create(
            [warm_start.create(training, seed, mesh) for seed in range(count)], mesh
        ),
        train_step=whole.step(mesh),
        batches=vmap_seeds.batches([reader(seed) for seed in range(count)]),
        evaluate=evaluate,
        label=f"{workdir.name} {count} seeds",
    )
    vmap_seeds.write(workdir, state, training.config.total_steps, count)


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config, values = args.config, args.flags
    runs = not (args.dry_run or values.preflight)
    expected = from_config.expected_input(config)
    if runs or expected is None:
        validation = sources.load(config.evaluation_source)
        found = len(validation.class_names), from_config.image_shape(config, validation)
        from_config.check_input(config, expected, found)
        expected = found
    training = Training.of(config, *expected)
    # Wrong numbers end here.
    from_config.make_augment(config)
    params = training.abstract.variables["params"]
    if args.dry_run:
        app.describe(config, model=params)
    elif values.preflight:
        vmap_seeds.check_alone(config)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        preflight.run(values.preflight, training.lower, config.mesh, count, values.preflight_effort)
    else:
        check_training(config, make_mesh(config.mesh))
        vmap_seeds.check(config)
        inputs = warm_start.check_start(config, training.model)
        train(args, training, validation, inputs)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags)
