"""Small states to save, and damage to saved ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from launch.runtime.checkpoints.checkpoint import Checkpoints
from launch.runtime.checkpoints.inference import SealedCheckpoint
from launch.runtime.run import Run
from launch.runtime.state import TrainState

RUN_NAME = "a run"
TX = optax.sgd(0.1, momentum=0.9)
# Values that would change on a detour through decimal digits or another type.
ODD = np.array([np.nan, np.inf, -0.0, 1e-45, 1 / 3, 3.4e38], np.float32)


def make_state(step, keep_ema):
    rng = np.random.default_rng(step)

    def variables():
        kernel = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
        return {
            "params": {"kernel": kernel, "scale": jnp.asarray(rng.permutation(ODD))},
            "batch_stats": {"mean": jnp.asarray(rng.normal(size=2), jnp.bfloat16)},
        }

    ours = variables()
    opt_state = jax.tree.map(lambda leaf: leaf + step, TX.init(ours["params"]))
    ema = {"main": variables(), "slow": variables()} if keep_ema else {}
    return TrainState(jnp.int32(step), ours, opt_state, ema)


def abstract(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(workdir, *steps, keep_ema=True):
    checkpoints = Checkpoints(workdir / "checkpoints", RUN_NAME)
    for step in steps:
        checkpoints.save(make_state(step, keep_ema))
    checkpoints.close()


def restore(workdir, keep_ema=True):
    checkpoints = Checkpoints(workdir / "checkpoints", RUN_NAME)
    try:
        return checkpoints.restore(abstract(make_state(0, keep_ema)))
    finally:
        checkpoints.close()


def open_run(workdir, total_steps):
    """Opens a run without a config.json."""
    path = epath.Path(workdir)
    return Run(path, ConfigDict(dict(total_steps=total_steps)), {}, RUN_NAME, path)


def newest(workdir, best=False):
    return SealedCheckpoint.find(workdir, RUN_NAME, best)


SEAL = "digests_0_of_1.json"


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(path):
    data = bytearray(path.read_bytes()) or bytearray(1)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(folder):
    """The largest of Orbax's files."""
    paths = [path for path in files(folder) if path.name != SEAL]
    return max(paths, key=lambda path: path.stat().st_size)
