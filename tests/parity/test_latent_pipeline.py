"""From prompts to pictures by a cascade, against diffusers' pipelines: same files, same noise."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from imagen_ft.cascade import Cascade
from imagen_ft.cascade.drawing import image_keys
from imagen_ft.cascade.opened import as_config
from imagen_ft.diffusion import samplers
from imagen_ft.diffusion.schedule import alpha_sigma, make_schedule
from imagen_ft.diffusion.spacing import sampling_times
from launch.errors import InputError
from tests.parity.latent_models import DDIM, LATENTS, NOISE, save_pipeline

PROMPTS, NEGATIVE = ["a dog", "cat cat dog"], "dog dog"
SIDE, STEPS, SEED = 8, 4, 3
EULER = dict(name="EulerDiscreteScheduler", timestep_spacing="leading")
DPM = dict(name="DPMSolverMultistepScheduler")


@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedule(zero_snr):
    theirs = DDIMScheduler(**NOISE, rescale_betas_zero_snr=zero_snr).alphas_cumprod
    schedule = make_schedule(dict(name="scaled_linear", zero_terminal_snr=zero_snr))
    alpha, _ = alpha_sigma(schedule.logsnr(np.arange(1, 1001, dtype=np.float32) / 1000))
    # Theirs are differences in float32, the last one exactly none; ours is a scale of 1e-9.
    np.testing.assert_allclose(alpha**2, theirs, rtol=1e-5, atol=1e-10 * zero_snr)
    assert (float(theirs[-1]) == 0) == zero_snr


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_steps", [1, 3, 20, 50, 99])
@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("DDIMScheduler", "leading", "leading_one"),
        ("EulerDiscreteScheduler", "leading", "leading_one"),
        ("DPMSolverMultistepScheduler", "leading", "leading_one_open"),
        ("DPMSolverMultistepScheduler", "linspace", "linspace_open"),
        ("UniPCMultistepScheduler", "leading", "leading_one_open"),
    ],
)
def test_times(name, theirs, ours, num_steps):
    """Those of diffusers' schedulers with the steps_offset that Stable Diffusion's files have."""
    scheduler = getattr(diffusers, name)(**NOISE, steps_offset=1, timestep_spacing=theirs)
    scheduler.set_timesteps(num_steps)
    times = sampling_times(make_schedule("scaled_linear"), num_steps, ours)
    np.testing.assert_allclose(1000 * times[:-1] - 1, scheduler.timesteps, atol=1e-3)
    assert times[-1] == 0


def test_times_that_there_are_not():
    with pytest.raises(InputError, match=r"must be below 1000 for sampler\.spacing='leading_one'"):
        sampling_times(make_schedule("scaled_linear"), 1000, "leading_one")
    with pytest.raises(InputError, match="first 4 with _open appended"):
        sampling_times(make_schedule("scaled_linear"), 2, "karras_open")


# Theirs makes NumPy's arrays as before its second version.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "prediction", "scheduler", "weight", "negative"),
    [
        ("sd15", "epsilon", DDIM, 3.0, NEGATIVE),
        ("sd15", "epsilon", EULER, 1.0, None),
        ("sd15", "epsilon", DPM, 3.0, None),
        (
            "sd21",
            "v_prediction",
            dict(DDIM, timestep_spacing="trailing", rescale_betas_zero_snr=True),
            3.0,
            NEGATIVE,
        ),
        ("sd21", "v_prediction", dict(DPM, timestep_spacing="leading"), 3.0, NEGATIVE),
        ("sdxl", "epsilon", EULER, 3.0, None),
        ("sdxl", "epsilon", dict(DPM, use_karras_sigmas=True), 3.0, NEGATIVE),
        ("sdxl", "v_prediction", DDIM, 1.0, None),
    ],
)
def test_pipeline(kind, prediction, scheduler, weight, negative, tmp_path):
    pipeline = save_pipeline(tmp_path, kind, prediction, scheduler)
    noise = samplers.noise_of_keys(image_keys(SEED, 0, np.arange(2)), (SIDE, SIDE, LATENTS))(0)
    expected = pipeline(
        PROMPTS,
        negative_prompt=negative and [negative] * len(PROMPTS),
        num_inference_steps=STEPS,
        guidance_scale=weight,
        height=2 * SIDE,
        width=2 * SIDE,
        latents=torch.from_numpy(np.array(noise)).permute(0, 3, 1, 2),
        output_type="pt",
    ).images
    expected = expected.permute(0, 2, 3, 1).numpy()
    config = as_config(tmp_path)
    config.text.dtype = "float32"
    cascade = Cascade.load(config, dtype="float32")
    given = dict(num_steps=STEPS, guidance_weight=weight, seed=SEED, negative_prompt=negative)
    images = cascade.sample(PROMPTS, **given)
    assert images.shape == expected.shape
    # Half of one of 255 is what rounding may take.
    assert np.abs(images - 255 * expected).max() <= 0.5 + 255 * 1e-3
    assert expected.std() > 0.05 and (np.abs(expected - 0.5) < 0.49).mean() > 0.2
