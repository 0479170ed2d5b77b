"""A stage with a network of one line, against the same arithmetic in NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from imagen_ft.diffusion.ddpm import DDIM, DDPM
from imagen_ft.diffusion.denoiser import Denoiser, upsample
from imagen_ft.diffusion.dpm_solver import DPMpp2S
from imagen_ft.diffusion.edm import Heun
from imagen_ft.diffusion.forward_process import PREDICTIONS, per_image
from imagen_ft.diffusion.from_config import make_denoiser
from imagen_ft.diffusion.schedule import Cosine, alpha_sigma
from imagen_ft.diffusion.stage import GUIDE, Stage
from imagen_ft.diffusion.text_noise import noise_of_text
from imagen_ft.diffusion.unipc import UniPC
from launch.errors import InputError
from tests.support.affine_samplers import affine_step, alpha_bar
from tests.support.close import assert_same_up_to_rounding

SIZE, CHANNELS, IMAGES, STEPS = 4, 2, 3, 5
# Of the spacing 'leading': none is 1, where all of x_0 would hang on the last digit of eps.
TIMES = [(1000 // STEPS * k + 1) / 1000 for k in reversed(range(STEPS))] + [0.0]
NULL = np.full((1, 2, 3), -0.4, np.float32)
TEXT = np.random.default_rng(1).normal(size=(IMAGES, 2, 3)).astype(np.float32)
NOISE = np.random.default_rng(2).normal(size=(STEPS + 1, IMAGES, SIZE, SIZE, CHANNELS))
NOISE = NOISE.astype(np.float32)
START = np.random.default_rng(3).uniform(-1, 1, NOISE.shape[1:]).astype(np.float32)
SCALE = 0.7


@dataclasses.dataclass(frozen=True)
class Network:
    """eps is linear in x by a number of the text, behind it a variance; tells when it runs on what.

    Attributes:
        learned: whether there is a variance.
        dtype: of the computation.
        calls: time and batch size of each evaluation.
    """

    learned: bool = False
    dtype: type = jnp.float32
    calls: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def init(self, *args):
        return VARIABLES

    def apply(self, variables, *inputs, method):
        if method == "context":
            text, _ = inputs
            return jnp.mean(text, axis=(1, 2))
        x, time, text = inputs
        jax.debug.callback(lambda at: self.calls.append((float(at), len(x))), time[0])
        shift = text[:, None, None, None]
        parts = [variables["scale"] * (1 + shift / 2) * x + shift]
        return jnp.concatenate(parts + [jnp.sin(3 * x + shift)] * self.learned, axis=-1)


def make_stage(learned=False, **fields):
    options = dict(sampler=DDIM(STEPS, 0.0, "leading"), guidance_weight=1.0)
    options |= dict(threshold_percentile=100.0, noise_augmentation=0.0) | fields
    network = Network(learned)
    denoiser = Denoiser(network, Cosine(), SIZE, 0, CHANNELS, learned_variance=learned)
    return Stage(denoiser=denoiser, **options), network.calls


VARIABLES = {"scale": np.float32(SCALE)}


def run(stage, **options):
    """Images and the predictions of them, with `NOISE`."""
    noise = lambda step: jnp.asarray(NOISE)[step]  # noqa: E731
    found = jax.jit(
        lambda start: stage.run(
            VARIABLES, noise, TEXT, NULL, **dict(start=start, path=True) | options
        )
    )(options.pop("start", None))
    jax.effects_barrier()
    return found


def evaluate(stage, x, t):
    """The guided output, in float64."""
    weight, interval = stage.guidance_weight, stage.guidance_interval
    weight = 1 + (weight - 1) * dict(constant=1, linear=2 - 2 * t)[stage.guidance_schedule]
    prompt, null = (text.astype(np.float64).mean(axis=(1, 2)) for text in (TEXT, NULL))
    prompt = prompt[:, None, None, None]
    eps = SCALE * (1 + prompt / 2) * x + prompt
    if interval[0] <= t <= interval[1]:
        plain, eps = eps, weight * eps + (1 - weight) * (SCALE * (1 + null / 2) * x + null)
        ratio = plain.std(axis=(1, 2, 3), keepdims=True) / eps.std(axis=(1, 2, 3), keepdims=True)
        eps *= 1 + stage.guidance_rescale * (ratio - 1)
    return eps, (np.sin(3 * x + prompt) + 1) / 2


def threshold(x0, percentile, maximum):
    limit = np.ones(len(x0))
    if percentile < 100:
        limit = np.percentile(np.abs(x0).reshape(len(x0), -1), percentile, axis=1)
        limit = np.clip(limit, 1, maximum)
    limit = limit[:, None, None, None]
    return np.clip(x0, -limit, limit) / limit


def expected(stage, start=None, skip_steps=0):
    """What `run` returns, in float64."""
    x, path = NOISE[0].astype(np.float64), []
    if start is not None:
        abar = alpha_bar(TIMES[skip_steps])
        x = math.sqrt(abar) * start + math.sqrt(1 - abar) * x
    for row in range(skip_steps, STEPS):
        abar_t, abar_s = alpha_bar(TIMES[row]), alpha_bar(TIMES[row + 1])
        eps, learned = evaluate(stage, x, TIMES[row])
        x0 = (x - math.sqrt(1 - abar_t) * eps) / math.sqrt(abar_t)
        path.append(threshold(x0, stage.threshold_percentile, stage.threshold_maximum))
        sampler = stage.sampler
        if isinstance(sampler, DDPM) and sampler.logvar_coeff is None:
            a, b, beta_small = affine_step(DDPM(STEPS), abar_t, abar_s)
            variance = (1 - abar_t / abar_s) ** learned * beta_small ** (1 - learned)
        else:
            a, b, variance = affine_step(sampler, abar_t, abar_s)
        x = a * x + b * path[-1] + np.sqrt(variance) * NOISE[STEPS - row]
    return path[-1], np.stack(path)


def assert_as_expected(stage, **options):
    images, path = run(stage, **options)
    wanted_images, wanted_path = expected(stage, **options)
    np.testing.assert_allclose(path, wanted_path, atol=1e-4)
    np.testing.assert_allclose(images, wanted_images, atol=1e-4)
    # Enough pixels are within the range, so that they can tell.
    assert np.mean(np.abs(wanted_images) < 0.999) > 0.2
    return np.asarray(images)


def batches(calls):
    """Sizes of the evaluated batches, from the noisiest time on."""
    times, sizes = zip(*sorted(calls, reverse=True), strict=True)
    np.testing.assert_allclose(times, 1000 * np.array(TIMES[:STEPS]), rtol=1e-5)
    return [size // IMAGES for size in sizes]


@pytest.mark.parametrize(
    ("weight", "interval", "evaluations"),
    [
        (1.0, (0.0, 1.0), [1, 1, 1, 1, 1]),
        (1.0, (0.3, 0.7), [1, 1, 1, 1, 1]),
        (2.5, (0.0, 1.0), [2, 2, 2, 2, 2]),
        (2.5, (0.3, 0.7), [1, 2, 2, 1, 1]),
        (0.0, (0.0, 0.3), [1, 1, 1, 2, 2]),
        (2.5, (0.9, 1.0), [1, 1, 1, 1, 1]),
        (2.5, (0.0, 0.9), [2, 2, 2, 2, 2]),
    ],
)
def test_guidance(weight, interval, evaluations):
    stage, calls = make_stage(guidance_weight=weight, guidance_interval=interval)
    images = assert_as_expected(stage)
    assert batches(calls) == evaluations
    if len(set(evaluations)) == 1:
        # At no time, or at all of them: as without an interval.
        plain, _ = make_stage(guidance_weight=weight if evaluations[0] == 2 else 1.0)
        assert_same_up_to_rounding(run(plain)[0], images)


def test_pieces_of_guidance_compose():
    """A weight that grows, within an interval, with its contrast taken back."""
    fields = dict(guidance_weight=2.5, guidance_interval=(0.1, 0.7), guidance_schedule="linear")
    grown, calls = make_stage(**fields)
    images = assert_as_expected(grown)
    assert batches(calls) == [1, 2, 2, 2, 1]
    softer = make_stage(**fields, guidance_rescale=0.7)[0]
    assert_as_expected(softer)
    assert np.abs(run(softer)[0] - images).max() > 1e-2


def test_annealed_texts():
    """The prompts' alone, by the image's key and the time, and only where there is noise left."""
    keys = jax.random.split(jax.random.key(0), IMAGES)
    plain = make_stage(guidance_weight=2.0)[0]
    fields = dict(guidance_weight=2.0, cads_scale=0.5, cads_interval=(0.5, 0.9))
    annealed = dataclasses.replace(plain, **fields)
    seen = []

    def texts(stage, count):
        noise = noise_of_text(keys[:count], TEXT[:count])
        return stage._texts(TEXT[:count], NULL, noise)

    for t in (0.3, 0.7, 0.95):
        found = np.asarray(texts(annealed, IMAGES)(jnp.float32(t)))
        np.testing.assert_array_equal(found[IMAGES:], np.broadcast_to(NULL, TEXT.shape))
        np.testing.assert_array_equal(texts(annealed, 2)(jnp.float32(t))[:2], found[:2])
        seen.append(np.abs(found[:IMAGES] - TEXT).max())
        np.testing.assert_array_equal(texts(plain, IMAGES)(jnp.float32(t))[:IMAGES], TEXT)
    assert seen[0] == 0 < 0.1 < seen[1] < seen[2]
    # To this network a text is its mean, which the rescaling keeps.
    annealed = dataclasses.replace(annealed, cads_mix=0.5)
    images, path = run(annealed, text_noise=noise_of_text(keys, TEXT))
    np.testing.assert_array_equal(path[-1], images)
    assert np.abs(run(plain)[0] - images).max() > 1e-2


@pytest.mark.parametrize("sampler", [DPMpp2S(3), Heun(3), UniPC(4, 3)], ids=str)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)])
def test_evaluations_are_those_that_are_told(sampler, interval):
    stage, calls = make_stage(sampler=sampler, guidance_weight=2.0, guidance_interval=interval)
    run(stage)
    times, sizes = zip(*sorted(calls), strict=True)
    expected = sorted(1000 * sampler.evaluation_times(Cosine()))
    np.testing.assert_allclose(times, expected, rtol=1e-4)
    assert sum(sizes) == stage.evaluations * IMAGES


@pytest.mark.parametrize(
    ("weight", "interval", "branches"),
    [(2.5, (0.0, 1.0), 0), (1.0, (0.3, 0.7), 0), (2.5, (0.3, 0.7), 1)],
)
def test_only_an_interval_branches(weight, interval, branches):
    """Once a step, between one evaluation and a doubled one."""
    stage, _ = make_stage(guidance_weight=weight, guidance_interval=interval)
    noise = lambda step: jnp.asarray(NOISE)[step]  # noqa: E731
    program = jax.make_jaxpr(lambda: stage.run(VARIABLES, noise, TEXT, NULL))()
    assert str(program).count(" cond[") == branches


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_learned_variance(weight):
    """The network's, for each value: of the prompts alone, and from -1 to 1."""
    sampler = DDPM(STEPS, None, "leading")
    stage, _ = make_stage(learned=True, sampler=sampler, guidance_weight=weight)
    learned = assert_as_expected(stage)
    constant, _ = make_stage(
        learned=True, sampler=DDPM(STEPS, 0.3, "leading"), guidance_weight=weight
    )
    assert np.abs(assert_as_expected(constant) - learned).max() > 0.1


