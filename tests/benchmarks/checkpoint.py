"""What a checkpoint costs the training loop: how long `save` holds it up, and what follows.

python -m tests.benchmarks.checkpoint [--quick] [--megaparams 100] [--batch 64] [--saves 3]

A plain step trains that many million parameters with Adam and a moving average (four arrays each)
and changes all of them. The peer of `save` is the same save when everything is waited for: what a
loop would lose without the background. Seconds are medians.
"""

import argparse
import collections
import contextlib
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from launch.runtime.checkpoints import seals
from launch.runtime.checkpoints.checkpoint import Checkpoints
from launch.runtime.checkpoints.content_digest import content_digest
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.reports.tables import text_table
from launch.runtime.state import create_state
from tests.support.checkpoint_states import RUN_NAME

TX = optax.adam(1e-3)
WIDTH = 1024


def init(key, layers):
    keys = jax.random.split(key, layers)
    kernels = (0.01 * jax.random.normal(key, (WIDTH, WIDTH)) for key in keys)
    return {"params": {f"layer{i}": kernel for i, kernel in enumerate(kernels)}}


@functools.partial(jax.jit, donate_argnums=0)
def train_step(state, x):
    def loss(params):
        h = x
        for kernel in params.values():
            h = h + jnp.tanh(h @ kernel)
        return jnp.mean(h**2)

    grads = jax.grad(loss)(state.variables["params"])
    return state.update(grads, TX, {"main": lambda n: jnp.float32(0.999)})[0]


class Clock:
    """Seconds of each kind of work."""

    def __init__(self):
        self.times = collections.defaultdict(list)

    def __call__(self, name, work, *args):
        start = time.perf_counter()
        result = jax.block_until_ready(work(*args))
        self.times[name].append(time.perf_counter() - start)
        return result


def train_and_save(checkpoints, state, x, clock):
    """Steps, then a save with steps beside it, then a save that is waited for."""
    clock("digest", content_digest, state.ema["main"])
    for _ in range(3):
        state = clock("step", train_step, state, x)
    clock("save", checkpoints.save, state)
    for _ in range(3):
        state = clock("step beside a save", train_step, state, x)
        clock("seal_if_saved", checkpoints.seal_if_saved)
    checkpoints.finish()
    state = train_step(state, x)

    def save_and_wait():
        checkpoints.save(jax.block_until_ready(state))
        checkpoints.finish()

    clock("save and wait", save_and_wait)
    return state


def measure(folder, layers, batch, saves):
    """Seconds of each kind of work; bytes of the state."""
    args = functools.partial(init, layers=layers), (jax.random.key(0),), TX, ["main"]
    state = create_state(*args, make_mesh({"fsdp": -1}))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    x = jax.random.normal(jax.random.key(1), (batch, WIDTH))
    with contextlib.closing(Checkpoints(folder / "checkpoints", RUN_NAME)) as checkpoints:
        state = train_and_save(checkpoints, state, x, Clock())  # compiles
        clock = Clock()
        for _ in range(saves):
            state = train_and_save(checkpoints, state, x, clock)
        newest = folder / "checkpoints" / str(int(state.step))
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        del state
        for _ in range(saves):
            clock("check", seals.find_fault, newest)
            clock("check and restore", checkpoints.restore, abstract)
    return clock.times, size


def report(times, size, hashed):
    """Prints the table, and one JSON line per case."""
    middle = {case: statistics.median(values) for case, values in times.items()}
    sizes = {case: size for case in ("save", "save and wait", "check", "check and restore")}
    sizes["digest"] = hashed
    rows = []
    for case, values in times.items():
        seconds = [f"{number:.4f}" for number in (middle[case], min(values), max(values))]
        rate = f"{sizes[case] / middle[case] / 1e9:.2f}" if case in sizes else ""
        rows.append([case, *seconds, f"{middle[case] / middle['step']:.2f}", rate])
    print(text_table(["case", "seconds", "least", "most", "steps", "GB/s"], rows))
    peers = {"save": "save and wait", "step beside a save": "step"}
    for case, seconds in middle.items():
        peer = middle[peers[case]] if case in peers else None
        line = dict(case=case, ours=seconds, peer=peer, unit="s", ratio=peer and peer / seconds)
        print(json.dumps({**line, "steps": seconds / middle["step"]}))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the size, one save")
    parser.add_argument("--megaparams", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--saves", type=int, default=3)
    args = parser.parse_args()
    layers = max(1, args.megaparams * 10**6 // (8 if args.quick else 1) // WIDTH**2)
    with tempfile.TemporaryDirectory() as folder:
        saves = 1 if args.quick else args.saves
        times, size = measure(Path(folder), layers, args.batch, saves)
    device = jax.devices()[0].device_kind
    weights = layers * WIDTH**2
    print(f"{weights / 1e6:.0f}M parameters, a state of {size / 1e9:.2f} GB, {device}")
    report(times, size, 4 * weights)


if __name__ == "__main__":
    main()
