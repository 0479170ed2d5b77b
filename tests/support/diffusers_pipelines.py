"""diffusers' pipelines for DeepFloyd IF, without weights."""

import numpy as np
import torch
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline

LEVEL = 250
IF = "diffusers.pipelines.deepfloyd_if"


def make_theirs(unet, number, variance_type="learned_range"):
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type=variance_type,
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    parts = dict(unet=unet, scheduler=scheduler, tokenizer=None, text_encoder=None)
    parts |= dict(safety_checker=None, feature_extractor=None, watermarker=None)
    kind = IFPipeline if number == 1 else IFSuperResolutionPipeline
    if number == 2:
        parts["image_noising_scheduler"] = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    pipeline = kind(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_torch(images):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
