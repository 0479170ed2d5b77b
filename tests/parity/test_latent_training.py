"""A step of training on latents: loss and gradient against diffusers' networks in PyTorch."""

import jax
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from imagen_ft import weights
from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.schedule import ScaledLinear
from imagen_ft.models import presets
from imagen_ft.training.image_losses import draw_inputs, encoded, image_losses
from imagen_ft.weights.tensor_rules import layout_of
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from tests.parity.latent_models import LATENTS, TEXT, tiny_unet, tiny_vae, to_torch
from tests.parity.test_latent_weights import NOISE
from tests.parity.torch_weights import relative_error

BATCH, SIDE = 3, 16


def torch_loss(unet, vae, batch, inputs, text, prediction):
    """As diffusers' script fine-tunes Stable Diffusion; losses of each image."""
    noise = lambda name: to_torch(np.array(inputs[name])).detach()  # noqa: E731
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = vae.encode(images).latent_dist
    latents = posterior.mean
    if "latent_noise" in inputs:
        latents = latents + posterior.std * noise("latent_noise")
    latents = latents * vae.config.scaling_factor
    steps = torch.from_numpy(np.asarray(inputs["t"] * 1000).round().astype(int) - 1)
    scheduler = DDPMScheduler(**NOISE, prediction_type=prediction)
    noisy = scheduler.add_noise(latents, noise("eps"), steps)
    target = noise("eps")
    if prediction == "v_prediction":
        target = scheduler.get_velocity(latents, noise("eps"), steps)
    output = unet(noisy, steps, torch.from_numpy(text)).sample
    return torch.square(output - target).mean(dim=(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [True, False])
def test_latents(samples, tmp_path):
    """Of images' means, or drawn with the noise of the batch, times the scale of the latents."""
    vae = tiny_vae(scaling_factor=0.3)
    vae.save_pretrained(tmp_path)
    autoencoder, frozen = weights.load_part("vae", tmp_path)
    network = presets.make("tiny_sd15")
    denoiser = Denoiser(network, ScaledLinear(1000), 4, 0, LATENTS, autoencoder=autoencoder)
    image = np.random.default_rng(0).integers(0, 256, (BATCH, 8, 8, 3), np.uint8)
    batch = dict(image=image, label=np.zeros(BATCH, np.int32))
    inputs = draw_inputs(denoiser, batch, jax.random.key(0), samples_latents=samples)
    found = jax.jit(encoded, static_argnums=0)(denoiser, {"params": frozen}, inputs)
    posterior = vae.encode(torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    expected = posterior.mean
    if samples:
        noise = torch.from_numpy(np.array(inputs["latent_noise"])).permute(0, 3, 1, 2)
        expected = expected + posterior.std * noise
    assert relative_error(found["latents"], 0.3 * expected.permute(0, 2, 3, 1)) <= 1e-5
    assert found.keys() == inputs.keys() - {"image", "latent_noise"} | {"latents"}


@pytest.mark.parametrize(
    ("kind", "prediction", "samples"),
    [
        pytest.param("sd15", "epsilon", True, marks=pytest.mark.slow),
        pytest.param("sd21", "v_prediction", False, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradient(kind, prediction, samples, tmp_path):
    unet, vae = tiny_unet(kind), tiny_vae()
    for name, module in (("unet", unet), ("vae", vae)):
        module.save_pretrained(tmp_path / name)
    model, params = weights.load_part("unet", tmp_path)
    autoencoder, frozen = weights.load_part("vae", tmp_path)
    denoiser = Denoiser(
        model,
        ScaledLinear(1000),
        SIDE // autoencoder.factor,
        0,
        LATENTS,
        prediction="v" if prediction == "v_prediction" else "eps",
        autoencoder=autoencoder,
    )
    rng = np.random.default_rng(0)
    batch = dict(
        image=rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8),
        label=np.zeros(BATCH, np.int32),
    )
    text = rng.normal(size=(BATCH, 5, TEXT)).astype(np.float32)
    inputs = draw_inputs(denoiser, batch, jax.random.key(0), samples_latents=samples)

    @jax.jit
    def run(params, frozen):
        latents = encoded(denoiser, {"params": frozen}, inputs)

        def loss(params):
            variables = {"params": params}
            losses = image_losses(denoiser, DiffusionLoss(), variables, latents, text)["loss"]
            return losses.mean(), losses

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, losses), grads = run(params, frozen)
    unet.requires_grad_()
    expected = torch_loss(unet, vae, batch, inputs, text, prediction)
    expected.mean().backward()
    assert relative_error(losses, expected.detach()) <= 1e-5
    named = tensor_mappings(params, layout_of(model).rules)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    }
    theirs = {name: parameter.grad for name, parameter in unet.named_parameters()}
    assert theirs.keys() == named.keys()
    ours = np.concatenate([named[name].to_file(flat).ravel() for name in theirs])
    reference = np.concatenate([grad.numpy().ravel() for grad in theirs.values()])
    assert relative_error(ours, reference) <= 1e-5
