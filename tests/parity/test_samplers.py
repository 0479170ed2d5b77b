"""Our samplers and times against diffusers' schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from imagen_ft.diffusion import guidance
from imagen_ft.diffusion.ddpm import DDIM, DDPM
from imagen_ft.diffusion.forward_process import x0_from_eps
from imagen_ft.diffusion.samplers import Prediction, sample
from imagen_ft.diffusion.schedule import SquaredCos
from imagen_ft.diffusion.spacing import SPACINGS, named_spacings, sampling_times
from launch.errors import InputError
from tests.parity.torch_weights import relative_error

SCHEDULE = SquaredCos()


def theirs_to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("total", [1, 15, 16, 64, 100, 1000])
def test_spacings(spacing, total):
    later = int(spacing == "leading_one")
    options = dict(
        num_train_timesteps=total, timestep_spacing=spacing.removesuffix("_one"), steps_offset=later
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", **options)
    for num_steps in range(1, total + 1):
        scheduler.set_timesteps(num_steps)
        # Of 'trailing' theirs has at times one step too many, -1.
        expected = scheduler.timesteps.numpy()[:num_steps]
        if (num_steps, spacing) == (1, "linspace"):  # theirs begins with next to no noise
            expected = np.array([total - 1])
        if expected[0] == total:  # theirs fails only where the step is looked up
            with pytest.raises(InputError, match="num_steps must be below"):
                sampling_times(SquaredCos(total), num_steps, spacing)
            continue
        times = sampling_times(SquaredCos(total), num_steps, spacing)
        np.testing.assert_array_equal(np.round(times * total) - 1, [*expected, -1])
        if num_steps in (8, total):
            times = SquaredCos(total).model_time(times[:-1])
            np.testing.assert_array_equal(times, expected)


def test_named_spacings():
    """Those of diffusers' pipelines (its timesteps.py)."""
    from diffusers.pipelines.deepfloyd_if import timesteps

    assert len(named_spacings()) == 8
    for name, steps in named_spacings().items():
        assert steps == getattr(timesteps, f"{name}_timesteps")
        times = sampling_times(SCHEDULE, len(steps), name)
        np.testing.assert_array_equal(SCHEDULE.model_time(times[:-1]), steps)


def test_table():
    betas = DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas.double().numpy()
    t = np.float32((np.arange(1000) + 1) / 1000)
    abar = np.asarray(jax.nn.sigmoid(SCHEDULE.logsnr(t)), np.float64)
    np.testing.assert_allclose(1 - abar[1:] / abar[:-1], betas[1:], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(abar, np.cumprod(1 - betas), rtol=3e-5)


def outputs(num_steps, channels=6):
    """What a network might have said at each step, and the noise."""
    rng = np.random.default_rng(0)
    said = rng.normal(size=(num_steps, 2, 8, 8, channels)).astype(np.float32)
    noise = rng.normal(size=(num_steps + 1, 2, 8, 8, 3)).astype(np.float32)
    return said, noise


def compare(sampler, scheduler, said, noise, percentile, maximum, monkeypatch, **options):
    """Every step from the same x_t, and all of them in a row."""
    times = sampling_times(SCHEDULE, sampler.num_steps, sampler.spacing)
    for module in ("scheduling_ddpm", "scheduling_ddim"):
        monkeypatch.setattr(
            f"diffusers.schedulers.{module}.randn_tensor", lambda *_, **__: theirs_to_torch(drawn)
        )

    def predict(x_t, t):
        eps, variance = jnp.split(jnp.asarray(said)[jnp.argmin(jnp.abs(times[:-1] - t))], [3], -1)
        x0 = x0_from_eps(x_t, eps, SCHEDULE.logsnr(t))
        x0 = guidance.threshold(x0, percentile, maximum)
        return Prediction(x0, (variance + 1) / 2 if variance.shape[-1] else None)

    @jax.jit
    def one_step(x_t, t, s, drawn):
        return sampler.update(x_t, predict(x_t, t), drawn, SCHEDULE.logsnr(t), SCHEDULE.logsnr(s))

    x = noise[0]
    for row, t in enumerate(scheduler.timesteps):
        drawn = noise[sampler.num_steps - row]
        theirs = scheduler.step(theirs_to_torch(said[row]), t, theirs_to_torch(x), **options)
        after = np.moveaxis(theirs.prev_sample.numpy(), 1, -1)
        if row < sampler.num_steps - 1:
            assert relative_error(one_step(x, *times[row : row + 2], drawn), after) <= 1e-5
        x = after
    by_step = lambda step: jnp.asarray(noise)[step]  # noqa: E731
    ours = jax.jit(lambda: sample(sampler, predict, SCHEDULE, by_step)[0])()
    assert relative_error(ours, x) <= 5e-5


@pytest.mark.parametrize(
    ("variance_type", "coeff", "spacing"),
    [
        ("learned_range", None, "leading"),
        ("learned_range", None, "fast27"),
        ("fixed_small", 0.0, "leading"),
        # With other variances diffusers adds noise after the last of these steps; nobody wants it.
        ("fixed_small", 0.0, "trailing"),
        ("fixed_large", 1.0, "leading"),
    ],
)
@pytest.mark.parametrize(("percentile", "maximum"), [(95.0, 1.5), (100.0, 1.0)])
def test_ddpm(variance_type, coeff, spacing, percentile, maximum, monkeypatch):
    named = named_spacings().get(spacing)
    num_steps = len(named) if named else 10
    said, noise = outputs(num_steps, 6 if coeff is None else 3)
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type=variance_type,
        thresholding=percentile < 100,
        dynamic_thresholding_ratio=percentile / 100,
        sample_max_value=maximum,
        clip_sample=percentile == 100,
        timestep_spacing="leading" if named else spacing,
    )
    scheduler.set_timesteps(**(dict(timesteps=named) if named else dict(num_inference_steps=10)))
    if named:
        # Between neighbouring steps 1 - abar_t / abar_s has few digits in their float32.
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    sampler = DDPM(num_steps, coeff, spacing)
    compare(sampler, scheduler, said, noise, percentile, maximum, monkeypatch)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(eta, spacing, monkeypatch):
    said, noise = outputs(10, 3)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    # Our eps is that of the clipped image, as in Imagen.
    options = dict(eta=eta, use_clipped_model_output=True)
    compare(DDIM(10, eta, spacing), scheduler, said, noise, 100.0, 1.0, monkeypatch, **options)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaled_guidance(share):
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    plain, guided = np.random.default_rng(0).normal(1, 2, size=(2, 3, 4, 4, 2)).astype(np.float32)
    theirs = rescale_noise_cfg(*map(torch.from_numpy, (3 * guided, plain)), share).numpy()
    assert relative_error(guidance.rescaled(3 * guided, plain, share), theirs) <= 1e-6
