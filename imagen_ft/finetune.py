"""Trains one stage of the cascade: from scratch, or from another run's weights.

python -m imagen_ft.finetune --config=configs/digits/finetune_base4.py --workdir=runs/base4

The same command goes on where it stopped.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from imagen_ft.assembly import check_same_model, make_denoiser
from imagen_ft.diffusion import add_noise, eps_loss, stratified_times
from imagen_ft.stage import Denoiser
from imagen_ft.text import make_text_encoder
from input_pipeline import loader, sources
from input_pipeline.augment.resize import resize
from input_pipeline.files import InputError
from launch.runtime import app, checkpoint
from launch.runtime.images import to_float
from launch.runtime.loop import check_training, fit
from launch.runtime.mesh import make_mesh, with_shardings
from launch.runtime.optimizers import make_optimizer
from launch.runtime.state import TrainState, abstract_state, create_state
from launch.runtime.workdir import claim_workdir, load_run_config

Batch = dict[str, Any]
# Folded into the seed's key for what is no step of training.
EVALUATION = 2**31 - 1


def diffusion_loss(
    denoiser: Denoiser,
    variables: dict[str, Any],
    batch: Batch,
    text: Float[Array, "b n d"],
    key: Key[Array, ""],
) -> Float[Array, " b"]:
    """Squared error of eps of each image, at stratified random times.

    A super-resolution stage sees the means of its targets' pixels as low-resolution images,
    noised to a uniformly random level.

    Args:
        denoiser: the network.
        variables: its variables.
        batch: 'image', uint8 [b, size, size, c].
        text: states of the prompts.
        key: randomness.
    """
    x0 = to_float(batch["image"])
    count = x0.shape[0]
    t_key, eps_key, level_key, noise_key = jax.random.split(key, 4)
    t = stratified_times(t_key, count)
    eps = jax.random.normal(eps_key, x0.shape)
    x_t = add_noise(x0, eps, denoiser.schedule.logsnr(t))
    condition, level = None, None
    if denoiser.low_size:
        level = jax.random.uniform(level_key, (count,))
        low = shrink(x0, denoiser.low_size)
        condition = denoiser.condition(low, jax.random.normal(noise_key, x0.shape), level)
    context = denoiser.context(variables, text, level)
    return eps_loss(denoiser.predict(variables, x_t, t, context, condition), eps)


def shrink(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Means of square blocks of pixels."""
    b, h, _, c = images.shape
    factor = h // size
    blocks = images.reshape(b, size, factor, size, factor, c)  # [b, size, f, size, f, c]
    return blocks.mean(axis=(2, 4))


def make_train_step(
    config: ml_collections.ConfigDict,
    denoiser: Denoiser,
    tx: optax.GradientTransformation,
    text_table: Float[Array, "classes n d"],
    null_text: Float[Array, "n d"],
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted update; step k's randomness is a function of (config.seed, k).

    Args:
        config: `seed`, `text_drop`, `ema_decay`.
        denoiser: the network.
        tx: the optimiser.
        text_table: states of every class's prompt.
        null_text: states that stand for no text.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: TrainState, batch: Batch, text_table: Array, null_text: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        drop_key, loss_key = jax.random.split(key)
        text = text_table[batch["label"]]
        drop = jax.random.bernoulli(drop_key, config.text_drop, (text.shape[0], 1, 1))
        text = jnp.where(drop, null_text[None], text)

        def loss_of(params: Any) -> Array:
            variables = {**state.variables, "params": params}
            return diffusion_loss(denoiser, variables, batch, text, loss_key).mean()

        loss, grads = jax.value_and_grad(loss_of)(state.variables["params"])
        state = state.update(grads, tx, config.ema_decay)
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(grads)}

    # Bound as arguments: a closure would compile the tables into the program.
    return functools.partial(train_step, text_table=text_table, null_text=null_text)


