"""Names of T5's parameters in transformers."""

RENAMES = (
    (r"^encoder\.embed_tokens", "shared"),  # the same weights under a second name
    (r"^encoder\.", ""),
    (r"^.*relative_attention_bias", "relative_attention_bias.embedding"),
    (r"block\.(\d+)\.", r"block_\1."),
    (r"layer\.(\d)\.layer_norm", r"layer_\1_layer_norm"),
    (r"layer\.0\.SelfAttention\.", "SelfAttention_"),
    (r"layer\.1\.DenseReluDense\.", ""),
)
