"""What a config says about the training of one stage, and its update."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Key, PyTree

from imagen_ft.cascade.stage_weights import open_run
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.from_config import make_denoiser
from imagen_ft.diffusion.losses import DiffusionLoss, level_losses, make_loss
from imagen_ft.diffusion.stage import AUTOENCODER
from imagen_ft.text.encoders import text_shapes
from imagen_ft.training.checking import check_run, crop
from imagen_ft.training.distilling import Teaching, make_teaching
from imagen_ft.training.image_losses import (
    MOMENTS,
    Inputs,
    Losses,
    draw_inputs,
    encoded,
    image_losses,
)
from imagen_ft.training.latents import latents_of
from imagen_ft.training.prior import Prior, make_prior
from imagen_ft.training.sampled_metric import check_metric
from input_pipeline import class_names
from launch.errors import InputError
from launch.runtime.devices.mesh import batch_sharding, state_shardings, with_shardings
from launch.runtime.ema import Decay, make_decays
from launch.runtime.layers.lora import Lora, make_lora
from launch.runtime.run import Run
from launch.runtime.state import TrainState, abstract_state
from launch.runtime.training.optimizers import (
    frozen_parameters,
    make_optimizer,
    make_schedule,
    stop_frozen,
)
from launch.runtime.training.train_step import TrainStep, accumulate, make_step
from launch.runtime.types import Array, Batch, Variables

# What the update reads but does not train: the parameters that adapters adapt, or a teacher's
# variables; or None.
Params: TypeAlias = PyTree | None
# Folded into the seed's key for what is not a step of training; steps never get here.
_EVALUATION_STEP = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Training:
    """What a config says about a run, with nothing loaded or allocated."""

    config: ml_collections.ConfigDict
    denoiser: Denoiser  # at the size that it is trained at
    loss: DiffusionLoss  # unused with a teacher
    text_shape: tuple[int, int]  # of one prompt's states
    class_names: tuple[str, ...]  # in the order of their labels; () means the images' own
    tx: optax.GradientTransformation
    schedule: optax.Schedule  # learning rate at each step
    decays: dict[str, Decay]  # of the moving averages
    lora: Lora | None  # None trains the parameters themselves
    # Which of what is trained stays as it is: a tree of booleans.
    frozen: Any
    abstract: TrainState  # shapes of the state
    teaching: Teaching | None = None  # None trains on images alone

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Training":
        """Reads a config; raises InputError where a field is wrong."""
        # 1. Sections that need no network.
        check_metric(config)
        latents_of(config)
        make_prior(config)
        # 2. The network and its loss.
        denoiser = crop(make_denoiser(config.stage), config.get("crop_size", 0))
        decays = make_decays(config.ema)
        teaching = make_teaching(config, denoiser) if config.get("distill") else None
        loss = make_loss(config.loss, denoiser)
        text_shape, _ = text_shapes(config.text)
        # 3. What is trained: all parameters, or adapters.
        variables = denoiser.shapes(text_shape)
        params = variables["params"]
        lora = make_lora(config.lora, params) if config.get("lora") else None
        if lora and not config.init_from:
            raise InputError(
                "config.init_from must be the weights that config.lora adapts, got ''; set it"
            )
        trained = {"params": lora.shapes(params)} if lora else variables
        frozen = frozen_parameters(config.frozen, trained["params"])
        # 4. The optimiser, and the shapes of the whole state.
        tx = make_optimizer(config.optimizer, config.total_steps, frozen)
        schedule = make_schedule(config.optimizer, config.total_steps)
        abstract = abstract_state(lambda state: state, (trained,), tx, decays)
        names = class_names.resolve(config.class_names)
        return cls(
            config=config,
            denoiser=denoiser,
            loss=loss,
            text_shape=text_shape,
            class_names=names,
            tx=tx,
            schedule=schedule,
            decays=decays,
            lora=lora,
            frozen=frozen,
            abstract=abstract,
            teaching=teaching,
        )

    @functools.cached_property
    def start(self) -> Run | None:
        """The run that `config.init_from` names, opened once; None for public or new weights."""
        return open_run(self.config.init_from) if self.config.init_from else None

    @functools.cached_property
    def prior(self) -> Prior | None:
        """Synthetic images trained on beside the real ones; None without `config.prior`."""
        return make_prior(self.config)

    @property
    def keeps_latents(self) -> bool:
        """Whether batches hold `MOMENTS`, so that the step needs no auto-encoder."""
        return bool(latents_of(self.config)["cache"])

    @property
    def image_size(self) -> int:
        """Pixels each way of whole images; `denoiser` may see crops of them."""
        autoencoder = self.denoiser.autoencoder
        return self.config.stage.size * (autoencoder.factor if autoencoder else 1)

    @property
    def evaluation_key(self) -> Key[Array, ""]:
        """A key that no step of training has."""
        return jax.random.fold_in(jax.random.key(self.config.seed), _EVALUATION_STEP)

    def check(self, mesh: Mesh) -> None:
        """Raises InputError for numbers that training could not work with; names the field."""
        check_run(self.config, mesh, self.decays)

    def draw(
        self, batch: Batch, key: Key[Array, ""], autoencoder: Variables | None = None
    ) -> Inputs:
        """See `draw_inputs`; with a teacher, at the times that its student learns."""
        times = None
        if self.teaching is not None:
            times = functools.partial(self.teaching.method.times, self.denoiser.schedule)
        samples_latents = bool(latents_of(self.config)["sample"])
        inputs = draw_inputs(self.denoiser, batch, key, times, samples_latents)
        # Kept latents need no auto-encoder.
        if autoencoder is None and MOMENTS not in inputs:
            return inputs
        return encoded(self.denoiser, autoencoder, inputs)

    def losses(
        self,
        variables: Variables,
        inputs: Inputs,
        text: Float[Array, "b n d"],
        null_text: Float[Array, "n d"],
        teacher: Variables | None = None,
        target: Variables | None = None,
    ) -> Losses:
        """Losses of each image; `inputs` come from `draw`.

        `variables` are what the denoiser is called with, `teacher` the teacher's, `target` those of
        the average that it is compared with (None: `variables`).
        """
        if self.teaching is None:
            return image_losses(self.denoiser, self.loss, variables, inputs, text)
        assert teacher is not None, "a student needs its teacher's variables"
        target = variables if target is None else target
        return self.teaching.losses(
            self.denoiser, variables, target, teacher, inputs, text, null_text
        )

    def network(
        self, variables: Variables, base: Params, autoencoder: Variables | None = None
    ) -> Variables:
        """The variables that the denoiser, or a stage of it, is called with.

        `variables` are a state's: the denoiser's own, or adapters. `base` is what these adapt, or a
        teacher's variables, which are not used here.
        """
        if self.lora is not None:
            variables = {"params": self.lora.merged(base, variables["params"])}
        return variables if autoencoder is None else {**variables, AUTOENCODER: autoencoder}

    def network_on(
        self, mesh: Mesh, base: Params, autoencoder: Variables | None = None
    ) -> Callable[[Variables], Variables]:
        """`network` as one compiled program; nothing runs where there are no adapters."""
        if self.lora is None:
            return lambda variables: self.network(variables, base, autoencoder)
        shardings = state_shardings(mesh, self.denoiser.shapes(self.text_shape))
        # The auto-encoder is added outside: as an output of the program it would be copied.
        merge = jax.jit(self.network, out_shardings=shardings)
        unadapted = dataclasses.replace(self, lora=None)
        return lambda variables: unadapted.network(merge(variables, base), None, autoencoder)

    def update(
        self,
        state: TrainState,
        batch: Batch,
        text_table: Float[Array, "classes n d"],
        null_text: Float[Array, "n d"],
        base: Params = None,
        autoencoder: Variables | None = None,
        unroll: bool = False,
    ) -> tuple[TrainState, dict[str, Array]]:
        """One step: the new state and its metrics; step k's randomness is a function of (seed, k).

        `text_table` has the states of every class's prompt. For `base` and `autoencoder` see
        `network`, for `unroll` `train_step.accumulate`.
        """
        # 1. Everything random: times, noise, latents, and which texts are dropped.
        config = self.config
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        drop_key, loss_key = jax.random.split(key)
        inputs = self.draw(batch, loss_key, autoencoder)
        # [b, 1, 1], against [b, n, d] of the text. Dropped before the batch is split, so that
        # accumulation changes nothing.
        shape = (len(batch["label"]), 1, 1)
        inputs["drop"] = jax.random.bernoulli(drop_key, config.text_drop, shape)
        if self.prior is not None:
            inputs["weight"] = self.prior.weights(batch["domain"])

        # 2. The loss of a part of the batch.
        name = self.teaching.method.target if self.teaching else ""
        target = state.ema[name] if name else None

        def loss_of(params: Any, inputs: Inputs) -> tuple[Array, Losses]:
            trained = {**state.variables, "params": stop_frozen(params, self.frozen)}
            variables = self.network(trained, base)
            # Classifier-free guidance needs a network that also knows no text (Ho and Salimans
            # 2022).
            text = jnp.where(inputs["drop"], null_text[None], text_table[inputs["label"]])
            losses = self.losses(variables, inputs, text, null_text, base, target)
            return (losses["loss"] * inputs.get("weight", 1.0)).mean(), losses

        # 3. Gradients, averaged over `config.accumulation` parts of the batch.
        params = state.variables["params"]
        losses, grads = accumulate(loss_of, params, inputs, config.accumulation, unroll)
        # 4. The optimiser and the moving averages.
        rate = jnp.asarray(self.schedule(state.step), jnp.float32)
        state, norms = state.update(grads, self.tx, self.decays)
        # 5. Metrics; `loss_by_level` are means over equal bins of t.
        metrics = {name: values.mean() for name, values in losses.items()}
        metrics["loss_by_level"] = level_losses(losses["loss"], inputs["t"])
        return state, {**metrics, **norms, "learning_rate": rate}

    def step(
        self,
        mesh: Mesh,
        text_table: Any,
        null_text: Any,
        base: Params = None,
        autoencoder: Variables | None = None,
    ) -> TrainStep:
        """The update on a mesh, where the state lives; arguments as for `update`."""
        # On a CPU convolutions in a loop have slow gradients: there accumulation is unrolled.
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        update = functools.partial(self.update, unroll=on_cpu)
        return make_step(update, mesh, self.abstract, (text_table, null_text, base, autoencoder))

    def base_shapes(self, mesh: Mesh) -> Params:
        """Shapes and places of what `update` takes as `base`; None where it takes none."""
        if self.teaching:
            return with_shardings(mesh, self.teaching.teacher.shapes(self.text_shape))
        if self.lora is None:
            return None
        params = self.denoiser.shapes(self.text_shape)["params"]
        dtype = jnp.dtype(self.lora.base_dtype)
        cast = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype)  # noqa: E731
        return with_shardings(mesh, jax.tree.map(cast, params))

    def autoencoder_shapes(self, mesh: Mesh) -> Variables | None:
        """Shapes and places of the auto-encoder; None where there is none, or latents are kept."""
        if self.denoiser.autoencoder is None or self.keeps_latents:
            return None
        return with_shardings(mesh, self.denoiser.autoencoder_shapes())

    def held(self, mesh: Mesh) -> dict[str, Any]:
        """Shapes and places of what stays in a chip's memory, by what it is."""
        name = "teacher" if self.teaching else "frozen"
        others = {name: self.base_shapes(mesh), "autoencoder": self.autoencoder_shapes(mesh)}
        return {**self.abstract.held(mesh), **others}

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The update lowered for a mesh, whose devices need not exist (`--preflight`)."""
        self.check(mesh)
        shape = jax.ShapeDtypeStruct
        dtype = self.denoiser.model.dtype
        # 1. What every device holds: text and auto-encoder.
        whole = NamedSharding(mesh, P())
        table = shape((max(1, len(self.class_names)), *self.text_shape), dtype, sharding=whole)
        null_text = shape(self.text_shape, dtype, sharding=whole)
        places = self.base_shapes(mesh), self.autoencoder_shapes(mesh)
        step = self.step(mesh, table, null_text, *places)
        # 2. A batch, split over the devices.
        size, count = self.denoiser.image_size, self.config.batch_size
        rows = batch_sharding(mesh)
        batch = dict(
            image=shape((count, size, size, self.denoiser.image_channels), np.uint8, sharding=rows),
            label=shape((count,), np.int32, sharding=rows),
        )
        if self.keeps_latents:
            side, width = self.denoiser.size, 2 * self.denoiser.channels
            del batch["image"]
            batch[MOMENTS] = shape((count, side, side, width), np.float16, sharding=rows)
        if self.prior is not None:
            batch["domain"] = batch["label"]
        # 3. The program, from shapes alone.
        with jax.set_mesh(mesh):
            return step.lower(with_shardings(mesh, self.abstract), batch)
