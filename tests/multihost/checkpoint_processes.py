"""What test_checkpoint asks of one job: python -m tests.multihost.checkpoint_processes WHAT DIR."""

import contextlib
import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from launch.errors import InputError, users_error
from launch.runtime.checkpoints import seals
from launch.runtime.checkpoints.checkpoint import Best, Checkpoints
from launch.runtime.checkpoints.content_digest import content_digest
from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.devices import mesh
from launch.runtime.state import TrainState, abstract_state, create_state
from tests.multihost.processes import join
from tests.support.checkpoint_states import RUN_NAME, open_run

# By the rule for large arrays the small ones here are split as well.
mesh.MIN_SHARDED_SIZE = 32
TX = optax.adam(1e-2)
AVERAGES = ("main", "slow")


def init(key):
    w_key, b_key, v_key = jax.random.split(key, 3)
    params = {
        "w": jax.random.normal(w_key, (64, 48)),
        "b": jax.random.normal(b_key, (48,), jnp.bfloat16),
        "v": jax.random.normal(v_key, (7, 3)),  # in no way divisible
    }
    return {"params": params, "counts": {"seen": jnp.arange(9)}}


def make_state(devices, seed):
    """A state of step `seed`, each of its trees with other values, split over all devices."""
    args = (init, (jax.random.key(seed),), TX, AVERAGES)
    state = create_state(*args, devices)

    def fill(state):
        flat = (x + (i * seed) % 5 for i, x in enumerate(jax.tree.leaves(state)))
        leaves = [x.astype(y.dtype) for x, y in zip(flat, jax.tree.leaves(state), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(state), leaves).replace(step=state.step + seed)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(fill, out_shardings=shardings)(state)


def abstract(devices) -> TrainState:
    shapes = abstract_state(init, (jax.random.key(0),), TX, AVERAGES)
    return mesh.with_shardings(devices, shapes)


def digests_of(state):
    """Of the averages, by our own means, and of the bytes of the whole state."""
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(multihost_utils.process_allgather(state, tiled=True)):
        whole.update(np.asarray(leaf).tobytes())
    ours = {name: content_digest(tree) for name, tree in state.ema.items()}
    return {**ours, "bytes": whole.hexdigest()}


def save(folder, devices):
    """Steps 1 to 3, the second best of all; the digests of the last."""
    with (
        contextlib.closing(Checkpoints(folder / "checkpoints", RUN_NAME)) as checkpoints,
        contextlib.closing(Best(folder / "best", RUN_NAME, "loss")) as best,
    ):
        for step, loss in ((1, 0.5), (2, 0.25), (3, 0.375)):
            state = make_state(devices, step)
            taken = best.offer(state, {"loss": loss})
            checkpoints.save(state)
            assert taken == (step < 3)
            found = digests_of(state)
            # What is saved is not what becomes of the donated arrays.
            jax.block_until_ready(jax.jit(poison, donate_argnums=0)(state))
        checkpoints.finish()
        best.finish()
    split = [not x.is_fully_replicated for x in jax.tree.leaves(make_state(devices, 1))]
    return {"digests": found, "split": sum(split)}


def poison(tree):
    return jax.tree.map(lambda leaf: leaf - 1, tree)


def restore(folder, devices):
    with contextlib.closing(Checkpoints(folder / "checkpoints", RUN_NAME)) as checkpoints:
        state = checkpoints.restore(abstract(devices))
    wanted = abstract(devices)
    placed = jax.tree.map(lambda x, y: x.sharding == y.sharding, state, wanted)
    loaded = {
        f"{name} of the best" if best else name: open_run(folder, int(state.step)).variables(
            wanted.variables, ema=name, best=best
        )
        for name, best in (("main", False), ("slow", False), ("main", True))
    }
    return {
        "step": int(state.step),
        "digests": digests_of(state),
        "placed": all(jax.tree.leaves(placed)),
        "loaded": {name: content_digest(tree) for name, tree in loaded.items()},
    }


def fail(folder, devices):
    """The last process cannot write its part of a seal: all of them hear of it."""
    seal, last = seals.seal, jax.process_count() - 1

    def seal_or_fail(folder, index, count, facts):
        if index == last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk")
        seal(folder, index, count, facts)

    seals.seal = seal_or_fail
    with contextlib.closing(Checkpoints(folder / "checkpoints", RUN_NAME)) as checkpoints:
        checkpoints.save(make_state(devices, 4))
        try:
            checkpoints.finish()
        except (OSError, InputError) as error:
            reason = users_error(error) if isinstance(error, OSError) else str(error)
            return {"error": reason, "latest": latest_step(folder)}


def main(what, folder):
    join()
    devices = mesh.make_mesh({"fsdp": -1})
    found = {"save": save, "restore": restore, "fail": fail}[what](Path(folder), devices)
    print(json.dumps({**found, "devices": jax.device_count()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
