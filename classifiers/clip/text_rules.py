"""Names of the text encoder's parameters in transformers' files."""

from launch.runtime.checkpoints.tensor_mapping import Rules

CLIP_TEXT: Rules = (
    (r"^embeddings_(\w+)\.", r"text_model.embeddings.\1."),
    (r"^layers_(\d+)\.", r"text_model.encoder.layers.\1."),
    (r"\.self_attn_(\w+)\.", r".self_attn.\1."),
    (r"\.mlp_(\w+)\.", r".mlp.\1."),
    (r"^final_layer_norm\.", "text_model.final_layer_norm."),
    (r"\.(kernel|scale|embedding)$", ".weight"),
)
