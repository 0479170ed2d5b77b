"""Our T5 encoder against transformers', version 1.1 (gated gelu)."""

import jax
import numpy as np
import pytest
import torch
from transformers import T5Config, T5EncoderModel

from imagen_ft.models.t5 import T5Encoder
from tests.parity.torch_weights import randomize, relative_error, variables

RENAMES = (
    (r"^encoder\.embed_tokens", "shared"),  # the same weights under a second name
    (r"^encoder\.", ""),
    (r"^.*relative_attention_bias", "relative_attention_bias.embedding"),
    (r"block\.(\d+)\.", r"block_\1."),
    (r"layer\.(\d)\.layer_norm", r"layer_\1_layer_norm"),
    (r"layer\.0\.SelfAttention\.", "SelfAttention_"),
    (r"layer\.1\.DenseReluDense\.", ""),
)


@pytest.mark.parametrize(
    ("length", "config"),
    [
        (150, dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
        (
            40,
            dict(
                d_model=24,
                d_kv=6,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                num_buckets=12,
                max_distance=30,
            ),
        ),
    ],
    ids=["default buckets", "few buckets"],
)
def test_states(length, config):
    """Sequences longer than the furthest bucket; padding is kept in the output, masked inside."""
    model = T5Encoder(vocab_size=50, **config)
    theirs = randomize(
        T5EncoderModel(
            T5Config(
                vocab_size=50,
                d_model=config["d_model"],
                d_kv=config["d_kv"],
                d_ff=config["d_ff"],
                num_layers=config["num_layers"],
                num_heads=config["num_heads"],
                relative_attention_num_buckets=model.num_buckets,
                relative_attention_max_distance=model.max_distance,
                feed_forward_proj="gated-gelu",
            )
        ),
        seed=0,
    )
    tokens = np.random.default_rng(0).integers(2, 50, (3, length)).astype(np.int32)
    mask = np.arange(length) < np.array([[length], [length // 2], [1]])
    tokens = np.where(mask, tokens, 0)

    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, mask)
    ours = jax.jit(model.apply)(variables(theirs, shapes, RENAMES), tokens, mask)
    expected = theirs(
        input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long()
    ).last_hidden_state
    assert relative_error(ours, expected) <= 1e-5
