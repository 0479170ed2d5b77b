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
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array

from classifiers import recipes, warm_start
from classifiers.evaluate import make_predict
from classifiers.losses import soft_cross_entropy, soft_targets
from classifiers.models.presets import Classifier
from input_pipeline import loader, sources
from input_pipeline.augment.policy import Transform
from input_pipeline.files import InputError
from input_pipeline.mixture import Union, check_weight
from launch.runtime import app
from launch.runtime.distributed import on_first_process
from launch.runtime.ema import make_decays
from launch.runtime.images import to_float
from launch.runtime.loop import check_training, fit
from launch.runtime.mesh import local_rows, make_mesh
from launch.runtime.optimizers import make_optimizer, make_schedule
from launch.runtime.state import TrainState, abstract_state
from launch.runtime.step import make_step
from launch.runtime.workdir import claim_workdir

Batch = dict[str, Any]
# Seeds of what is mixed with what, and of what is dropped.
_MIX, _DROP = 0, 1


def make_update(
    config: ml_collections.ConfigDict, model: Classifier, tx: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`update(state, batch)` -> the new state and its metrics.

    Args:
        config: `label_smoothing`, `ema`, `mix`, and for the learning rate `optimizer`,
            `total_steps`. What is mixed with what, and what is dropped, is the same for all seeds
            of a run; their images differ.
        model: the network.
        tx: the optimiser.
    """
    decays = make_decays(config.ema)
    schedule, mix = make_schedule(config.optimizer, config.total_steps), recipes.make_mix(config)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        images = to_float(batch["image"])
        targets = soft_targets(batch["label"], model.num_classes, config.label_smoothing)
        if mix is not None:
            key = jax.random.fold_in(jax.random.key(_MIX), state.step)
            images, targets = mix(key, images, targets, batch["domain"])
        separate = getattr(model, "auxiliary_batch_norm", False)
        domains = {"domain": batch["domain"]} if separate else {}
        rngs = None
        if model.stochastic:
            rngs = {"dropout": jax.random.fold_in(jax.random.key(_DROP), state.step)}

        def loss_of(params: Any) -> tuple[Array, tuple[Array, dict[str, Any]]]:
            variables = {**state.variables, "params": params}
            logits, model_state = model.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs=rngs, **domains
            )
            losses = soft_cross_entropy(logits, targets)
            return losses.mean(), (logits, model_state)

        (loss, (logits, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.variables["params"]
        )
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        state, norms = state.update(grads, tx, decays, model_state)
        accuracy = (jnp.argmax(logits, axis=-1) == batch["label"]).mean()
        metrics = {"loss": loss, "accuracy": accuracy, "learning_rate": rate}
        return state, {**metrics, **norms}

    return update


def make_evaluation(
    source: sources.Source, model: Classifier, batch_size: int, transform: Transform | None = None
) -> Callable[[TrainState], dict[str, float]]:
    """Accuracy on a source, with the inference weights."""
    predict = make_predict(model, source, batch_size, transform)

    def evaluate(state: TrainState) -> dict[str, float]:
        predictions = predict(state.inference_variables)
        return {"validation_accuracy": float(np.mean(predictions == source.labels))}

    return evaluate


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = args.config
    validation = sources.load(config.evaluation_source)
    class_names, image_shape = validation.class_names, recipes.image_shape(config, validation)
    model = recipes.make_model(config.model, len(class_names))
    init = functools.partial(recipes.init_model, model, image_shape=image_shape)
    mesh = make_mesh(config.mesh)
    check_training(config, mesh)
    tx = make_optimizer(config.optimizer, config.total_steps)
    augment, transform = recipes.make_augment(config), recipes.make_transform(config)
    # Wrong numbers end here.
    recipes.make_mix(config)
    shapes = jax.eval_shape(init, jax.random.key(0))
    if args.dry_run:
        app.describe(config, model=shapes["params"])
        return
    specs = config.train_sources
    source = Union([sources.load(spec) for spec in specs.values()])
    if tuple(source.class_names) != tuple(class_names):
        raise InputError("config.train_sources and config.evaluation_source have different classes")
    source = sources.in_memory(source) if config.in_memory else source
    synthetic_weight = config.get("synthetic_weight")
    if synthetic_weight is not None:
        check_weight(source.domain, synthetic_weight)
    digests = {name: sources.digest(spec) for name, spec in specs.items()}
    digests |= warm_start.check_start(config, model)
    claim_workdir(args.workdir, config, {name: found for name, found in digests.items() if found})
    on_first_process(lambda: recipes.save_class_names(args.workdir, class_names))
    averages = tuple(make_decays(config.ema))
    abstract = abstract_state(init, (jax.random.key(0),), tx, averages)
    train_step = make_step(make_update(config, model, tx), mesh, abstract)
    evaluate = make_evaluation(validation, model, config.evaluation_batch_size, transform)
    for seed in range(config.seeds):
        data = loader.batches(
            source,
            config.batch_size,
            seed,
            augment=augment,
            rows=local_rows(mesh, config.batch_size),
            synthetic_weight=synthetic_weight,
            repeats=config.get("repeats", 1),
        )
        with jax.set_mesh(mesh):
            fit(
                workdir=args.workdir / f"seed_{seed}",
                config=config,
                mesh=mesh,
                abstract=abstract,
                create=functools.partial(
                    warm_start.create, config, model, image_shape, seed, tx, averages, mesh
                ),
                train_step=train_step,
                batches=functools.partial(
                    loader.iterate, data, workers=config.get("loader_workers", 0)
                ),
                evaluate=evaluate,
                label=f"{args.workdir.name} seed {seed}",
            )


if __name__ == "__main__":
    app.run(main, __doc__)
