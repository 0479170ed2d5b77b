r"""Trains classifiers on real images, generated images, or both; one run a seed.

python -m classifiers.train --config=configs/digits/classifier.py:arm=real+generated,k=10 \
    --workdir=runs/classifier

The same command goes on where it stopped. Seed n is trained in the folder seed_n of the run
directory. All images of config.train_sources count the same, unless config.synthetic_weight says
which share of every batch is synthetic; config.loader_workers processes read them, 0 for threads.
config.augment, repeats and mix say what happens to images before the model sees them.
config.init_from names a run, or weights that classifiers.weights imported, to begin with.
"""

import functools
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from absl import flags

from classifiers import recipes, warm_start
from classifiers.evaluate import make_predict
from classifiers.models.presets import Classifier
from classifiers.training import Training
from input_pipeline import loader, sources
from input_pipeline.augment.policy import Transform
from input_pipeline.files import InputError
from input_pipeline.mixture import Union, check_weight
from launch.runtime import app, distributed, preflight
from launch.runtime.loop import check_training, fit
from launch.runtime.mesh import local_rows, make_mesh
from launch.runtime.state import TrainState
from launch.runtime.workdir import claim_workdir


def define_flags(values: flags.FlagValues) -> None:
    """The task's own flags."""
    distributed.define_flags(values)
    preflight.define_flags(values)


def make_evaluation(
    source: sources.Source, model: Classifier, batch_size: int, transform: Transform | None = None
) -> Callable[[TrainState], dict[str, float]]:
    """Accuracy on a source, with the inference weights."""
    predict = make_predict(model, source, batch_size, transform)

    def evaluate(state: TrainState) -> dict[str, float]:
        predictions = predict(state.inference_variables)
        return {"validation_accuracy": float(np.mean(predictions == source.labels))}

    return evaluate


def load_training_images(
    config: ml_collections.ConfigDict, validation: sources.Source
) -> sources.Source:
    """The union of all sources to train on.

    Raises:
        InputError: one is missing or has other classes, or a domain that the config speaks of has
            no images.
    """
    source = Union([sources.load(spec) for spec in config.train_sources.values()])
    if tuple(source.class_names) != tuple(validation.class_names):
        raise InputError("config.train_sources and config.evaluation_source have different classes")
    if config.get("synthetic_weight") is not None:
        check_weight(source.domain, config.synthetic_weight)
    return sources.in_memory(source) if config.in_memory else source


def train(
    args: app.Arguments, training: Training, validation: sources.Source, inputs: dict[str, str]
) -> None:
    """Trains every seed.

    Args:
        args: of the command.
        training: what the config says.
        validation: images that training watches itself with.
        inputs: digests of what the run begins with.
    """
    config, mesh = args.config, make_mesh(args.config.mesh)
    augment, transform = recipes.make_augment(config), recipes.make_transform(config)
    source = load_training_images(config, validation)
    digests = {name: sources.digest(spec) for name, spec in config.train_sources.items()} | inputs
    claim_workdir(args.workdir, config, {name: found for name, found in digests.items() if found})
    train_step = training.step(mesh)
    evaluate = make_evaluation(validation, training.model, config.evaluation_batch_size, transform)
    for seed in range(config.seeds):
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
        with jax.set_mesh(mesh):
            fit(
                workdir=args.workdir / f"seed_{seed}",
                config=config,
                mesh=mesh,
                abstract=training.abstract,
                create=functools.partial(warm_start.create, training, seed, mesh),
                train_step=train_step,
                batches=functools.partial(
                    loader.iterate, data, workers=config.get("loader_workers", 0)
                ),
                evaluate=evaluate,
                label=f"{args.workdir.name} seed {seed}",
            )


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config, values = args.config, args.flags
    runs = not (args.dry_run or values.preflight)
    expected = recipes.expected_input(config)
    if runs or expected is None:
        validation = sources.load(config.evaluation_source)
        found = len(validation.class_names), recipes.image_shape(config, validation)
        recipes.check_input(config, expected, found)
        expected = found
    training = Training.of(config, *expected)
    # Wrong numbers end here.
    recipes.make_augment(config)
    params = training.abstract.variables["params"]
    if args.dry_run:
        app.describe(config, model=params)
    elif values.preflight:
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        preflight.run(values.preflight, training.lower, config.mesh, count, values.preflight_effort)
    else:
        check_training(config, make_mesh(config.mesh))
        inputs = warm_start.check_start(config, training.model)
        train(args, training, validation, inputs)


if __name__ == "__main__":
    app.run(main, __doc__, define_flags)
