"""The one state of training, created where it will live."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from launch.runtime.mesh import state_shardings


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs.

    Attributes:
        step: number of updates made.
        variables: the model's collections; `params` is what the optimiser moves.
        opt_state: state of the optimiser.
        ema: exponential moving average of `variables`; None when it is not kept.
    """

    step: Int[Array, ""]
    variables: dict[str, PyTree]
    opt_state: optax.OptState
    ema: dict[str, PyTree] | None

    @property
    def inference_variables(self) -> dict[str, PyTree]:
        """What to sample or evaluate with."""
        return self.variables if self.ema is None else self.ema

    def update(
        self,
        grads: PyTree,
        tx: optax.GradientTransformation,
        ema_decay: float,
        model_state: dict[str, PyTree] | None = None,
    ) -> "TrainState":
        """Applies one optimiser step.

        Args:
            grads: gradients of the loss with respect to `variables['params']`.
            tx: the optimiser.
            ema_decay: limit of the moving average's decay; early steps forget faster.
            model_state: new values of the other collections (batch statistics).
        """
        updates, opt_state = tx.update(grads, self.opt_state, self.variables["params"])
        params = optax.apply_updates(self.variables["params"], updates)
        variables = {**self.variables, **(model_state or {}), "params": params}
        ema = self.ema
        if ema is not None:
            # The first steps' weights are worth little: min(decay, (1 + n) / (10 + n)).
            decay = jnp.minimum(ema_decay, (1.0 + self.step) / (10.0 + self.step))
            ema = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), ema, variables)
        return TrainState(self.step + 1, variables, opt_state, ema)


def abstract_state(
    init: Callable[..., dict[str, PyTree]],
    init_args: tuple[PyTree, ...],
    tx: optax.GradientTransformation,
    keep_ema: bool,
) -> TrainState:
    """Shapes of the state that `create_state` makes, without making it."""
    return jax.eval_shape(lambda *args: _new_state(init(*args), tx, keep_ema), *init_args)


def create_state(
    init: Callable[..., dict[str, PyTree]],
    init_args: tuple[PyTree, ...],
    tx: optax.GradientTransformation,
    keep_ema: bool,
    mesh: Mesh,
) -> TrainState:
    """Makes a new state, sharded from the start: no device ever holds it whole.

    Args:
        init: `init(*init_args)` makes the model's variables.
        init_args: a key, or imported weights.
        tx: the optimiser.
        keep_ema: whether a moving average is kept.
        mesh: where it lives.
    """
    shardings = state_shardings(mesh, abstract_state(init, init_args, tx, keep_ema))
    make = jax.jit(lambda *args: _new_state(init(*args), tx, keep_ema), out_shardings=shardings)
    return make(*init_args)


def _new_state(
    variables: dict[str, PyTree], tx: optax.GradientTransformation, keep_ema: bool
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if keep_ema else None,
    )
