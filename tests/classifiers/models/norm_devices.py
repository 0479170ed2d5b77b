"""A training step of networks with two sets of batch norms, on four devices and on one.

The largest relative errors of logits, gradients and statistics as one JSON line.
"""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from classifiers.models.resnet import ResNet
from classifiers.models.resnet_rs import ResNetRS
from launch.runtime.devices import mesh as meshes
from tests.support.devices import on_mesh, relative_errors

FIELDS = dict(num_classes=3, stage_sizes=(1, 1), width=8, dropout=0.25, auxiliary_batch_norm=True)
NETS = {
    "resnet": ResNet(bottleneck=False, small_stem=True, **FIELDS),
    "resnet_rs": ResNetRS(drop_path=0.2, **FIELDS),
}
# Each of four devices holds two examples: of both domains, or of one.
DOMAIN = np.int32([0, 1, 1, 1, 0, 0, 0, 1])


def step(net, variables, batch, sizes):
    """Logits, gradients and new statistics, by name, of a weighted mean of the logits."""

    def gradient(variables, batch):
        def loss(params):
            logits, state = net.apply(
                {**variables, "params": params},
                batch["image"],
                train=True,
                domain=batch["domain"],
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            return (logits * batch["weight"]).mean(), (logits, state["batch_stats"])

        grads, (logits, stats) = jax.grad(loss, has_aux=True)(variables["params"])
        return {"logits": logits, "gradient": grads, "batch_stats": stats}

    return on_mesh(gradient, sizes, variables, batch)


def errors(net):
    """By what it is an error of."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    batch = dict(image=draw(8, 12, 12, 3), domain=DOMAIN, weight=draw(8, 3))
    batch["image"][DOMAIN == 1] += 1
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    # The last scale of a block begins as zero, and would hide the gradients behind it.
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * np.abs(draw(*leaf.shape)), variables)
    alone, split = (step(net, variables, batch, sizes) for sizes in ((1, 1, 1), (2, 2, 1)))
    found = {}
    for name, error in relative_errors(split, alone, alone).items():
        kind = name.split("/")[0]
        found[kind] = max(found.get(kind, 0.0), error)
    return found


def main():
    with mock.patch.object(meshes, "MIN_SHARDED_SIZE", 64):
        found = {name: errors(net) for name, net in NETS.items()}
    print(json.dumps({"devices": jax.device_count(), **found}))


if __name__ == "__main__":
    main()
