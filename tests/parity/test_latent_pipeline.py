"""From prompts to pictures by hand, against diffusers' pipelines: same weights, same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from classifiers.clip.tokenizer import load_clip_tokenizer
from imagen_ft import weights
from imagen_ft.diffusion import samplers
from imagen_ft.diffusion.ddpm import DDIM
from imagen_ft.diffusion.forward_process import x0_from_output
from imagen_ft.diffusion.guidance import guide
from imagen_ft.diffusion.schedule import alpha_sigma, make_schedule
from imagen_ft.models.autoencoder import decode_one_by_one
from imagen_ft.models.latent_unet import Added
from imagen_ft.weights.latent_parts import latent_settings
from tests.parity.latent_models import LATENTS, tiny_clip, tiny_unet, tiny_vae
from tests.support.clip_vocabulary import END, VOCABULARY, write_tokenizer

NOISE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
PROMPTS, NEGATIVE = ["a dog", "cat cat dog"], "dog dog"
# Of another number of steps diffusers' DDIM goes to times that are not its own next ones.
LENGTH, SIDE, STEPS = 9, 8, 4


@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedule(zero_snr):
    theirs = DDIMScheduler(**NOISE, rescale_betas_zero_snr=zero_snr).alphas_cumprod
    schedule = make_schedule(dict(name="scaled_linear", zero_terminal_snr=zero_snr))
    alpha, _ = alpha_sigma(schedule.logsnr(np.arange(1, 1001, dtype=np.float32) / 1000))
    # Theirs are differences in float32, the last one exactly none; ours is a scale of 1e-9.
    np.testing.assert_allclose(alpha**2, theirs, rtol=1e-5, atol=1e-10 * zero_snr)
    assert (float(theirs[-1]) == 0) == zero_snr


def save(folder, kind, prediction):
    """A pipeline of diffusers with tiny parts, on disk."""
    tokens = dict(vocab_size=len(VOCABULARY), max_position_embeddings=LENGTH)
    write_tokenizer(folder / "tokenizer", LENGTH)
    parts = dict(
        vae=tiny_vae(),
        unet=tiny_unet(kind),
        text_encoder=tiny_clip("clip", **tokens),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=DDIMScheduler(
            **NOISE,
            clip_sample=False,
            prediction_type=prediction,
            timestep_spacing="trailing",
            steps_offset=1,  # no matter here, but it warns
            rescale_betas_zero_snr=prediction == "v_prediction",
        ),
        feature_extractor=None,
        image_encoder=None,
    )
    if kind == "sdxl":
        write_tokenizer(folder / "tokenizer_2", LENGTH, pad="!")
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


def encode(folder, kind, prompts):
    """States, and the pooled text where there is a second encoder."""
    states = []
    for suffix in ("", "_2") if kind == "sdxl" else ("",):
        model, params = weights.load_part(f"text_encoder{suffix}", folder)
        tokens = load_clip_tokenizer(folder / f"tokenizer{suffix}", LENGTH)(prompts)
        states.append(jax.jit(model.apply)({"params": params}, tokens))
    if kind != "sdxl":
        return states[0].last, None
    return jnp.concatenate([state.penultimate for state in states], -1), states[-1].pooled


def draw(folder, kind, settings, weight, noise):
    """What our modules make of the same files."""
    prompts = [*PROMPTS, *[NEGATIVE] * len(PROMPTS)] if weight != 1 else PROMPTS
    text, pooled = encode(folder, kind, prompts)
    added = None
    if kind == "sdxl":
        side = 2.0 * SIDE
        sizes = jnp.tile(jnp.array([side, side, 0, 0, side, side]), (len(prompts), 1))
        added = Added(pooled, sizes)
    unet, params = weights.load_part("unet", folder)
    vae, vae_params = weights.load_part("vae", folder)
    schedule = make_schedule(settings["schedule"])
    context = unet.apply({"params": params}, text, added, method="context")

    def denoise(x, t):
        doubled = jnp.concatenate([x] * (len(prompts) // len(x)))
        time = jnp.full(len(doubled), schedule.model_time(t))
        output = unet.apply({"params": params}, doubled, time, context, method="denoise")
        output = guide(*jnp.split(output, 2), weight, LATENTS) if weight != 1 else output
        x0 = x0_from_output(output, x, schedule.logsnr(t), settings["prediction"])
        return samplers.Prediction(x0)

    @jax.jit
    def run(noise):
        sampler = DDIM(STEPS, 0.0, "trailing")
        latents, _ = samplers.sample(sampler, denoise, schedule, lambda _: noise)
        return decode_one_by_one(vae, {"params": vae_params}, latents)

    return run(noise)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "prediction", "weight"),
    [
        ("sd15", "epsilon", 3.0),
        ("sd15", "epsilon", 1.0),
        ("sd21", "v_prediction", 3.0),
        ("sdxl", "epsilon", 3.0),
        ("sdxl", "v_prediction", 1.0),
    ],
)
def test_pipeline(kind, prediction, weight, tmp_path):
    pipeline = save(tmp_path, kind, prediction)
    noise = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, LATENTS)).astype(np.float32)
    expected = pipeline(
        PROMPTS,
        negative_prompt=[NEGATIVE] * len(PROMPTS) if weight != 1 else None,
        num_inference_steps=STEPS,
        guidance_scale=weight,
        height=2 * SIDE,
        width=2 * SIDE,
        latents=torch.from_numpy(noise).permute(0, 3, 1, 2),
        output_type="pt",
    ).images
    expected = expected.permute(0, 2, 3, 1).numpy()
    settings = latent_settings(pipeline.scheduler.config, "")
    images = np.clip(draw(tmp_path, kind, settings, weight, noise) / 2 + 0.5, 0, 1)
    assert np.abs(images - expected).max() <= 1e-3
    assert expected.std() > 0.05 and (np.abs(expected - 0.5) < 0.49).mean() > 0.2