def make_evaluation(
    config: ml_collections.ConfigDict, denoiser: Denoiser, text_table: Float[Array, "classes n d"]
) -> Callable[[TrainState], dict[str, float]]:
    """Loss on held-out images with the inference weights; the same times and noise each time.

    Args:
        config: `seed`, `evaluation_source`, `evaluation_batch_size` and `evaluation_draws`, how
            many times and noises an image gets.
        denoiser: the network.
        text_table: states of every class's prompt.
    """
    source = sources.load(config.evaluation_source)
    to_size = functools.partial(_to_size, size=denoiser.size)

    @jax.jit
    def losses(
        variables: dict[str, Any], batch: Batch, text_table: Array, number: Array, draw: Array
    ) -> Array:
        # No step of training has this key.
        key = jax.random.fold_in(jax.random.key(config.seed), EVALUATION)
        key = jax.random.fold_in(jax.random.fold_in(key, number), draw)
        return diffusion_loss(denoiser, variables, batch, text_table[batch["label"]], key)

    def evaluate(state: TrainState) -> dict[str, float]:
        found = []
        for number, batch in enumerate(
            loader.eval_batches(source, config.evaluation_batch_size, to_size)
        ):
            for draw in range(config.evaluation_draws):
                values = losses(state.inference_variables, batch, text_table, number, draw)
                found.append(np.asarray(values)[batch["mask"]])
        return {"validation_loss": float(np.concatenate(found).mean())}

    return evaluate


def _to_size(element: Batch, size: int) -> Batch:
    return {**element, "image": resize(element["image"], size)}


def _make_create(
    config: ml_collections.ConfigDict,
    denoiser: Denoiser,
    text_shape: tuple[int, int],
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[TrainState, Callable[[], TrainState]]:
    """The state's shapes, and what makes it: from the run `init_from` names, else from scratch."""
    args, keep_ema = (jax.random.key(config.seed), jnp.zeros(text_shape)), config.ema_decay > 0

    def create() -> TrainState:
        if not config.init_from:
            return create_state(denoiser.init, args, tx, keep_ema, mesh)
        abstract = with_shardings(mesh, denoiser.shapes(text_shape))
        total_steps = load_run_config(config.init_from).total_steps
        variables = checkpoint.load_inference(config.init_from, abstract, total_steps)
        return create_state(lambda variables: variables, (variables,), tx, keep_ema, mesh)

    return abstract_state(denoiser.init, args, tx, keep_ema), create


def _training_batches(
    config: ml_collections.ConfigDict, source: sources.Source, size: int
) -> Callable[[int, int], Iterator[Batch]]:
    data = loader.batches(
        source,
        config.batch_size,
        config.seed,
        transform=functools.partial(_to_size, size=size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return functools.partial(loader.iterate, data)


def main(args: app.Arguments) -> None:
    """Runs the task."""
    config = args.config
    denoiser = make_denoiser(config.stage)
    encoder = make_text_encoder(config.text)
    source = sources.load(config.train_source)
    if tuple(source.class_names) != tuple(config.class_names):
        raise InputError("config.class_names are not the class names of config.train_source")
    if source[0]["image"].shape[-1] != denoiser.channels:
        raise InputError(
            f"config.stage.channels={denoiser.channels}, but the images of config.train_source "
            f"have {source[0]['image'].shape[-1]}"
        )
    if denoiser.learned_variance:
        raise InputError("config.stage.learned_variance=True: there is no loss for it; set False")
    mesh = make_mesh(config.mesh)
    check_training(config, mesh)
    tx = make_optimizer(config.optimizer, config.total_steps)
    if args.dry_run:
        shapes = denoiser.shapes(encoder.shape)
        app.describe(config, unet=shapes["params"], text_encoder=encoder.parameters())
        return
    text_table, null_text = jnp.asarray(encoder.embed(config.class_names)), encoder.null()[0]
    abstract, create = _make_create(config, denoiser, encoder.shape, tx, mesh)
    evaluate = make_evaluation(config, denoiser, text_table)
    batches = _training_batches(config, source, denoiser.size)
    inputs = {"text": encoder.digest} if encoder.digest else {}
    if config.init_from:
        check_same_model(config.init_from, config.stage, config)
        inputs["init_from"] = checkpoint.digest(config.init_from)
    claim_workdir(args.workdir, config, inputs)
    with jax.set_mesh(mesh):
        fit(
            workdir=args.workdir,
            config=config,
            mesh=mesh,
            abstract=abstract,
            create=create,
            train_step=make_train_step(config, denoiser, tx, text_table, jnp.asarray(null_text)),
            batches=batches,
            evaluate=evaluate,
            label=args.workdir.name,
        )


if __name__ == "__main__":
    app.run(main, __doc__)