@dataclasses.dataclass(frozen=True)
class GaussianNetwork:
    """Knows that images are normal about a number of the text, and says so in its own terms."""

    prediction: str
    dtype: type = jnp.float32

    def init(self, *args):
        return VARIABLES

    def apply(self, variables, *inputs, method):
        if method == "context":
            return jnp.mean(inputs[0], axis=(1, 2))
        x, time, text = inputs
        alpha, sigma = alpha_sigma(per_image(Cosine().logsnr(time / 1000)))
        mean, variance = text[:, None, None, None], 0.3**2
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        x0 = mean + gain * (x - alpha * mean)
        eps = (x - alpha * x0) / sigma
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[self.prediction]


@pytest.mark.parametrize(
    ("sampler", "weight"),
    [(DDPM(STEPS, 0.3, "leading"), 2.5), (DDIM(STEPS, 0.0, "leading"), 1.0)],
)
def test_predictions(sampler, weight):
    """What is known of Gaussian images gives the same ones, in whatever terms it is said."""
    stage, _ = make_stage(sampler=sampler, guidance_weight=weight)

    def images(says, taken_for):
        denoiser = Denoiser(
            GaussianNetwork(says), Cosine(), SIZE, 0, CHANNELS, prediction=taken_for
        )
        return np.asarray(run(dataclasses.replace(stage, denoiser=denoiser))[0])

    expected = images("eps", "eps")
    assert 0.1 < expected.std() < 1 and np.mean(np.abs(expected) < 0.999) > 0.2
    for prediction in ("x0", "v"):
        np.testing.assert_allclose(images(prediction, prediction), expected, atol=2e-5)
        assert np.abs(images(prediction, "eps") - expected).max() > 0.1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_prediction_of_a_config(prediction):
    config = stage_config()
    assert make_denoiser(config).prediction == "eps"
    config.prediction = prediction
    assert make_denoiser(config).prediction == prediction


