"""What test_text_devices asks of eight devices, as one JSON line.

python -m tests.imagen_ft.text.text_devices
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from imagen_ft.models.t5 import T5Encoder
from imagen_ft.text.t5_embedder import T5Embedder
from launch.runtime.devices.mesh import make_mesh, state_shardings

# 2^18 weights, from which on they are split.
WIDTH = 512
MODEL = T5Encoder(64, d_model=WIDTH, d_kv=64, d_ff=WIDTH, num_layers=1, num_heads=8)
LENGTH = 7


class Tokenizer:
    """Letters."""

    max_length = LENGTH
    pieces = range(64)

    def __call__(self, prompts):
        tokens = np.zeros((len(prompts), LENGTH), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt) + 1] = [*(ord(letter) - 95 for letter in prompt), 1]
        return tokens, tokens > 0


def params():
    tokens = jnp.ones((1, LENGTH), jnp.int32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), tokens, tokens > 0)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, leaf.shape[0] ** -0.5, leaf.shape).astype(np.float32), shapes
    )


def embed(mesh, weights, dtype):
    """Batches of eleven prompts, and how many elements of wi_0, of eight prompts a device holds."""
    weights = jax.device_put(weights, state_shardings(mesh, weights))
    embedder = T5Embedder(MODEL.clone(dtype=dtype), weights, Tokenizer(), mesh)
    prompts = [
        "",
        *(name[:6] for name in "zero one two three four five six seven nine ten".split()),
    ]
    batches = list(embedder.embed(prompts, batch_size=3))
    kernel = weights["block_0"]["wi_0"]["kernel"]
    rows = embedder._put(embedder.tokenizer(prompts[:8])[0], 8)
    held = [kernel.addressable_shards[0].data.size, len(rows.addressable_shards[0].data)]
    return batches, held


def main():
    weights = params()
    one = jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    result = {"devices": jax.device_count()}
    for dtype in ("float32", "bfloat16"):
        expected = np.concatenate(embed(one, weights, jnp.dtype(dtype))[0]).astype(np.float32)
        for axes in ({"data": 2, "fsdp": 4}, {"fsdp": 8}, {"data": 8}):
            batches, held = embed(make_mesh(axes), weights, jnp.dtype(dtype))
            found = np.concatenate(batches)
            assert found.dtype == jnp.dtype(dtype)
            error = np.linalg.norm(found.astype(np.float32) - expected) / np.linalg.norm(expected)
            name = " ".join(f"{axis} {size}" for axis, size in axes.items())
            result[f"{dtype} {name}"] = [float(error), held, [len(batch) for batch in batches]]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
