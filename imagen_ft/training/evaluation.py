"""The loss of a stage on held-out images, measured while it trains."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from imagen_ft.diffusion.stage import AUTOENCODER
from imagen_ft.training.checking import loss_name
from imagen_ft.training.images import evaluation_transform
from imagen_ft.training.training import Params, Training
from input_pipeline.batches import loader
from input_pipeline.source import Source
from launch.runtime.devices.mesh import fetch_behind, local_rows, put_batch
from launch.runtime.ema import MAIN
from launch.runtime.state import TrainState
from launch.runtime.types import Array, Batch, Variables


def make_evaluation(
    training: Training,
    source: Source,
    mesh: Mesh,
    text: tuple[Float[Array, "classes n d"], Float[Array, "n d"]],
    network: Callable[[Variables], Variables],
    base: Params = None,
) -> Callable[[TrainState], dict[str, float]]:
    """Loss on held-out images of every moving average, with the same times and noise each time.

    `config.evaluation_draws` is the number of times and noises per image. `text` has the states of
    every class's prompt and of none; `network` makes of a state's variables those that the denoiser
    is called with. For `base` see `Training.network`; a student's loss is its distance to its
    teacher.
    """
    teacher = base if training.teaching else None
    config, transform = training.config, evaluation_transform(training)
    # Every device gets the same number of rows; the last batch is padded and masked.
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-config.evaluation_batch_size // ways) * ways
    rows = local_rows(mesh, batch_size)

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def total(
        variables: Variables,
        batch: Batch,
        text: tuple[Array, Array],
        teacher: Params,
        number: Int[Array, ""],
        draw: Int[Array, ""],
    ) -> Array:
        # Times and noise depend on the batch's number and the draw, not on the step: losses of
        # different steps are comparable.
        key = jax.random.fold_in(jax.random.fold_in(training.evaluation_key, number), draw)
        inputs = training.draw(batch, key, variables.get(AUTOENCODER))
        states = text[0][batch["label"]]
        losses = training.losses(variables, inputs, states, text[1], teacher)["loss"]
        return jnp.where(batch["mask"], losses, 0.0).sum()

    def mean(variables: Variables) -> float:
        def totals() -> Iterator[Array]:
            batches = loader.eval_batches(source, batch_size, transform, rows)
            for number, batch in enumerate(batches):
                placed = put_batch(mesh, batch)
                for draw in range(config.evaluation_draws):
                    yield total(variables, placed, text, teacher, number, draw)

        # One batch behind: the device computes while the host adds.
        losses = sum(map(float, fetch_behind(totals())))
        return losses / (len(source) * config.evaluation_draws)

    def evaluate(state: TrainState) -> dict[str, float]:
        # 'main' is what a run is sampled with by default.
        averages = {MAIN: state.inference_variables, **state.ema}
        return {loss_name(name): mean(network(average)) for name, average in averages.items()}

    return evaluate
