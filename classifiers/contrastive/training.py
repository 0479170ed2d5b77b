"""What a config says about training CLIP, and the update."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from classifiers.clip.run import ClipRun
from classifiers.contrastive.losses import Loss, make_loss
from classifiers.models import clip
from classifiers.models.clip import Clip
from launch.errors import InputError
from launch.runtime.config import plain
from launch.runtime.devices.mesh import batch_sharding, with_shardings
from launch.runtime.ema import Decay, make_decays
from launch.runtime.images import to_float
from launch.runtime.limits import MOST, check_numbers
from launch.runtime.optional_fields import Defaults, below, defaults_of
from launch.runtime.state import TrainState, abstract_state, create_state, state_of
from launch.runtime.training.loop import check_training
from launch.runtime.training.optimizers import make_optimizer, make_schedule
from launch.runtime.training.train_step import TrainStep, make_step
from launch.runtime.types import Array, Batch, Variables

# Radford et al. 2021, section 2.5: logits are scaled by at most 100.
_LIMIT = math.log(100)
# With the step it decides a step's randomness, so that resuming needs the step alone.
_DROP_SEED = 1
# Fields that may differ from the run it starts from: they do not change what weights mean.
_MAY_DIFFER = ("dtype", "remat")


@dataclasses.dataclass(frozen=True)
class Training:
    """A run as its config describes it; nothing is loaded and nothing allocated."""

    config: ml_collections.ConfigDict
    model: Clip
    image_shape: tuple[int, int, int]  # [h, w, c]
    loss: Loss  # of the features of a whole batch
    tx: optax.GradientTransformation
    schedule: optax.Schedule  # learning rate by step
    decays: dict[str, Decay]  # of the moving averages, by name
    abstract: TrainState  # shapes only

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, image_shape: tuple[int, int, int]) -> "Training":
        """Builds what the config describes; raises InputError for a wrong field."""
        check_numbers(config, {"loss_chunk": (0, MOST)})
        model = clip.make(plain(config.clip))
        tx = make_optimizer(config.optimizer, config.total_steps)
        # After the optimiser, since it bounds the parameter and not its gradient.
        if not model.sigmoid:
            tx = optax.chain(tx, _bounded_scale())
        schedule = make_schedule(config.optimizer, config.total_steps)
        decays = make_decays(config.ema)
        clip.variable_shapes(model, image_shape)  # raises for fields that do not fit together
        init = functools.partial(_init, model, image_shape)
        abstract = abstract_state(init, (jax.random.key(0),), tx, decays)
        loss = make_loss(model.sigmoid, config.get("loss_chunk", 0))
        return cls(config, model, image_shape, loss, tx, schedule, decays, abstract)

    @functools.cached_property
    def start(self) -> ClipRun | None:
        """The run that `config.init_from` names; None for new weights.

        Raises:
            InputError: it is not a run of CLIP, unfinished, or of another network or image size.
        """
        path = self.config.get("init_from")
        if not path:
            return None
        run = ClipRun.open(epath.Path(path))
        theirs, ours = (_facts(model) for model in (run.model, self.model))
        for field in sorted(theirs.keys() | ours.keys()):
            if theirs.get(field) != ours.get(field):
                raise InputError(
                    f"config.clip.{field} must be {theirs.get(field)!r}, as in init_from={path}, "
                    f"got {ours.get(field)!r}; give both the same"
                )
        # Fields alone do not tell the image size: learned positions do.
        shapes = run.run.shapes()
        if jax.tree.map(jnp.shape, shapes) != jax.tree.map(jnp.shape, self.abstract.variables):
            raise InputError(
                f"config.init_from={path} must be trained on images of {self.image_shape[0]} px "
                f"with {self.image_shape[2]} channels; set config.evaluation.size and "
                "config.channels to those of the run"
            )
        return run

    def create(self, mesh: Mesh) -> TrainState:
        """The state of step 0: new weights, or those of `start`."""
        start = self.start
        if start is None:
            init = functools.partial(_init, self.model, self.image_shape)
            key = jax.random.key(self.config.seed)
            return create_state(init, (key,), self.tx, self.decays, mesh)
        variables = start.run.variables(with_shardings(mesh, start.run.shapes()))
        return state_of(variables, self.tx, self.decays, mesh)

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        """One step: the new state and its metrics.

        `batch` has 'image' uint8 [b, h, w, c], 'tokens' int32 [b, length], and 'domain' [b].
        """
        # 1. Images to [-1, 1], and the randomness of this step.
        images, tokens = to_float(batch["image"]), batch["tokens"]
        rngs = {"dropout": jax.random.fold_in(jax.random.key(_DROP_SEED), state.step)}

        # 2. Forward and backward; the loss sees the features of all devices.
        def loss_of(params: Any) -> tuple[Array, tuple[Array, Variables]]:
            variables = {**state.variables, "params": params}
            # Flax says any of what apply returns.
            result: Any = self.model.apply(
                variables, images, tokens, train=True, mutable=["batch_stats"], rngs=rngs
            )
            pairs, model_state = result
            return self.loss(pairs), (pairs.scale, model_state)

        (loss, (scale, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.variables["params"]
        )
        # 3. Optimiser, moving averages and batch statistics.
        rate = jnp.asarray(self.schedule(state.step), jnp.float32)
        state, norms = state.update(grads, self.tx, self.decays, model_state)
        return state, {"loss": loss, "logit_scale": scale, "learning_rate": rate, **norms}

    def step(self, mesh: Mesh) -> TrainStep:
        """The compiled update on a mesh."""
        return make_step(self.update, mesh, self.abstract)

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The update's program for a mesh whose devices need not exist: for preflight."""
        check_training(self.config, mesh)
        count, rows = self.config.batch_size, batch_sharding(mesh)

        def shape(*sizes: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=rows)

        images = shape(count, *self.image_shape, dtype=np.uint8)
        tokens = shape(count, self.model.text.max_length)
        batch = dict(image=images, tokens=tokens, domain=shape(count))
        with jax.set_mesh(mesh):
            return self.step(mesh).lower(with_shardings(mesh, self.abstract), batch)