def test_eps_where_there_is_no_data():
    config = stage_config()
    with config.unlocked(), config.ignore_type():
        config.schedule = dict(name="scaled_linear", zero_terminal_snr=True)
    with pytest.raises(InputError, match=r"prediction must be 'v' or 'x0' with .*, got 'eps'"):
        make_denoiser(config)
    config.prediction = "v"
    assert make_denoiser(config).schedule.zero_terminal_snr


def test_an_unknown_prediction():
    config = stage_config()
    config.prediction = "score"
    with pytest.raises(InputError, match="prediction must be one of eps, x0, v, got 'score'"):
        make_denoiser(config)


@dataclasses.dataclass(frozen=True)
class NormalNetwork:
    """Knows that images are normal about 0, with the deviation that its variables say."""

    dtype: type = jnp.float32

    def init(self, *args):
        return VARIABLES

    def apply(self, variables, *inputs, method):
        if method == "context":
            return inputs[0]
        alpha, sigma = alpha_sigma(per_image(Cosine().logsnr(inputs[1] / 1000)))
        variance = variables["deviation"] ** 2
        return alpha * variance / (alpha**2 * variance + sigma**2) * inputs[0]


@pytest.mark.parametrize(("weight", "weaker"), [(1.0, 0.3), (3.0, 0.3), (3.0, 0.2)])
def test_autoguidance(weight, weaker):
    """Led away from a wider Gaussian, a Gaussian becomes narrower: to s^w s'^(1-w).

    With y = x / alpha and r = sigma / alpha the flow is d ln y / d ln r = w r^2 / (s^2 + r^2) +
    (1 - w) r^2 / (s'^2 + r^2), whose integral from 0 up is a logarithm.
    """
    denoiser = Denoiser(NormalNetwork(), Cosine(), SIZE, 0, CHANNELS, prediction="x0")
    options = dict(threshold_percentile=100.0, noise_augmentation=0.0)
    sampler = UniPC(STEPS * 5, 3, spacing="exponential")
    stage = Stage(denoiser, sampler, weight, **options, guide=denoiser)
    assert stage.is_guided == (weight != 1) and not stage.reads_null_text
    variables = {"deviation": np.float32(0.2), GUIDE: {"deviation": np.float32(weaker)}}
    noise = lambda step: jnp.asarray(NOISE)[0]  # noqa: E731
    images, _ = jax.jit(lambda: stage.run(variables, noise, TEXT, NULL))()
    np.testing.assert_allclose(images, 0.2**weight * weaker ** (1 - weight) * NOISE[0], atol=2e-3)


