"""Gradients of classifiers on eight devices against those on one: errors as one JSON line."""

import functools
import json
from unittest import mock

import jax
import numpy as np

from classifiers.models import presets
from launch.runtime.devices import mesh as meshes
from launch.runtime.layers import cpu_kernels
from tests.support.devices import drawn, on_mesh, relative_errors

BATCH, SIZE, CLASSES = 8, 8, 6
MESH = (2, 2, 2)
VIT = dict(width=16, depth=1, num_heads=2, patch_size=2)
RESNET = dict(stage_sizes=(1, 1), width=8, small_stem=True)
NETS = {
    "class token": ("vit", dict(VIT, layer_scale=0.5, distillation="heads")),
    "mean": ("vit", dict(VIT, pool="mean", positions="learned_patches", remat=True)),
    "resnet": ("resnet", dict(RESNET, bottleneck=True)),
}


def gradients(net, variables, batch, sizes):
    """Gradient of a weighted mean of the output, by parameter."""

    def gradient(variables, batch):
        def loss(params):
            apply = functools.partial(net.apply, train=True, mutable=["batch_stats"])
            logits, _ = apply({**variables, "params": params}, batch["image"])
            return (jax.nn.log_softmax(logits) * batch["weight"]).sum()

        return jax.grad(loss)(variables["params"])

    return on_mesh(gradient, sizes, variables, batch, "params")


def error(name, fields):
    """The largest relative error of any parameter's gradient."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    net = presets.make(name, CLASSES, **fields)
    batch = dict(image=draw(BATCH, SIZE, SIZE, 3), weight=draw(BATCH, CLASSES))
    # Heads and some scales begin as zeros, and would hide the gradients of all behind them.
    variables = drawn(lambda: net.init(jax.random.key(0), batch["image"]), rng)
    alone = gradients(net, variables, batch, (1, 1, 1))
    # A softmax does not see a bias of its keys: their gradients are rounding errors.
    names = [name for name in alone if np.abs(alone[name]).max() > 1e-4]
    assert len(alone) - len(names) <= 2, set(alone) - set(names)
    found = gradients(net, variables, batch, MESH)
    return max(relative_errors(found, alone, names).values())


def main():
    with mock.patch.object(meshes, "MIN_SHARDED_SIZE", 64):
        found = {name: error(*net) for name, net in NETS.items()}
        with mock.patch.object(cpu_kernels, "LARGE", 0):
            found["resnet, as products"] = error(*NETS["resnet"])
    print(json.dumps({"devices": jax.device_count(), **found}))


if __name__ == "__main__":
    main()
