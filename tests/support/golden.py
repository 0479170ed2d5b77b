"""A few updates of a trainer, whose numbers a test has recorded."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

# Relative to the largest number in a row; other processors change numbers by a third of it.
SHARE = 1e-6
METRICS = ("loss", "gradient_norm", "update_norm", "learning_rate")


def take_steps(step, state, batches):
    """Takes one step per batch; returns the state and the metrics of each."""
    # Layers that start at zero would hide everything before them.
    params = jax.tree.map(_rippled, state.variables["params"])
    averages = {
        name: {**average, "params": jax.tree.map(jnp.copy, params)}
        for name, average in state.ema.items()
    }
    state = state.replace(variables={**state.variables, "params": params}, ema=averages)
    metrics = []
    for batch in batches:
        state, measured = step(state, batch)
        metrics.append(jax.device_get(measured))
    return state, metrics


def _rippled(leaf):
    return leaf + 0.1 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)


def rows(state, metrics, paths):
    """Metrics of each step; for some arrays and their averages, a few values and the largest."""
    table = {name: [float(each[name]) for each in metrics] for name in METRICS}
    for label, variables in {"trained": state.variables, **state.ema}.items():
        leaves = flax.traverse_util.flatten_dict(variables, sep="/")
        for path in paths:
            values = np.asarray(leaves[path]).ravel()
            # With an even stride all values would be from the first channel.
            chosen = [*values[:: len(values) // 3 | 1], np.abs(values).max()]
            table[f"{label} {path}"] = [float(value) for value in chosen]
    return table


def assert_golden(table, golden):
    """Compares rows with the recorded numbers; shows all that differ."""
    assert table.keys() == golden.keys()
    errors = {
        name: np.abs(np.subtract(table[name], expected)).max() / np.abs(expected).max()
        for name, expected in golden.items()
    }
    wrong = [name for name, error in errors.items() if not error <= SHARE]
    shown = [f"{name}: {table[name]}, off by {errors[name]:.1e} of its scale" for name in wrong]
    assert not wrong, "\n".join(shown)