def stage_config():
    unet = dict(block_out_channels=(8,), attention=(False,), layers_per_block=1)
    unet["cross_attention_dim"] = 8
    return ConfigDict(dict(size=4, low_size=0, channels=1, schedule="cosine", unet=unet))


@pytest.mark.parametrize("maximum", [1.0, 1.5, float("inf")])
def test_threshold(maximum):
    fields = dict(guidance_weight=4.0, threshold_percentile=80.0, threshold_maximum=maximum)
    stage, _ = make_stage(**fields)
    assert_as_expected(stage)
    others = {1.0, 1.5, float("inf")} - {maximum}
    for other in others:
        changed = dataclasses.replace(stage, threshold_maximum=other)
        assert np.abs(expected(changed)[1] - expected(stage)[1]).max() > 0.01


@pytest.mark.parametrize("skip_steps", [0, 2, STEPS - 1])
@pytest.mark.parametrize("sampler", [DDIM, DDPM])
def test_start(sampler, skip_steps):
    """From the noised image; with one step left, to the image itself."""
    stage, calls = make_stage(sampler=sampler(STEPS, 0.0, "leading"))
    images = assert_as_expected(stage, start=START, skip_steps=skip_steps)
    assert len(calls) == STEPS - skip_steps
    distance = np.abs(images - START).max()
    assert distance < 0.01 if skip_steps == STEPS - 1 else distance > 0.3