def lacking_in_clip(section: ml_collections.ConfigDict) -> Defaults:
    """Fields of `clip.make` that the section `clip` leaves out."""
    model = clip.make(plain(section))
    fields = below("clip", section, defaults_of(model, leave_out=("image", "text")))
    for name, tower in (("image", model.image), ("text", model.text)):
        own = defaults_of(tower, leave_out=("num_classes", "dtype"))
        fields |= below(f"clip.{name}", section.get(name) or {}, own)
    return fields


def _init(model: Clip, image_shape: tuple[int, int, int], key: jax.Array) -> dict[str, Any]:
    tokens = jnp.zeros((1, model.text.max_length), jnp.int32)
    return dict(model.init(key, jnp.zeros((1, *image_shape)), tokens))


def _facts(model: Clip) -> dict[str, Any]:
    """The fields that decide what weights mean, by dotted name."""
    described = clip.describe(model)
    facts = {name: x for name, x in described.items() if name not in ("image", "text")}
    for tower in ("image", "text"):
        facts |= {f"{tower}.{name}": value for name, value in described[tower].items()}
    return {
        # Lists and tuples are the same in JSON.
        name: list(value) if isinstance(value, tuple) else value
        for name, value in facts.items()
        if name.rpartition(".")[2] not in _MAY_DIFFER
    }


def _bounded_scale() -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # The parameter is log(scale), which starts at log(1 / 0.07) and is kept in [0, log 100].
        scale = params["logit_scale"]
        bounded = jnp.clip(scale + updates["logit_scale"], 0.0, _LIMIT) - scale
        return {**updates, "logit_scale": bounded}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
