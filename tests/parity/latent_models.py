"""Tiny networks of diffusers and transformers, as Stable Diffusion configures them."""

import torch
from diffusers import AutoencoderKL

from tests.parity.torch_weights import randomize

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


def to_torch(array):
    """Images of ours as PyTorch's, of which a gradient is wanted."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).requires_grad_()


def from_torch(tensor):
    return tensor.detach().permute(0, 2, 3, 1)
