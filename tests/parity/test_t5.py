"""Our T5 encoder against transformers', version 1.1 (gated gelu)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from imagen_ft.models.t5 import RelativePositionBias, T5Encoder
from tests.parity.torch_weights import randomize, relative_error, variables
from tests.support.transformers_t5 import RENAMES

VOCABULARY = 50


def encoder(**fields):
    return T5Encoder(VOCABULARY, **fields)


def reference(model, seed):
    """transformers' encoder of the same shape, with random weights."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=model.d_model,
        d_kv=model.d_kv,
        d_ff=model.d_ff,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        relative_attention_num_buckets=model.num_buckets,
        relative_attention_max_distance=model.max_distance,
        feed_forward_proj="gated-gelu",
    )
    return randomize(T5EncoderModel(config), seed)


def prompts(length):
    """Three rows of ids: full, half full, one token; the rest is padding."""
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, (3, length)).astype(np.int32)
    mask = np.arange(length) < np.array([[length], [length // 2], [1]])
    return np.where(mask, tokens, 0), mask


def error(model, theirs, tokens, mask, param_dtype=jnp.float32):
    """Relative error of our states, with their weights rounded to `param_dtype`."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, mask)
    weights = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, param_dtype), variables(theirs, shapes, RENAMES)
    )
    ours = jax.jit(model.apply)(weights, tokens, mask)
    assert ours.dtype == jnp.float32
    expected = theirs(
        input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long()
    ).last_hidden_state
    return relative_error(ours, expected)


@pytest.mark.parametrize(
    ("length", "model"),
    [
        (150, encoder(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
        (
            40,
            encoder(
                d_model=24, d_kv=6, d_ff=16, num_layers=1, num_heads=2, num_buckets=12,
                max_distance=30,
            ),
        ),
        (
            21,
            encoder(
                d_model=10, d_kv=7, d_ff=30, num_layers=3, num_heads=3, num_buckets=8,
                max_distance=16,
            ),
        ),
        (77, encoder(d_model=48, d_kv=16, d_ff=40, num_layers=2, num_heads=1)),
    ],
    ids=["default buckets", "few buckets", "odd widths", "one head"],
)  # fmt: skip
def test_states(length, model):
    """Sequences longer than the furthest bucket; padding is kept in the output, masked inside."""
    assert error(model, reference(model, seed=0), *prompts(length)) <= 1e-5


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (12, 30), (8, 16), (64, 512)])
def test_buckets_of_all_distances(buckets, furthest):
    """16, 32 and 64 lie on the border of two buckets of T5's 32."""
    positions = np.arange(2 * furthest)
    relative = positions[None] - positions[:, None]
    ours = RelativePositionBias(1, buckets, furthest)._bucket(relative)
    theirs = T5Attention._relative_position_bucket(
        torch.from_numpy(relative), bidirectional=True, num_buckets=buckets, max_distance=furthest
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("param_dtype", "bound"), [(jnp.float32, 1e-4), (jnp.bfloat16, 5e-3)], ids=["float32", "bf16"]
)
def test_bfloat16_keeps_large_activations(param_dtype, bound):
    """A residual stream of 1e5, where bfloat16 resolves 512: only its products are rounded."""
    model = encoder(d_model=32, d_kv=8, d_ff=48, num_layers=6, num_heads=4, dtype=jnp.bfloat16)
    theirs = reference(model, seed=0)
    theirs.shared.weight.mul_(1e5 * model.d_model**0.5)
    assert error(model, theirs, *prompts(20), param_dtype) <= bound


def test_bfloat16_keeps_the_softmax():
    """Logits around 100, where bfloat16 resolves 0.5, made by the biases alone."""
    model = encoder(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dtype=jnp.bfloat16)
    theirs = reference(model, seed=0)
    for block in theirs.encoder.block:
        block.layer[0].SelfAttention.q.weight.zero_()
    theirs.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(200)
    assert 1e-4 < error(model, theirs, *prompts(20)) <= 1e-2


def test_float16_where_it_would_overflow():
    """Hidden values and what they add to the stream are beyond 65,504, as in T5-XXL."""
    model = encoder(d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, dtype=jnp.float16)
    theirs, outputs = reference(model, seed=0), []
    for block in theirs.encoder.block:
        block.layer[0].SelfAttention.v.weight.mul_(300)
        block.layer[0].SelfAttention.o.weight.mul_(3000)
        block.layer[1].DenseReluDense.wi_0.weight.mul_(300)
        block.layer[1].DenseReluDense.wi_1.weight.mul_(300)
        for layer in (block.layer[0].SelfAttention.o, block.layer[1].DenseReluDense.wo):
            layer.register_forward_hook(lambda _, inputs, output: outputs.append((*inputs, output)))
    assert error(model, theirs, *prompts(20), jnp.float16) <= 3e-3
    attended, (hidden, added) = outputs[0][-1], outputs[1]
    assert min(float(values.abs().max()) for values in (attended, hidden, added)) > 65_504