def test_skipping_without_a_start():
    stage, calls = make_stage()
    images, path = run(stage, skip_steps=2)
    assert len(calls) == len(path) == STEPS - 2
    np.testing.assert_allclose(images, expected(stage, skip_steps=2)[0], atol=1e-4)


def test_path():
    stage, _ = make_stage(sampler=DDPM(STEPS, 0.3, "leading"))
    inputs = VARIABLES, jax.random.split(jax.random.key(0), IMAGES), TEXT, NULL
    images, path = stage.sample(*inputs), stage.path(*inputs)
    assert path.shape == (STEPS, IMAGES, SIZE, SIZE, CHANNELS)
    assert_same_up_to_rounding(path[-1], images)
    assert np.abs(np.diff(np.asarray(path), axis=0)).max(axis=(1, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize(("low", "size"), [(4, 8), (3, 12), (5, 20), (1, 4), (16, 64)])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("bilinear", dict(mode="bilinear", align_corners=False)),
        ("bilinear_corners", dict(mode="bilinear", align_corners=True)),
        ("nearest", dict(mode="nearest")),
    ],
)
def test_upsample(method, options, low, size):
    images = np.random.default_rng(0).uniform(-1, 1, (2, low, low, 3)).astype(np.float32)
    upsampled = upsample(jnp.asarray(images), size, method)
    columns = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    expected = torch.nn.functional.interpolate(columns, size=(size, size), **options)
    np.testing.assert_allclose(np.moveaxis(np.asarray(upsampled), -1, 1), expected, atol=2e-6)


def test_numbers_are_inputs_of_one_program():
    keys = jax.random.split(jax.random.key(0), IMAGES)
    stages = [
        make_stage(guidance_weight=weight, sampler=DDPM(STEPS, coeff))[0]
        for weight, coeff in ((1.5, 0.0), (4.0, 0.5), (4.0, 1.0))
    ]
    forms, numbers = zip(*(stage.split() for stage in stages), strict=True)
    assert len(set(forms)) == 1
    programs, found = Stage.sample._cache_size(), []
    for form, own in zip(forms, numbers, strict=True):
        found.append(form.sample(VARIABLES, keys, TEXT, NULL, numbers=own))
    assert Stage.sample._cache_size() == programs + 1
    np.testing.assert_allclose(found[1], stages[1].sample(VARIABLES, keys, TEXT, NULL), atol=1e-5)
    assert np.abs(found[1] - found[2]).max() > 1e-2
    # A solver's strength of noise is one, too.
    still, moved = (make_stage(sampler=Heun(STEPS, churn=churn))[0] for churn in (0.0, 1.0))
    assert still.split()[0] == moved.split()[0] and moved.split()[1]["sampler.churn"] == 1.0
    # Without guidance the network runs once.
    assert make_stage(sampler=DDPM(STEPS, 0.0))[0].split()[0] != forms[0]
