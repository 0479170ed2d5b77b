"""What a stage is trained with: the noising of a batch, its loss, the update, the evaluation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.losses import DiffusionLoss, level_losses
from imagen_ft.diffusion.process import add_noise, stratified_times
from imagen_ft.diffusion.schedule import Schedule
from input_pipeline import sources
from input_pipeline.batches import loader
from launch.runtime.devices.mesh import local_rows, put_batch
from launch.runtime.ema import MAIN, Decay
from launch.runtime.images import to_float
from launch.runtime.state import TrainState
from launch.runtime.training.optimizers import stop_frozen
from launch.runtime.training.step import accumulate

Batch = dict[str, Any]
Inputs = dict[str, Array]
Losses = dict[str, Float[Array, " b"]]
# Folded into the seed's key for what is no step of training.
EVALUATION = 2**31 - 1


def draw_inputs(denoiser: Denoiser, batch: Batch, key: Key[Array, ""]) -> Inputs:
    """Adds to a batch all that is random in its loss: what is behind it can be taken in parts.

    Times are stratified over the batch, the low-resolution images' noise level is uniform.

    Args:
        denoiser: the network.
        batch: 'image', uint8 [b, size, size, c], and 'label'.
        key: randomness.
    """
    shape = batch["image"].shape
    t_key, eps_key, level_key, noise_key = jax.random.split(key, 4)
    inputs = dict(image=batch["image"], label=batch["label"])
    inputs["t"] = _training_times(denoiser.schedule, stratified_times(t_key, shape[0]))
    inputs["eps"] = jax.random.normal(eps_key, shape)
    if denoiser.low_size:
        level = jax.random.uniform(level_key, shape[:1])
        inputs["level"] = _training_times(denoiser.schedule, level)
        inputs["condition_noise"] = jax.random.normal(noise_key, shape)
    return inputs


def _training_times(schedule: Schedule, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """Times from uniform numbers in [0, 1); a discrete schedule's are those of its steps."""
    steps = schedule.num_train_timesteps
    return (jnp.floor(u * steps) + 1) / steps if steps else u


def image_losses(
    denoiser: Denoiser,
    loss: DiffusionLoss,
    variables: dict[str, Any],
    inputs: Inputs,
    text: Float[Array, "b n d"],
) -> Losses:
    """Losses of each image, see `DiffusionLoss`.

    A super-resolution stage sees the means of its targets' pixels as low-resolution images.

    Args:
        denoiser: the network.
        loss: what is computed of its output.
        variables: its variables.
        inputs: result of `draw_inputs`.
        text: states of the prompts.
    """
    x0, t = to_float(inputs["image"]), inputs["t"]
    x_t = add_noise(x0, inputs["eps"], denoiser.schedule.logsnr(t))
    condition, level = None, None
    if denoiser.low_size:
        level, low = inputs["level"], shrink(x0, denoiser.low_size)
        condition = denoiser.condition(low, inputs["condition_noise"], level)
    context = denoiser.context(variables, text, level)
    output = denoiser.predict(variables, x_t, t, context, condition)
    return loss(denoiser, output, x_t, x0, inputs["eps"], t)


def shrink(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Means of square blocks of pixels."""
    b, h, _, c = images.shape
    factor = h // size
    blocks = images.reshape(b, size, factor, size, factor, c)  # [b, size, f, size, f, c]
    return blocks.mean(axis=(2, 4))


def make_update(
    config: ml_collections.ConfigDict,
    denoiser: Denoiser,
    loss: DiffusionLoss,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    decays: Mapping[str, Decay],
    frozen: Any,
    unroll: bool,
) -> Callable[[TrainState, Batch, Array, Array], tuple[TrainState, dict[str, Array]]]:
    """`update(state, batch, text_table, null_text)` -> the new state and its metrics.

    Step k's randomness is a function of (config.seed, k).

    Args:
        config: `seed`, `text_drop`, `accumulation`.
        denoiser: the network.
        loss: what is minimised.
        tx: the optimiser.
        schedule: its learning rate, to be reported.
        decays: of the moving averages.
        frozen: see `optimizers.frozen_parameters`.
        unroll: see `step.accumulate`.
    """

    def update(
        state: TrainState, batch: Batch, text_table: Array, null_text: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        drop_key, loss_key = jax.random.split(key)
        inputs = draw_inputs(denoiser, batch, loss_key)
        shape = (len(batch["label"]), 1, 1)
        inputs["drop"] = jax.random.bernoulli(drop_key, config.text_drop, shape)

        def loss_of(params: Any, inputs: Inputs) -> tuple[Array, Losses]:
            variables = {**state.variables, "params": stop_frozen(params, frozen)}
            text = jnp.where(inputs["drop"], null_text[None], text_table[inputs["label"]])
            losses = image_losses(denoiser, loss, variables, inputs, text)
            return losses["loss"].mean(), losses

        params, parts = state.variables["params"], config.accumulation
        losses, grads = accumulate(loss_of, params, inputs, parts, unroll)
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        state, norms = state.update(grads, tx, decays)
        metrics = {name: values.mean() for name, values in losses.items()}
        metrics["loss_by_level"] = level_losses(losses["loss"], inputs["t"])
        return state, {**metrics, **norms, "learning_rate": rate}

    return update


def make_evaluation(
    config: ml_collections.ConfigDict,
    denoiser: Denoiser,
    loss: DiffusionLoss,
    mesh: Mesh,
    text_table: Float[Array, "classes n d"],
    transform: loader.Transform,
) -> Callable[[TrainState], dict[str, float]]:
    """Loss on held-out images, of every moving average; the same times and noise each time.

    Args:
        config: `seed`, `evaluation_source`, `evaluation_batch_size` and `evaluation_draws`, how
            many times and noises an image gets.
        denoiser: the network.
        loss: what is averaged.
        mesh: where the batches go.
        text_table: states of every class's prompt.
        transform: brings images to size.
    """
    source = sources.load(config.evaluation_source)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-config.evaluation_batch_size // ways) * ways
    rows = local_rows(mesh, batch_size)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def total(
        variables: dict[str, Any], batch: Batch, text_table: Array, number: int, draw: int
    ) -> Array:
        # No step of training has this key.
        key = jax.random.fold_in(jax.random.key(config.seed), EVALUATION)
        key = jax.random.fold_in(jax.random.fold_in(key, number), draw)
        text, inputs = text_table[batch["label"]], draw_inputs(denoiser, batch, key)
        losses = image_losses(denoiser, loss, variables, inputs, text)["loss"]
        return jnp.where(batch["mask"], losses, 0.0).sum()

    def mean(variables: dict[str, Any]) -> float:
        found = 0.0
        batches = loader.eval_batches(source, batch_size, transform, rows)
        for number, batch in enumerate(batches):
            batch = put_batch(mesh, batch)
            for draw in range(config.evaluation_draws):
                found += float(total(variables, batch, text_table, number, draw))
        return found / (len(source) * config.evaluation_draws)

    def evaluate(state: TrainState) -> dict[str, float]:
        averages = {MAIN: state.inference_variables, **state.ema}
        return {loss_name(name): mean(average) for name, average in averages.items()}

    return evaluate


def loss_name(average: str) -> str:
    """What the validation loss of a moving average is logged as."""
    return "validation_loss" if average == MAIN else f"validation_loss_{average}"


def table_of(text: np.ndarray, denoiser: Denoiser) -> np.ndarray:
    """Text states in the precision that the network computes in: a table of them can be large."""
    return text.astype(denoiser.model.dtype)
