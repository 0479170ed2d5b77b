"""Tiny networks of diffusers and transformers, as Stable Diffusion configures them."""

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.parity.torch_weights import randomize
from tests.support.clip_vocabulary import END, VOCABULARY, write_tokenizer

LATENTS = 4
VAE = dict(
    block_out_channels=[16, 32],
    down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
    layers_per_block=1,
    norm_num_groups=4,
    latent_channels=LATENTS,
)


def tiny_vae(**fields):
    torch.manual_seed(0)  # randomize adds to the biases that are there
    return randomize(AutoencoderKL(**{**VAE, **fields}), seed=0)


CLIP = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=9,
    projection_dim=10,
    bos_token_id=61,
    eos_token_id=62,
)
CLIPS = {
    # OpenAI's, whose old config names an end token that there is not; OpenCLIP's.
    "clip": (CLIPTextModel, dict(CLIP, eos_token_id=2)),
    "openclip": (CLIPTextModelWithProjection, dict(CLIP, hidden_act="gelu")),
}


def tiny_clip(kind, **fields):
    maker, usual = CLIPS[kind]
    torch.manual_seed(0)
    return randomize(maker(CLIPTextConfig(**usual | fields)), seed=0)


# Text states of this width, SDXL's of both encoders; so many pooled.
TEXT, POOLED = 16, 10
UNET = dict(
    sample_size=8,
    in_channels=LATENTS,
    out_channels=LATENTS,
    block_out_channels=[16, 32],
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=TEXT,
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
)
UNETS = {
    "sd15": dict(UNET, attention_head_dim=2, layers_per_block=2),
    "sd21": dict(UNET, attention_head_dim=[2, 4], use_linear_projection=True),
    "sdxl": dict(
        UNET,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        cross_attention_dim=2 * TEXT,
        attention_head_dim=[2, 4],
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
    ),
}


def tiny_unet(kind):
    torch.manual_seed(0)
    return randomize(UNet2DConditionModel(**UNETS[kind]), seed=0)


def to_torch(array):
    """Images of ours as PyTorch's, of which a gradient is wanted."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).requires_grad_()


def from_torch(tensor):
    return tensor.detach().permute(0, 2, 3, 1)


NOISE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
# As the files of Stable Diffusion 1 have it; tokens a prompt.
DDIM = dict(
    name="DDIMScheduler", clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"
)
LENGTH = 9


def save_pipeline(folder, kind, prediction, scheduler=DDIM, length=LENGTH, **networks):
    """A pipeline of diffusers with tiny parts, or others in their place, on disk."""
    tokens = dict(vocab_size=len(VOCABULARY), max_position_embeddings=length)
    write_tokenizer(folder / "tokenizer", length)
    settings = dict(NOISE, steps_offset=1, prediction_type=prediction) | scheduler
    parts = dict(
        vae=tiny_vae(),
        unet=tiny_unet(kind),
        text_encoder=tiny_clip("clip", **tokens),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=getattr(diffusers, settings.pop("name"))(**settings),
        feature_extractor=None,
        image_encoder=None,
    )
    parts |= networks
    if kind == "sdxl":
        write_tokenizer(folder / "tokenizer_2", length, pad="!")
        parts["text_encoder_2"] = tiny_clip("openclip", **tokens, eos_token_id=END)
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
