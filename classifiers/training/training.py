"""What a config says about training a classifier, and the update."""

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
from jaxtyping import Float

from classifiers import from_config
from classifiers.from_config import Mix
from classifiers.models.dropout import is_stochastic
from classifiers.models.presets import Classifier
from classifiers.training import losses
from classifiers.training.mixing import check_mix, make_mix
from input_pipeline.batches.mixture import DOMAINS
from launch.runtime.devices.mesh import batch_sharding, with_shardings
from launch.runtime.ema import Decay, make_decays
from launch.runtime.images import to_float
from launch.runtime.limits import building
from launch.runtime.run import Run
from launch.runtime.state import TrainState, abstract_state
from launch.runtime.training.loop import check_training
from launch.runtime.training.optimizers import make_optimizer, make_schedule
from launch.runtime.training.train_step import TrainStep, make_step
from launch.runtime.types import Array, Batch

# Seeds of mixing and of dropout. With the step they decide a step's randomness, so that resuming
# needs the step alone, and all seeds of a run mix and drop alike.
_MIX_SEED, _DROP_SEED = 0, 1


@dataclasses.dataclass(frozen=True)
class Training:
    """A run as its config describes it; nothing is loaded and nothing allocated."""

    config: ml_collections.ConfigDict
    model: Classifier
    image_shape: tuple[int, int, int]  # [h, w, c]
    loss: Callable[[Array, Array], Array]  # per example, from logits and targets
    weights: tuple[float, float]  # factors of the losses of real and synthetic examples
    mix: Mix | None
    tx: optax.GradientTransformation
    schedule: optax.Schedule  # learning rate by step
    decays: dict[str, Decay]  # of the moving averages, by name
    abstract: TrainState  # shapes only

    @classmethod
    def of(
        cls, config: ml_collections.ConfigDict, num_classes: int, image_shape: tuple[int, int, int]
    ) -> "Training":
        """Builds what the config describes; raises InputError for a wrong field."""
        model = from_config.make_model(config.model, num_classes)
        tx = make_optimizer(config.optimizer, config.total_steps)
        schedule = make_schedule(config.optimizer, config.total_steps)
        decays = make_decays(config.ema)
        init = functools.partial(from_config.init_model, model, image_shape=image_shape)
        # Fields that do not fit each other or the images show here, as shapes are computed.
        with building("model"):
            abstract = abstract_state(init, (jax.random.key(0),), tx, decays)
        mix = make_mix(config)
        check_mix(config, getattr(model, "auxiliary_batch_norm", False))
        loss, weights = losses.make_loss(config), losses.domain_weights(config)
        return cls(config, model, image_shape, loss, weights, mix, tx, schedule, decays, abstract)

    @functools.cached_property
    def start(self) -> Run | None:
        """The run that `config.init_from` names, opened once; None for new weights."""
        path = self.config.get("init_from")
        return Run.open(path) if path else None

    def check(self, mesh: Mesh) -> None:
        """Raises InputError for numbers that training cannot work with on the mesh."""
        check_training(self.config, mesh)

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        """One step: the new state and its metrics.

        `batch` has 'image' uint8 [b, h, w, c], 'label' int32 [b], and 'domain' [b], 0 real and 1
        synthetic.
        """
        # 1. Images to [-1, 1], labels to probabilities, both mixed within the batch.
        images, domain = to_float(batch["image"]), batch["domain"]
        smoothing = self.config.label_smoothing
        targets = losses.soft_targets(batch["label"], self.model.num_classes, smoothing)
        if self.mix is not None:
            key = jax.random.fold_in(jax.random.key(_MIX_SEED), state.step)
            images, targets = self.mix(key, images, targets, domain)
        # 2. The randomness of this step, and the domain where batch norms are separate.
        rngs = {"dropout": jax.random.fold_in(jax.random.key(_DROP_SEED), state.step)}
        separate = getattr(self.model, "auxiliary_batch_norm", False)
        options: dict[str, Any] = {"domain": domain} if separate else {}

        # 3. Forward and backward.
        def loss_of(params: Any) -> tuple[Array, tuple[Array, Array, Any]]:
            logits, model_state = self.model.apply(
                {**state.variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs=rngs if is_stochastic(self.model) else None,
                **options,
            )
            values = self.loss(logits, targets)
            mean = losses.weighted(values, domain, self.weights).mean()
            return mean, (values, logits, model_state)

        (mean, (values, logits, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.variables["params"]
        )
        # 4. Optimiser, moving averages and batch statistics.
        rate = jnp.asarray(self.schedule(state.step), jnp.float32)
        state, norms = state.update(grads, self.tx, self.decays, model_state)
        # 5. Metrics; accuracy counts against the label before mixing, so mixup makes it low.
        correct = (jnp.argmax(logits, axis=-1) == batch["label"]).astype(jnp.float32)
        metrics = {"loss": mean, "accuracy": correct.mean(), "learning_rate": rate}
        if len(self.config.train_sources) > 1:
            metrics |= _by_domain(domain, loss=values, accuracy=correct)
        return state, {**metrics, **norms}

    def step(self, mesh: Mesh) -> TrainStep:
        """The compiled update on a mesh."""
        return make_step(self.update, mesh, self.abstract)

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The update's program for a mesh whose devices need not exist: for preflight."""
        self.check(mesh)
        count, rows = self.config.batch_size, batch_sharding(mesh)

        def shape(*sizes: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=rows)

        images = shape(count, *self.image_shape, dtype=np.uint8)
        batch = dict(image=images, label=shape(count), domain=shape(count))
        with jax.set_mesh(mesh):
            return self.step(mesh).lower(with_shardings(mesh, self.abstract), batch)


def _by_domain(domain: Array, **values: Float[Array, " b"]) -> dict[str, dict[str, Array]]:
    """`NAME_by_domain`: means over the examples of each domain; NaN for a domain without examples.

    A mixture of two domains counts for that of its own image, not of its mate's.
    """
    means: dict[str, dict[str, Array]] = {}
    for name, per_example in values.items():
        of_domains = means[f"{name}_by_domain"] = {}
        for number, label in DOMAINS.items():
            members = domain == number
            # Not jnp.mean(x[members]): shapes must not depend on how many members there are.
            of_domains[label] = jnp.where(members, per_example, 0.0).sum() / members.sum()
    return means
