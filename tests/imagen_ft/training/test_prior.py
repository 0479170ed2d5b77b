"""Synthetic images beside those that are learned: DreamBooth's loss, and batches of both."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.schedule import Cosine
from imagen_ft.models.unet import Context
from imagen_ft.training.image_losses import draw_inputs, image_losses
from imagen_ft.training.images import make_reader, open_images
from imagen_ft.training.prior import Prior, make_prior
from imagen_ft.training.training import Training
from input_pipeline import sources
from input_pipeline.source import REAL, ArraySource
from input_pipeline.synthetic.source import SYNTHETIC
from launch.errors import InputError
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.state import TrainState
from tests.imagen_ft import tiny_training


class Scaled(nn.Module):
    """A number, which the images are multiplied by."""

    dtype: str = "float32"

    def context(self, text, noise_level=None):
        return Context((), ())

    @nn.compact
    def denoise(self, x, t, context):
        return nn.Dense(1, use_bias=False, name="out")(x)


@pytest.mark.slow
def test_an_update_follows_the_gradient_of_both_means():
    denoiser, rate, weight = Denoiser(Scaled(), Cosine(), 4, 0, 1), 0.1, 0.3
    start = {"out": {"kernel": jnp.float32([[0.5]])}}
    tx, text = optax.sgd(rate), jnp.ones((1, 1, 1))
    state = TrainState(jnp.int32(0), {"params": start}, tx.init(start), {})
    prior = dict(source=dict(name="synthetic"), share=0.25, weight=weight)
    training = Training(
        config=ConfigDict(dict(seed=0, text_drop=0.0, accumulation=2, prior=prior)),
        denoiser=denoiser,
        loss=DiffusionLoss(),
        text_shape=(1, 1),
        class_names=(),
        tx=tx,
        schedule=lambda step: rate,
        decays={},
        lora=None,
        frozen=jax.tree.map(lambda _: False, start),
        abstract=state,
    )
    image = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1)).astype(np.uint8)
    domain = np.int32([0, 0, 1, 0, 0, 1, 0, 0])
    batch = dict(image=image, label=np.zeros(8, np.int32), domain=domain)
    after, _ = training.update(state, batch, text, text[0])

    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[1]
    inputs = draw_inputs(denoiser, batch, key)

    def dreambooth(params):
        args = denoiser, DiffusionLoss(), {"params": params}, inputs, text[jnp.zeros(8, int)]
        losses = image_losses(*args)["loss"]
        return losses[domain == REAL].mean() + weight * losses[domain == SYNTHETIC].mean()

    slope = jax.grad(dreambooth)(start)["out"]["kernel"].item()
    found = after.variables["params"]["out"]["kernel"].item()
    assert found == pytest.approx(0.5 - rate * slope, rel=1e-5)


def test_batches_hold_both(monkeypatch):
    """The share of the synthetic ones is that of the config, however many there are."""
    config = tiny_training.get_config()
    config.prior = ConfigDict(dict(source=dict(name="synthetic", path="set"), share=0.25))
    training, mesh = Training.of(config), make_mesh({}, jax.devices()[:1])
    rng = np.random.default_rng(0)
    names = sources.load(config.train_source).class_names

    def load(spec, domain=SYNTHETIC):
        if spec["name"] == "synthetic":
            images = rng.integers(0, 256, (300, 8, 8, 1)).astype(np.uint8)
            return ArraySource(images, np.arange(300) % 10, names, domain)
        return real(spec)

    real = sources.load
    monkeypatch.setattr("imagen_ft.training.prior.sources.load", load)
    images = open_images(training)
    read = make_reader(training, images.train, mesh)
    for batch in read(0, 3):
        assert (batch["domain"] == SYNTHETIC).sum() == 4
    assert images.evaluation.domain.max() == REAL
    monkeypatch.setattr(
        "imagen_ft.training.prior.sources.load", lambda spec: load(spec, domain=REAL)
    )
    with pytest.raises(InputError, match=r"config\.prior\.source must have only synthetic images"):
        open_images(training)


def test_weights_leave_the_mean_of_a_batch():
    weights = Prior(0.5, 1.0).weights(jnp.int32([0, 1]))
    np.testing.assert_array_equal(weights, [2.0, 2.0])


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        (dict(source=dict(name="digits"), shares=1), "has no field 'shares'; use source, "),
        (dict(weight=1.0), "source must be a set of synthetic images, got none"),
        (dict(source=dict(name="digits"), share=1.0), "share must be above 0 and below 1, got 1.0"),
        (dict(source=dict(name="digits"), weight=0), "weight must be above 0 and finite, got 0"),
        (dict(source=dict(name="digits"), weight=True), "weight must be above 0 and finite, got T"),
    ],
)
def test_bad_fields(prior, said):
    with pytest.raises(InputError, match=rf"^config\.prior\.?(?: |){said}") as error:
        make_prior(ConfigDict(dict(prior=prior)))
    assert "\n" not in str(error.value)
