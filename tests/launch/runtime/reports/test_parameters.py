import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct

from launch.runtime.reports.parameters import module_table, tensor_table


def layer(width, dtype=jnp.float32):
    return {
        "kernel": ShapeDtypeStruct((3, 3, width, 2 * width), dtype),
        "bias": ShapeDtypeStruct((2 * width,), jnp.float32),
    }


def names(table):
    return [line.split()[0] for line in table.splitlines()[2:]]


def test_a_line_a_module():
    params = {
        "block_10": {"conv1": layer(4, jnp.bfloat16), "conv2": layer(4)},
        "block_9": {"conv1": layer(8)},
        "scale": np.float32(1),
    }
    table = module_table(params)
    assert names(table) == ["block_9/conv1", "block_10/conv1", "block_10/conv2", "scale"]
    rows = [" ".join(line.split()) for line in table.splitlines()[2:]]
    assert rows[0] == "block_9/conv1 2 1,168 66.3% 3 x 3 x 8 x 16 float32"
    assert rows[1] == "block_10/conv1 2 296 16.8% 3 x 3 x 4 x 8 bfloat16, float32"
    assert rows[3] == "scale 1 1 0.1% one number float32"
    assert names(module_table(params, most_rows=3)) == ["block_9", "block_10", "scale"]
    assert tensor_table(params).count("kernel") == 3
    assert module_table({}) == "no tensors"


def test_blocks_that_are_alike_join_where_there_are_many():
    params = {f"down_{i}_attention_{k}": {"q": layer(4)} for i in range(4) for k in range(5)}
    assert len(names(module_table(params))) == 20
    table = module_table(params, most_rows=10)
    assert names(table) == [f"down_{i}_attention_*" for i in range(4)]
    assert all("25.0%" in line and " 10 " in line for line in table.splitlines()[2:])
    assert names(module_table(params, most_rows=3)) == ["down_*_attention_*"]
