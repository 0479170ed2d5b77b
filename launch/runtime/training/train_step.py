"""The jitted update: where its results live, and gradients of a batch taken in chunks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, PyTree

from launch.runtime.devices.mesh import state_shardings
from launch.runtime.state import TrainState
from launch.runtime.types import Array, Batch

# Values of each example of a batch, such as its loss, by name.
PerExample = dict[str, Float[Array, " b"]]
# XLA's CPU programs take their memory anew for each run, and touching it costs time: these hold
# less. Operations come in the order that needs least memory, and one at a time: two products, which
# take all cores each, would disturb each other. Parameters are not copied before they are replaced.
# `python -m tests.benchmarks.clip`, with and without --plain, measures the gain.
ON_CPUS: dict[str, str | bool] = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_copy_insertion_use_region_analysis": True,
}


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A jitted `update(state, batch, *constants) -> (state, metrics)` that donates the state.

    `constants` are arrays that do not change. As arguments they are stored once; captured by a
    closure they would be compiled into the program.
    """

    jitted: Any
    constants: tuple[Any, ...]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Runs it."""
        return self.jitted(state, batch, *self.constants)

    def trace(self, state: TrainState, batch: Batch) -> jax.stages.Traced:
        """What it computes; a call with these arguments does not trace it again."""
        return self.jitted.trace(state, batch, *self.constants)

    def lower(
        self, state: TrainState, batch: Batch | Mapping[str, jax.ShapeDtypeStruct]
    ) -> jax.stages.Lowered:
        """The program for these arguments, or for their shapes."""
        return self.jitted.lower(state, batch, *self.constants)


def make_step(
    update: Callable[..., tuple[TrainState, dict[str, Array]]],
    mesh: Mesh,
    abstract: TrainState,
    constants: tuple[Any, ...] = (),
) -> TrainStep:
    """Jits an update: the state keeps its `state_shardings`, metrics are replicated."""
    shardings = state_shardings(mesh, abstract), NamedSharding(mesh, P())
    # With several devices XLA has an order of its own, for their collectives.
    alone = mesh.devices.flat[0].platform == "cpu" and mesh.size == 1
    options = {k: v for k, v in ON_CPUS.items() if alone and is_known(k, v)}
    jitted = jax.jit(
        update, donate_argnums=0, out_shardings=shardings, compiler_options=options or None
    )
    return TrainStep(jitted, constants)


@functools.cache
def is_known(name: str, value: str | bool) -> bool:
    """Whether this version of XLA's compiler knows an option and its value."""
    nothing = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        jax.jit(jnp.negative).lower(nothing).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


def accumulate(
    loss_of: Callable[[PyTree, PyTree], tuple[Float[Array, ""], PerExample]],
    params: PyTree,
    examples: PyTree,
    chunks: int,
    unroll: bool = False,
) -> tuple[PerExample, PyTree]:
    """Gradient of the mean loss of a batch, with one chunk of it in memory at a time.

    `loss_of` maps (params, examples) to (mean loss, values of each example). `examples` have the
    batch, a multiple of `chunks`, as their first axis. Returns the values of every example, in the
    order of the batch, and the gradient. `unroll` writes the chunks out instead of looping.
    """
    # On a CPU a loop takes 30 times as long: gradients of convolutions inside loops are slow there.
    grad_of = jax.grad(loss_of, has_aux=True)
    if chunks == 1:
        grads, values = grad_of(params, examples)
        return values, grads

    def body(total: PyTree, chunk: PyTree) -> tuple[PyTree, PerExample]:
        grads, values = grad_of(params, chunk)
        return jax.tree.map(jnp.add, total, grads), values

    # [b, ...] to [chunks, b / chunks, ...]; add up the gradients; back to [b, ...].
    zeros = jax.tree.map(jnp.zeros_like, params)
    split = jax.tree.map(lambda leaf: _split(leaf, chunks), examples)
    total, values = jax.lax.scan(body, zeros, split, unroll=chunks if unroll else 1)
    join = lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])  # noqa: E731
    return jax.tree.map(join, values), jax.tree.map(lambda grad: grad / chunks, total)


def _split(leaf: Array, chunks: int) -> Array:
    # [b, ...] to [chunks, b / chunks, ...]
    # Row i goes to chunk i % chunks. Devices hold blocks of rows, so each chunk takes its share of
    # every device's rows and no row has to move.
    leaf = leaf.reshape(-1, chunks, *leaf.shape[1:]).swapaxes(0, 1)
    if jax.sharding.get_abstract_mesh().empty:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, P(None, ("data", "fsdp")))
