"""Names of IF's parameters in diffusers' and transformers' files: a table of rules for a model."""

from launch.runtime.checkpoints.tensor_mapping import Rules

UNET_RULES: Rules = (
    (r"^(down_blocks|up_blocks)_(\d+)_([a-z]+)_(\d+)\.", r"\1.\2.\3.\4."),
    (r"^mid_block_([a-z]+)_(\d+)\.", r"mid_block.\1.\2."),
    (r"\.to_out_0\.", ".to_out.0."),
    (r"\.(kernel|scale)$", ".weight"),
)
T5_RULES: Rules = (
    (r"^block_(\d+)\.SelfAttention_(\w)\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^block_(\d+)\.layer_(\d)_layer_norm\.", r"encoder.block.\1.layer.\2.layer_norm."),
    (r"^block_(\d+)\.(wi_\d|wo)\.", r"encoder.block.\1.layer.1.DenseReluDense.\2."),
    (
        r"^relative_attention_bias\.embedding\.",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^final_layer_norm\.", "encoder.final_layer_norm."),
    (r"\.(kernel|embedding)$", ".weight"),
)
# Second names of tensors in the files: {second: first}.
T5_ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
