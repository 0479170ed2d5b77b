"""The state of training, created sharded."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from launch.runtime.devices.mesh import state_shardings, with_shardings
from launch.runtime.ema import MAIN, Decay
from launch.runtime.types import Array, Variables


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs; the leaves may also be shapes, shardings or axes."""

    step: PyTree  # number of updates made, int32 []
    variables: PyTree  # the model's collections; the optimiser moves 'params'
    opt_state: PyTree
    ema: PyTree  # moving averages of all of `variables`, by name; may be empty

    @property
    def inference_variables(self) -> Variables:
        """What to sample or evaluate with: the `main` average if there is one."""
        return self.ema.get(MAIN, self.variables)

    def held(self, mesh: Mesh) -> dict[str, PyTree]:
        """Shapes and places of its arrays on a mesh, by what they are."""
        parts = dict(parameters=self.variables, optimizer=self.opt_state, averages=self.ema)
        return {name: with_shardings(mesh, part) for name, part in parts.items()}

    def update(
        self,
        grads: PyTree,
        tx: optax.GradientTransformation,
        decays: Mapping[str, Decay],
        model_state: Variables | None = None,
    ) -> tuple["TrainState", dict[str, Float[Array, ""]]]:
        """Applies one optimiser step; also returns norms of the raw gradient and of the update.

        `grads` are with respect to `variables['params']`; `model_state` are the other collections
        as the forward pass left them (batch statistics).
        """
        # 1. Move the parameters.
        updates, opt_state = tx.update(grads, self.opt_state, self.variables["params"])
        params = optax.apply_updates(self.variables["params"], updates)
        # 2. Take over the new statistics.
        variables = {**self.variables, **(model_state or {}), "params": params}
        # 3. Update the averages, statistics included. A decay is a function of the updates before.
        ema = {
            name: _blend(average, variables, decays[name](self.step))
            for name, average in self.ema.items()
        }
        # 4. Norms of the raw gradient, and of what was added to the parameters.
        norms = {"gradient_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        return TrainState(self.step + 1, variables, opt_state, ema), norms


def _blend(average: Variables, variables: Variables, decay: float | Float[Array, ""]) -> Variables:
    # decay * old + (1 - decay) * new
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, variables)


def abstract_state(
    init: Callable[..., Variables],
    init_args: tuple[PyTree, ...],
    tx: optax.GradientTransformation,
    averages: Collection[str],
) -> TrainState:
    """The shapes of what `create_state` makes; nothing is computed."""
    return jax.eval_shape(lambda *args: _new_state(init(*args), tx, averages), *init_args)


def create_state(
    init: Callable[..., Variables],
    init_args: tuple[PyTree, ...],
    tx: optax.GradientTransformation,
    averages: Collection[str],
    mesh: Mesh,
) -> TrainState:
    """Creates the state of step 0 from `init(*init_args)`; for existing weights see `state_of`."""
    # Sharded from the start: no device ever holds it whole.
    shardings = state_shardings(mesh, abstract_state(init, init_args, tx, averages))
    make = jax.jit(lambda *args: _new_state(init(*args), tx, averages), out_shardings=shardings)
    return make(*init_args)


def state_of(
    variables: Variables, tx: optax.GradientTransformation, averages: Collection[str], mesh: Mesh
) -> TrainState:
    """The state of step 0 around existing weights, without a second copy of them.

    The state takes over `variables` where they already have its shardings: the first training step
    donates their memory, so do not use them afterwards.
    """
    variables = jax.device_put(variables, state_shardings(mesh, variables))

    # Only the rest is computed; `variables` stay where they are.
    def rest(variables: Variables) -> TrainState:
        return dataclasses.replace(_new_state(variables, tx, averages), variables=None)

    shardings = state_shardings(mesh, jax.eval_shape(rest, variables))
    state = jax.jit(rest, out_shardings=shardings)(variables)
    return dataclasses.replace(state, variables=variables)


def _new_state(
    variables: Variables, tx: optax.GradientTransformation, averages: Collection[str]
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=tx.init(variables["params"]),
        # Copied: the step donates the state, and no buffer can be donated twice.
        ema={name: jax.tree.map(jnp.copy, variables) for name in averages},
    )
