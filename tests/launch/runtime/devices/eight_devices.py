"""What test_mesh asks of eight devices, as one JSON line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from launch.errors import InputError
from launch.runtime.devices.mesh import local_rows, make_mesh, put_batch, replicate, state_shardings
from launch.runtime.state import abstract_state, create_state
from launch.runtime.training.loop import check_training
from launch.runtime.training.train_step import make_step

WIDTH = 512  # 2^18 weights are enough to be split
TX = optax.adam(1e-3)


def mesh_sizes(**axes):
    try:
        return list(make_mesh(axes).shape.values())
    except InputError as error:
        return str(error)


def fitting(batch_size, **axes):
    """What check_training says of a batch."""
    try:
        check_training(ConfigDict(dict(total_steps=1, batch_size=batch_size)), make_mesh(axes))
    except InputError as error:
        return str(error)
    return "fits"


def places(mesh, **shapes):
    """How each shape is split."""
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {name: list(found.spec) for name, found in state_shardings(mesh, tree).items()}


def replicated(mesh):
    array = replicate(mesh, np.arange(6.0))
    return [array.is_fully_replicated, len(array.sharding.device_set), array.tolist()]


def init(key):
    w_key, v_key = jax.random.split(key)
    w = jax.random.normal(w_key, (WIDTH, WIDTH)) / WIDTH**0.5
    return {"params": {"w": w, "v": jax.random.normal(v_key, (WIDTH,)) / WIDTH**0.5}}


def loss_of(params, batch):
    return jnp.mean((jnp.tanh(batch["x"] @ params["w"]) @ params["v"] - batch["y"]) ** 2)


def update(state, batch):
    loss, grads = jax.value_and_grad(loss_of)(state.variables["params"], batch)
    state, _ = state.update(grads, TX, {"main": lambda n: 0.9})
    return state, {"loss": loss}


def train(mesh):
    """Two steps: the losses, the new state, and how many devices hold how much of the weights."""
    args = (init, (jax.random.key(0),), TX, ("main",))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 16, WIDTH)), rng.normal(size=(2, 16))
    losses = []
    train_step = make_step(update, mesh, abstract_state(*args))
    with jax.set_mesh(mesh):
        state = create_state(*args, mesh)
        start = jax.device_get(state)
        for k in range(2):
            batch = put_batch(mesh, {"x": np.float32(x[k]), "y": np.float32(y[k])})
            state, metrics = train_step(state, batch)
            losses.append(float(metrics["loss"]))
    expected = state_shardings(mesh, abstract_state(*args))
    kept = jax.tree.map(lambda leaf, place: leaf.sharding == place, state, expected)
    shards = [
        [len(leaf.sharding.device_set), leaf.addressable_shards[0].data.size]
        for leaf in (
            state.variables["params"]["w"],
            state.opt_state[0].mu["w"],
            state.ema["main"]["params"]["w"],
        )
    ]
    return start, jax.device_get(state), losses, shards, all(jax.tree.leaves(kept))


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.float64(x) - np.float64(y)).max()) for x, y in pairs)


def main():
    fsdp = make_mesh({"fsdp": -1})
    one = jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1),
        fsdp.axis_names,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    start, end, losses, shards, _ = train(one)
    result = {
        "devices": jax.device_count(),
        "sizes": [
            mesh_sizes(data=8),
            mesh_sizes(data=-1),
            mesh_sizes(data=2, fsdp=-1),
            mesh_sizes(data=-1, fsdp=2, tensor=2),
            mesh_sizes(tensor=-1, data=8),
        ],
        "errors": [
            mesh_sizes(data=3),
            mesh_sizes(data=-1, fsdp=3),
            mesh_sizes(data=16),
            mesh_sizes(data=-1, fsdp=0),
            mesh_sizes(data=-1, fsdp=-1),
            mesh_sizes(data=-1, fsdp=-1, tensor=8),
            mesh_sizes(data=-2, fsdp=-4),
            mesh_sizes(),
        ],
        "batches": [
            fitting(16, data=8),
            fitting(12, data=8),
            fitting(12, data=2, fsdp=4),
            fitting(12, data=2, tensor=4),
        ],
        "places": places(
            fsdp,
            square=(512, 512),
            last_is_largest=(256, 1024),
            largest_does_not_divide=(1001, 512),
            none_divides=(1001, 513),
            kernel=(3, 3, 512, 1024),
            small=(256, 1023),
            scalar=(),
            long=(2**18,),
        ),
        "places_tensor": places(
            make_mesh({"fsdp": 2, "tensor": 4}),
            square=(512, 512),
            kernel=(3, 3, 512, 1024),
            odd_output=(1024, 513),
            odd_input=(1001, 512),
            long=(2**18,),
            small=(256, 1023),
        ),
        "rows": local_rows(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), 12).tolist(),
        "replicated": replicated(fsdp),
        "places_data": places(make_mesh({"data": 8}), square=(512, 512)),
        "places_both": places(make_mesh({"data": 2, "fsdp": 4}), odd=(1004, 513)),
        "one": {"losses": losses, "shards": shards},
    }
    for name, axes in {
        "data": {"data": 8},
        "fsdp": {"fsdp": 8},
        "both": {"data": 2, "fsdp": 4},
        "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    }.items():
        their_start, their_end, losses, shards, kept = train(make_mesh(axes))
        result[name] = {
            "start": difference(start, their_start),
            "end": difference(end, their_end),
            "losses": losses,
            "shards": shards,
            "kept": kept,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
