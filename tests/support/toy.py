"""A linear model for tests of the training loop; as a program, one that receives signals.

python -m tests.support.toy WORKDIR JSON, where the JSON has `config` and `faults` for `train`,
`in_evaluation`, signals to receive there, and `several`, whether it is one of several processes.
"""

import functools
import hashlib
import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from launch.cli import exit_code
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.state import abstract_state, create_state
from launch.runtime.training.loop import fit
from tests.multihost.processes import join
from tests.support.checkpoint_states import RUN_NAME

TX = optax.sgd(0.1, momentum=0.9)
DECAYS = {"main": lambda n: 0.9}
CONFIG = ConfigDict(dict(total_steps=8, log_every=2, checkpoint_every=3, evaluate_every=4))
# What depends on the machine, or on where a run was interrupted.
MEASURED = {
    "step_seconds",
    "images_per_second",
    "data_wait",
    "first_step_seconds",
    "evaluation_seconds",
    "pictures_seconds",
    "checkpoint_seconds",
    "host_peak_bytes",
}


class PowerCut(Exception):
    pass


def batches(start, stop, cut=None, nan=None, sigterm=None, seconds=0.0):
    """Batch k is a function of k; the one numbered `cut` never comes."""
    shards, shard = jax.process_count(), jax.process_index()
    for k in range(start, stop):
        if k == cut:
            raise PowerCut
        if k == sigterm:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        rng = np.random.default_rng(k)
        x = rng.normal(size=(4, 3)).astype(np.float32)
        batch = {"x": x * np.float32(np.nan if k == nan else 1), "y": x.sum(axis=1)}
        yield {name: np.split(rows, shards)[shard] for name, rows in batch.items()}


def init(key):
    return {"params": {"w": jax.random.normal(key, (3,))}}


def loss_of(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, batch):
    loss, grads = jax.value_and_grad(loss_of)(state.variables["params"], batch)
    state, norms = state.update(grads, TX, DECAYS)
    return state, {"loss": loss, **norms}


def evaluate(state):
    return {"distance": float(jnp.abs(state.inference_variables["params"]["w"] - 1).max())}


def train(
    workdir,
    config=CONFIG,
    *,
    init=init,
    train_step=train_step,
    evaluate=evaluate,
    metric=None,
    pictures=None,
    **faults,
):
    mesh = make_mesh({"data": -1})
    args = (init, (jax.random.key(0),), TX, DECAYS)
    with jax.set_mesh(mesh):
        return fit(
            workdir=epath.Path(workdir),
            run_name=RUN_NAME,
            config=config,
            mesh=mesh,
            abstract=abstract_state(*args),
            create=functools.partial(create_state, *args, mesh),
            train_step=train_step,
            batches=functools.partial(batches, **faults),
            evaluate=evaluate,
            metric=metric,
            pictures=pictures,
            label="toy",
        )


def changed(**fields):
    return ConfigDict(CONFIG.to_dict() | fields)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def digest(state):
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves(state))).hexdigest()


def _evaluate_under_fire(signals, state):
    for _ in range(signals):
        os.kill(os.getpid(), signal.SIGTERM)
    print("evaluated", flush=True)
    return evaluate(state)


def main(workdir, options):
    if options.get("several"):
        join()
    fired = functools.partial(_evaluate_under_fire, options.get("in_evaluation", 0))
    state = train(
        workdir, changed(**options.get("config", {})), evaluate=fired, **options.get("faults", {})
    )
    print(json.dumps({"step": int(state.step), "digest": digest(state)}), flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1], json.loads(sys.argv[2])), "again"))
