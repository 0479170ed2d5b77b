"""The one state of training, created where it will live."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from launch.runtime.devices.mesh import state_shardings
from launch.runtime.ema import MAIN, Decay
from launch.runtime.types import Array, Variables


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs.

    In place of arrays it may hold what is said of them: shapes, shardings, axes.

    Attributes:
        step: number of updates made, int32 [].
        variables: the model's collections; `params` is what the optimiser moves.
        opt_state: state of the optimiser.
        ema: moving averages of `variables` by name; empty when none is kept.
    """

    step: PyTree
    variables: PyTree
    opt_state: PyTree
    ema: PyTree

    @property
    def inference_variables(self) -> Variables:
        """What to sample or evaluate with."""
        return self.ema.get(MAIN, self.variables)

    def update(
        self,
        grads: PyTree,
        tx: optax.GradientTransformation,
        decays: Mapping[str, Decay],
        model_state: Variables | None = None,
    ) -> tuple["TrainState", dict[str, Float[Array, ""]]]:
        """Applies one optimiser step.

        Args:
            grads: gradients of the loss with respect to `variables['params']`.
            tx: the optimiser.
            decays: of the moving averages, by name.
            model_state: new values of the other collections (batch statistics).

        Returns:
            The new state; the norms of the gradient, as it comes, and of the update.
        """
        updates, opt_state = tx.update(grads, self.opt_state, self.variables["params"])
        params = optax.apply_updates(self.variables["params"], updates)
        variables = {**self.variables, **(model_state or {}), "params": params}
        ema = {
            name: _blend(average, variables, decays[name](self.step))
            for name, average in self.ema.items()
        }
        norms = {"gradient_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        return TrainState(self.step + 1, variables, opt_state, ema), norms


def _blend(average: Variables, variables: Variables, decay: float | Float[Array, ""]) -> Variables:
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, variables)


def abstract_state(
    init: Callable[..., Variables],
    init_args: tuple[PyTree, ...],
    tx: optax.GradientTransformation,
    averages: Collection[str],
) -> TrainState:
    """Shapes of the state that `create_state` makes, without making it."""
    return jax.eval_shape(lambda *args: _new_state(init(*args), tx, averages), *init_args)


def create_state(
    init: Callable[..., Variables],
    init_args: tuple[PyTree, ...],
    tx: optax.GradientTransformation,
    averages: Collection[str],
    mesh: Mesh,
) -> TrainState:
    """Makes a new state, sharded from the start: no device ever holds it whole.

    Args:
        init: `init(*init_args)` makes the model's variables.
        init_args: such as a key; weights that are there already are for `state_of`.
        tx: the optimiser.
        averages: names of the moving averages that are kept.
        mesh: where it lives.
    """
    shardings = state_shardings(mesh, abstract_state(init, init_args, tx, averages))
    make = jax.jit(lambda *args: _new_state(init(*args), tx, averages), out_shardings=shardings)
    return make(*init_args)


def state_of(
    variables: Variables, tx: optax.GradientTransformation, averages: Collection[str], mesh: Mesh
) -> TrainState:
    """The new state of weights that are there: it takes them over, and holds no second copy.

    Args:
        variables: of the model; used up where they live as the state has them (`state_shardings`),
            for the first step of training gives their memory away.
        tx: the optimiser.
        averages: names of the moving averages that are kept.
        mesh: where it lives.
    """
    variables = jax.device_put(variables, state_shardings(mesh, variables))

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
        ema={name: jax.tree.map(jnp.copy, variables) for name in averages},
    )
