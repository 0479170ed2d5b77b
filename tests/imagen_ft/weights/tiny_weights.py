"""A tiny pipeline's folder in diffusers' layout, written without diffusers."""

import json
import os

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from imagen_ft.weights.pipeline_parts import PARTS
from imagen_ft.weights.tensor_rules import layout_of
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings

CONFIGS = {
    "unet": dict(
        _class_name="UNet2DConditionModel",
        act_fn="gelu",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        attention_head_dim=16,
        block_out_channels=[32],
        cross_attention_dim=32,
        cross_attention_norm="group_norm",
        down_block_types=["SimpleCrossAttnDownBlock2D"],
        encoder_hid_dim=16,
        in_channels=3,
        layers_per_block=1,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        out_channels=6,
        resnet_time_scale_shift="scale_shift",
        up_block_types=["SimpleCrossAttnUpBlock2D"],
    ),
    "text_encoder": dict(
        model_type="t5",
        feed_forward_proj="gated-gelu",
        vocab_size=24,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
    ),
    "vae": dict(
        _class_name="AutoencoderKL",
        block_out_channels=[8],
        down_block_types=["DownEncoderBlock2D"],
        latent_channels=3,
        norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"],
    ),
}
SCHEDULER = dict(
    _class_name="DDPMScheduler",
    beta_schedule="squaredcos_cap_v2",
    dynamic_thresholding_ratio=0.95,
    sample_max_value=1.5,
    thresholding=True,
    variance_type="learned_range",
)
INDEX = dict(
    _class_name="IFPipeline",
    safety_checker=["deepfloyd_if", "IFSafetyChecker"],
    scheduler=["diffusers", "DDPMScheduler"],
    text_encoder=["transformers", "T5EncoderModel"],
    tokenizer=["transformers", "T5Tokenizer"],
    unet=["diffusers", "UNet2DConditionModel"],
)


def tensors(part, dtype="float32"):
    """Random ones by their names in the files."""
    model, shapes = PARTS[part].build(CONFIGS[part], "config.json")
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=mapping.file_shape).astype(jnp.dtype(dtype))
        for name, mapping in tensor_mappings(shapes, layout_of(model).rules).items()
    }


def write_json(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))


def write_part(folder, part, variant=None, files=1, dtype="float32", arrays=None):
    """One file, or several with an index."""
    arrays = tensors(part, dtype) if arrays is None else arrays
    write_json(folder / "config.json", CONFIGS[part])
    stem, dot = PARTS[part].stem, f".{variant}" if variant else ""
    names = [f"{stem}{dot}-{n:05}-of-{files:05}.safetensors" for n in range(1, files + 1)]
    names = names if files > 1 else [f"{stem}{dot}.safetensors"]
    weight_map = {tensor: names[n % files] for n, tensor in enumerate(arrays)}
    for name in names:
        of_file = {tensor: arrays[tensor] for tensor in arrays if weight_map[tensor] == name}
        safetensors.numpy.save_file(of_file, folder / name, metadata={"format": "pt"})
    if files > 1:
        write_json(folder / f"{stem}.safetensors.index{dot}.json", {"weight_map": weight_map})
    return folder


def write_pipeline(folder, **options):
    """Both parts, a scheduler, something like a tokenizer, an index."""
    for part in ("unet", "text_encoder"):
        write_part(folder / part, part, **options)
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    write_json(folder / "tokenizer/tokenizer_config.json", dict(model_max_length=512))
    (folder / "tokenizer/spiece.model").write_bytes(os.urandom(100))
    write_json(folder / "model_index.json", INDEX)
    return folder
