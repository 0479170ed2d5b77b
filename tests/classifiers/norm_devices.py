"""A training step of networks with two sets of batch norms, on four devices and on one.

The largest relative errors of logits, gradients and statistics as one JSON line.
"""

import json
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import numpy as np

from classifiers.models.resnet import ResNet
from classifiers.models.resnet_rs import ResNetRS
from launch.runtime import mesh as meshes

FIELDS = dict(num_classes=3, stage_sizes=(1, 1), width=8, dropout=0.25, auxiliary_batch_norm=True)
NETS = {
    "resnet": ResNet(bottleneck=False, small_stem=True, **FIELDS),
    "resnet_rs": ResNetRS(drop_path=0.2, **FIELDS),
}
# Each of four devices holds two examples: of both domains, or of one.
DOMAIN = np.int32([0, 1, 1, 1, 0, 0, 0, 1])


def step(net, variables, batch, sizes):
    """Logits, gradients and new statistics, by name, of a weighted mean of the logits."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = meshes.make_mesh(dict(zip(meshes.AXES, sizes, strict=True)), devices)
    shardings = meshes.state_shardings(mesh, variables)

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

    with jax.set_mesh(mesh):
        split = jax.device_put(variables, shardings)
        found = jax.jit(gradient)(split, meshes.put_batch(mesh, batch))
    held = [leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split["params"])]
    assert all(held) == (sizes == (1, 1, 1))
    return flax.traverse_util.flatten_dict(jax.device_get(found), sep="/")


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
    for name, value in alone.items():
        error = float(np.abs(split[name] - value).max() / np.abs(value).max())
        kind = name.split("/")[0]
        found[kind] = max(found.get(kind, 0.0), error)
    return found


def main():
    with mock.patch.object(meshes, "MIN_SHARDED_SIZE", 64):
        found = {name: errors(net) for name, net in NETS.items()}
    print(json.dumps({"devices": jax.device_count(), **found}))


if __name__ == "__main__":
    main()
