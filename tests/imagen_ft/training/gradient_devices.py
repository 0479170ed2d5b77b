"""Gradients of the U-Nets, and decoded images, on eight devices against those on one.

Errors as one JSON line.
"""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from imagen_ft.models.autoencoder import Autoencoder, decode_one_by_one
from imagen_ft.models.efficient_unet import EfficientUNet
from imagen_ft.models.latent_unet import LatentUNet
from imagen_ft.models.unet import UNet
from launch.runtime.devices import mesh as meshes
from tests.support.devices import drawn, on_mesh, relative_errors

BATCH, SIZE, TOKENS, WIDTH = 8, 4, 6, 64
MESH = (2, 2, 2)
NETS = {
    "unet": UNet(
        out_channels=2,
        block_out_channels=(8,),
        layers_per_block=1,
        attention=(True,),
        cross_attention_dim=8,
        attention_head_dim=8,
        num_groups=4,
        cross_num_groups=4,
        pooling_heads=2,
    ),
    "efficient_unet": EfficientUNet(
        out_channels=2,
        block_out_channels=(8,),
        layers_per_block=(1,),
        self_attention=(True,),
        text_attention=(True,),
        cross_attention_dim=WIDTH,
        noise_level=False,
        num_heads=2,
        num_groups=4,
        pooling_heads=2,
    ),
    "latent_unet": LatentUNet(
        out_channels=2,
        block_out_channels=(8,),
        attention=(True,),
        num_heads=2,
        layers_per_block=1,
        num_groups=4,
        remat=True,
    ),
}


def gradients(net, variables, batch, sizes):
    """Gradient of a weighted mean of the output, by parameter."""

    def gradient(variables, batch):
        def loss(variables):
            output = net.apply(variables, batch["x"], batch["t"], batch["text"])
            return (output * batch["weight"]).mean()

        return jax.grad(loss)(variables)["params"]

    return on_mesh(gradient, sizes, variables, batch, "params")


def error(net):
    """The largest relative error of any parameter's gradient."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    x, text = draw(BATCH, SIZE, SIZE, 1), draw(BATCH, TOKENS, WIDTH)
    batch = dict(x=x, t=10 * draw(BATCH), text=text, weight=draw(BATCH, SIZE, SIZE, 2))
    # Some kernels begin as zeros, and would hide the gradients of all behind them.
    variables = drawn(lambda: net.init(jax.random.key(0), x, batch["t"], text), rng)
    alone = gradients(net, variables, batch, (1, 1, 1))
    # A softmax does not see a bias of its keys: their gradients are rounding errors.
    names = [name for name in alone if jnp.abs(alone[name]).max() > 1e-7]
    assert len(alone) - len(names) <= 4

    found = gradients(net, variables, batch, MESH)
    return max(relative_errors(found, alone, names).values())


def error_of_images():
    """The largest relative error of what a batch of latents is decoded to, image by image."""
    model = Autoencoder(block_out_channels=(8, 8), layers_per_block=1, num_groups=4)
    rng = np.random.default_rng(0)
    batch = {"z": rng.normal(size=(BATCH, SIZE, SIZE, 4)).astype(np.float32)}
    images = np.zeros((1, SIZE, SIZE, 3), np.float32)
    variables = drawn(lambda: model.init(jax.random.key(0), images), rng)
    decode = lambda variables, batch: {"x": decode_one_by_one(model, variables, batch["z"])}  # noqa: E731
    alone, found = (on_mesh(decode, sizes, variables, batch) for sizes in ((1, 1, 1), MESH))
    return relative_errors(found, alone, ["x"])["x"]


def main():
    with mock.patch.object(meshes, "MIN_SHARDED_SIZE", 64):
        found = {name: error(net) for name, net in NETS.items()}
        found["decoded"] = error_of_images()
    print(json.dumps({"devices": jax.device_count(), **found}))


if __name__ == "__main__":
    main()
