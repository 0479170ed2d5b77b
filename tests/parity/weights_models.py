"""Tiny models of diffusers and transformers, as DeepFloyd IF configures them, and our runs."""

import jax
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from etils import epath
from transformers import T5Config, T5EncoderModel

from imagen_ft import weights
from launch.runtime.checkpoints import checkpoint
from launch.runtime.run_record import write_record
from tests.parity.torch_weights import randomize

TEXT_WIDTH = 32
COMMON = dict(
    sample_size=8,
    out_channels=6,
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    block_out_channels=(32, 64),
    act_fn="gelu",
    cross_attention_dim=64,
    encoder_hid_dim=TEXT_WIDTH,
    encoder_hid_dim_type="text_proj",
    attention_head_dim=16,
    addition_embed_type="text",
    addition_embed_type_num_heads=4,
    resnet_time_scale_shift="scale_shift",
    cross_attention_norm="group_norm",
)
STAGES = {
    1: dict(COMMON, in_channels=3, layers_per_block=1),
    2: dict(
        COMMON,
        in_channels=6,
        layers_per_block=(1, 2),
        class_embed_type="timestep",
        time_embedding_dim=64,
        time_embedding_act_fn="gelu",
        resnet_skip_time_act=True,
        resnet_out_scale_factor=1.41422712,
        mid_block_scale_factor=1.41422712,
    ),
}


def tiny_unet(stage):
    torch.manual_seed(stage)  # randomize adds to the biases that are there
    return randomize(UNet2DConditionModel(**STAGES[stage]), seed=stage)


def tiny_t5(d_model=TEXT_WIDTH):
    config = T5Config(
        vocab_size=64,
        d_model=d_model,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    torch.manual_seed(0)
    return randomize(T5EncoderModel(config), seed=0)


def unet_inputs(stage):
    """x [2, 8, 8, c], t, text, noise level or None."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, STAGES[stage]["in_channels"])).astype(np.float32)
    text = rng.normal(size=(2, 5, TEXT_WIDTH)).astype(np.float32)
    level = np.array([250.0, 3.0], np.float32) if stage == 2 else None
    return x, np.array([17.0, 803.0], np.float32), text, level


def theirs(unet, stage):
    """Output of a U-Net of diffusers, [2, 8, 8, 6]."""
    x, t, text, level = (a if a is None else torch.from_numpy(a) for a in unet_inputs(stage))
    with torch.no_grad():
        return unet(x.permute(0, 3, 1, 2), t, text, level).sample.permute(0, 2, 3, 1).numpy()


def ours(path, stage, **arguments):
    """Output of what `load_unet` loads."""
    model, params = weights.load_unet(path, **arguments)
    return np.asarray(jax.jit(model.apply)({"params": params}, *unet_inputs(stage)))


def make_run(folder, stage, params, lora=None, **unet):
    """A run directory as imagen_ft.finetune leaves it, of the tiny U-Net of a stage or adapters."""
    fields = dict(
        block_out_channels=(32, 64),
        layers_per_block=STAGES[stage]["layers_per_block"],
        attention=(False, True),
        cross_attention_dim=64,
        attention_head_dim=16,
        pooling_heads=4,
        dtype="float32",
    )
    if stage == 2:
        fields |= dict(time_embedding_dim=64, skip_time_act=True, out_scale=1.41422712)
    low_size = 4 if stage == 2 else 0
    stage = dict(size=8, low_size=low_size, channels=3, schedule="cosine", unet={**fields, **unet})
    folder.mkdir()
    config = {"total_steps": 3, "stage": stage, "lora": lora}
    run_name = write_record(epath.Path(folder), config, inputs={})
    checkpoint.save_inference(folder, run_name, {"params": params}, step=3)
    return folder
