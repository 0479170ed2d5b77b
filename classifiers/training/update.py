"""One step of training a classifier: what is minimised, what is measured."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from classifiers import from_config
from classifiers.models.presets import Classifier
from classifiers.training import losses
from classifiers.training.mixing import make_mix
from input_pipeline.batches.mixture import DOMAINS
from launch.errors import InputError
from launch.runtime.devices.mesh import batch_sharding, with_shardings
from launch.runtime.ema import make_decays
from launch.runtime.images import to_float
from launch.runtime.state import TrainState, abstract_state
from launch.runtime.training.loop import check_training
from launch.runtime.training.optimizers import make_optimizer, make_schedule
from launch.runtime.training.step import TrainStep, make_step

Batch = dict[str, Any]
Update = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]
# Seeds of what is mixed with what, and of what is dropped.
_MIX, _DROP = 0, 1


def make_update(
    config: ml_collections.ConfigDict, model: Classifier, tx: optax.GradientTransformation
) -> Update:
    """`update(state, batch)` -> the new state and its metrics.

    The loss is the mean over the batch; an example from a synthetic source counts
    `synthetic_loss_weight` times ("Diversify, Don't Fine-Tune", 2023, section 3.3: lambda), so that
    with 1 it is the plain mean.

    Args:
        config: `loss` and `label_smoothing`, see `losses.make_loss`, `synthetic_loss_weight`,
            `train_sources` (where there are several, metrics of each domain are measured too),
            `ema`, `mix`, and for the learning rate `optimizer`, `total_steps`. What is mixed with
            what, and what is dropped, is the same for all seeds of a run; their images differ.
        model: the network.
        tx: the optimiser.

    Raises:
        InputError: a field is wrong.
    """
    decays = make_decays(config.ema)
    schedule, mix = make_schedule(config.optimizer, config.total_steps), make_mix(config)
    separate = getattr(model, "auxiliary_batch_norm", False)
    if mix is not None:
        _check_mix(config, separate)
    loss, weigh = losses.make_loss(config), _weights(config)
    split = len(config.train_sources) > 1

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        images = to_float(batch["image"])
        targets = losses.soft_targets(batch["label"], model.num_classes, config.label_smoothing)
        if mix is not None:
            key = jax.random.fold_in(jax.random.key(_MIX), state.step)
            images, targets = mix(key, images, targets, batch["domain"])
        rngs = {"dropout": jax.random.fold_in(jax.random.key(_DROP), state.step)}

        def loss_of(params: Any) -> tuple[Array, tuple[Array, Array, dict[str, Any]]]:
            logits, model_state = model.apply(
                {**state.variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs=rngs if model.stochastic else None,
                **({"domain": batch["domain"]} if separate else {}),
            )
            values = loss(logits, targets)
            return weigh(values, batch["domain"]).mean(), (values, logits, model_state)

        (mean, (values, logits, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.variables["params"]
        )
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        state, norms = state.update(grads, tx, decays, model_state)
        correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        metrics = {"loss": mean, "accuracy": correct.mean(), "learning_rate": rate}
        if split:
            metrics |= _by_domain(batch["domain"], loss=values, accuracy=correct)
        return state, {**metrics, **norms}

    return update


def _check_mix(config: ml_collections.ConfigDict, separate: bool) -> None:
    """Refuses mixtures across domains where what follows has to know an image's domain."""
    if config.mix.get("by_domain"):
        return
    both = "a mixture of a real and a synthetic image"
    if separate:
        raise InputError(
            f"config.mix.by_domain=False with model.auxiliary_batch_norm: {both} would be of "
            "neither domain; set it to True"
        )
    if config.get("synthetic_loss_weight", 1.0) != 1.0:
        raise InputError(
            f"config.mix.by_domain=False with synthetic_loss_weight: {both} has no weight of its "
            "own; set it to True"
        )


def _weights(config: ml_collections.ConfigDict) -> Callable[[Array, Array], Array]:
    """What every example's loss is multiplied with, by its domain."""
    weight = config.get("synthetic_loss_weight", 1.0)
    if not 0.0 <= weight < float("inf"):
        raise InputError(f"config.synthetic_loss_weight={weight}: at least 0 is needed")
    if weight == 1.0:
        return lambda values, domain: values
    if len(config.train_sources) < 2:
        raise InputError(
            f"config.synthetic_loss_weight={weight} weighs synthetic images against real ones, and "
            "config.train_sources has one source: set it to 1, or name both"
        )
    return lambda values, domain: values * jnp.where(domain == 0, 1.0, weight)


def _by_domain(domain: Array, **values: Float[Array, " b"]) -> dict[str, dict[str, Array]]:
    """`NAME_by_domain`: means over the examples of each domain; NaN where there is none.

    Where images of both are mixed with each other, a mixture is of the domain of its first one.
    """
    means: dict[str, dict[str, Array]] = {}
    for name, each in values.items():
        found = means[f"{name}_by_domain"] = {}
        for number, label in DOMAINS.items():
            members = domain == number
            found[label] = jnp.where(members, each, 0.0).sum() / members.sum()
    return means


@dataclasses.dataclass(frozen=True)
class Training:
    """What a config says of a run, with nothing loaded and nothing allocated.

    Attributes:
        config: of the run.
        model: the network.
        image_shape: [h, w, c] of what it is given.
        tx: the optimiser.
        averages: names of the moving averages.
        abstract: shapes of the state.
        update: see `make_update`.
    """

    config: ml_collections.ConfigDict
    model: Classifier
    image_shape: tuple[int, int, int]
    tx: optax.GradientTransformation
    averages: tuple[str, ...]
    abstract: TrainState
    update: Update

    @classmethod
    def of(
        cls, config: ml_collections.ConfigDict, num_classes: int, image_shape: tuple[int, int, int]
    ) -> "Training":
        """Reads a config.

        Raises:
            InputError: a field is wrong.
        """
        model = from_config.make_model(config.model, num_classes)
        tx = make_optimizer(config.optimizer, config.total_steps)
        averages = tuple(make_decays(config.ema))
        init = functools.partial(from_config.init_model, model, image_shape=image_shape)
        abstract = abstract_state(init, (jax.random.key(0),), tx, averages)
        update = make_update(config, model, tx)
        return cls(config, model, image_shape, tx, averages, abstract, update)

    def step(self, mesh: Mesh) -> TrainStep:
        """The update on a mesh."""
        return make_step(self.update, mesh, self.abstract)

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The update's program for a mesh whose devices need not be there."""
        check_training(self.config, mesh)
        count, place = self.config.batch_size, batch_sharding(mesh)

        def shape(*sizes: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

        images = shape(count, *self.image_shape, dtype=np.uint8)
        batch = dict(image=images, label=shape(count), domain=shape(count))
        with jax.set_mesh(mesh):
            return self.step(mesh).lower(with_shardings(mesh, self.abstract), batch)
