"""Our solvers, step by step, against diffusers' schedulers: same sigmas, predictions and noise."""

import warnings

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from imagen_ft.diffusion.ddpm import EulerAncestral
from imagen_ft.diffusion.dpm_solver import DPMpp, DPMpp2S
from imagen_ft.diffusion.edm import Euler, Heun
from imagen_ft.diffusion.samplers import Prediction
from imagen_ft.diffusion.schedule import Cosine, SquaredCos, alpha_sigma
from imagen_ft.diffusion.unipc import UniPC
from tests.parity.torch_weights import relative_error
from tests.support.solver_steps import intervals

SHAPE = (2, 4, 4, 3)
CHURN = dict(churn=3.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)


class Ours:
    """A sampler with given predictions, whatever the images."""

    def __init__(self, sampler, schedule, evaluations=1):
        rng = np.random.default_rng(0)
        count = sampler.num_steps
        self.sampler = sampler
        self.spans = intervals(schedule, sampler.times(schedule))
        self.start = rng.normal(size=SHAPE).astype(np.float32)
        self.noise = rng.normal(size=(count, *SHAPE)).astype(np.float32)
        said = rng.uniform(-1, 1, (count, evaluations, *SHAPE))
        self.said = said.astype(np.float32)
        ratios = np.array([span.logsnr_t for span in self.spans], np.float64)
        self.sigmas = np.append(np.exp(-ratios / 2), 0.0)
        # With which theirs become images of ours, x_t; the last ones are data.
        self.alphas = np.append(np.asarray(alpha_sigma(ratios[1:])[0], np.float64), 1.0)

    def images(self):
        carry = self.sampler.initialise(jnp.asarray(self.start))
        for span, said, noise in zip(self.spans, self.said, self.noise, strict=True):
            each = iter(said)
            asked = []

            def denoise(x_t, t, each=each, asked=asked):
                asked.append(t)
                return Prediction(jnp.asarray(next(each)))

            carry, _ = self.sampler.step(carry, denoise, noise, span)
            assert len(asked) == len(said)
            yield np.asarray(carry[0] if isinstance(carry, tuple) else carry)


def prepared(sigmas, kind, **options):
    """A scheduler that goes through given sigmas."""
    with warnings.catch_warnings():
        # Theirs makes NumPy's arrays as before its second version.
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler = kind(**options)
        scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.from_numpy(sigmas.astype(np.float32))
    scheduler.timesteps = torch.arange(len(sigmas) - 1).float()
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    return scheduler


def with_second_derivative(scheduler):
    """Doubles D2 of their third order, where a factor is missing: so it is of second order only.

    In their single-step solver it is there; tests of `test_order_of_convergence` tell.
    """
    original = scheduler.multistep_dpm_solver_third_order_update

    def update(outputs, sample, **options):
        sigmas = scheduler.sigmas.double()[scheduler.step_index - 2 : scheduler.step_index + 2]
        alpha = scheduler._sigma_to_alpha_sigma_t(sigmas[-1])[0]
        older, old, h = (-sigmas.log()).diff()
        slope, before = (
            (outputs[-1] - outputs[-2]) / old * h,
            (outputs[-2] - outputs[-3]) / older * h,
        )
        bend = (slope - before) / (old + older) * h
        missing = alpha * ((torch.exp(-h) - 1 + h) / h**2 - 0.5) * bend
        return (original(outputs, sample=sample, **options) - missing).float()

    scheduler.multistep_dpm_solver_third_order_update = update


def assert_same(ours, theirs):
    for row, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert relative_error(x, y) <= 1e-5, row


SCHEDULES = [Cosine(), SquaredCos()]
OPTIONS = dict(prediction_type="sample", algorithm_type="dpmsolver++", final_sigmas_type="zero")
MULTISTEP = [(DPMpp, order, {}) for order in (1, 2, 3)]
MULTISTEP += [(UniPC, order, dict(solver_type=b)) for order in (1, 2, 3) for b in ("bh1", "bh2")]


@pytest.mark.parametrize("num_steps", [6, 16])
@pytest.mark.parametrize(("kind", "order", "fields"), MULTISTEP)
def test_multistep(kind, order, fields, num_steps):
    """Of 16 steps DPM-Solver++ takes the last but one in full order, of 6 it does not."""
    spacing, schedule = ("karras", SCHEDULES[0]) if num_steps == 6 else ("leading", SCHEDULES[1])
    ours = Ours(kind(num_steps, order, spacing=spacing, **fields), schedule)
    if kind is UniPC:
        options = dict(prediction_type="sample", final_sigmas_type="zero", **fields)
        peer = diffusers.UniPCMultistepScheduler
    else:
        options, peer = OPTIONS, diffusers.DPMSolverMultistepScheduler
    scheduler = prepared(ours.sigmas, peer, solver_order=order, **options)
    if kind is DPMpp:
        with_second_derivative(scheduler)

    def theirs():
        x = torch.from_numpy(ours.start)
        for row, t in enumerate(scheduler.timesteps):
            said = torch.from_numpy(ours.said[row, 0])
            x = scheduler.step(said, t, x).prev_sample
            # At the end that of 'bh1' is not a number.
            yield (said if row == num_steps - 1 and x.isnan().all() else x).numpy()

    assert_same(ours.images(), theirs())


def test_singlestep():
    sampler, schedule = DPMpp2S(6, "karras"), Cosine()
    ours = Ours(sampler, schedule, evaluations=2)
    middles = schedule.logsnr(jnp.asarray(sampler.evaluation_times(schedule)[6:]))
    sigmas = np.zeros(12)
    sigmas[0:11:2], sigmas[1:10:2] = ours.sigmas[:-1], np.exp(-np.asarray(middles, np.float64) / 2)
    kind = diffusers.DPMSolverSinglestepScheduler
    scheduler = prepared(sigmas, kind, solver_order=2, **OPTIONS)
    scheduler.order_list = [1, 2] * 5 + [1]

    def theirs():
        x = torch.from_numpy(ours.start)
        for row, t in enumerate(scheduler.timesteps):
            said = torch.from_numpy(ours.said[row // 2, row % 2])
            x = scheduler.step(said, t, x).prev_sample
            if row % 2 or row == 10:
                yield x.numpy()

    assert_same(ours.images(), theirs())


@pytest.mark.parametrize("order", [2, 3])
def test_multistep_of_edm(order):
    """For them images keep their scale, and the network is behind a preconditioning."""
    ours = Ours(DPMpp(7, order, "karras"), Cosine())
    kind = diffusers.EDMDPMSolverMultistepScheduler
    scheduler = prepared(ours.sigmas, kind, solver_order=order)
    with_second_derivative(scheduler)
    scheduler.precondition_outputs = lambda sample, output, sigma: output

    def theirs():
        x = torch.from_numpy(ours.start / alpha_sigma(ours.spans[0].logsnr_t)[0].item())
        for row, t in enumerate(scheduler.timesteps):
            x = scheduler.step(torch.from_numpy(ours.said[row, 0]), t, x).prev_sample
            yield x.numpy() * ours.alphas[row]

    assert_same(ours.images(), theirs())


KINDS = [
    (Euler(6), diffusers.EulerDiscreteScheduler, dict(prediction_type="sample")),
    (Euler(6, **CHURN), diffusers.EulerDiscreteScheduler, dict(prediction_type="sample")),
    (Euler(6, **CHURN), diffusers.EDMEulerScheduler, {}),
    (EulerAncestral(6, 0.0, "karras"), diffusers.EulerAncestralDiscreteScheduler, {}),
    (Heun(6), diffusers.HeunDiscreteScheduler, dict(prediction_type="sample")),
]


@pytest.mark.parametrize(("sampler", "kind", "options"), KINDS)
def test_constant_scale(sampler, kind, options, monkeypatch):
    """Euler's and Heun's steps, of images that keep their scale."""
    twice = isinstance(sampler, Heun)
    ours = Ours(sampler, Cosine(), 2 if twice else 1)
    sigmas = ours.sigmas
    if twice:
        sigmas = np.concatenate([sigmas[:1], sigmas[1:-1].repeat(2), sigmas[-1:]])
    scheduler = prepared(sigmas, kind, **options)
    module = kind.__module__
    if hasattr(__import__(module, fromlist=["x"]), "randn_tensor"):
        monkeypatch.setattr(
            f"{module}.randn_tensor", lambda *_, **__: torch.from_numpy(ours.noise[row])
        )
    churn = {}
    if isinstance(sampler, Euler) and sampler.churn:
        churn = dict(s_churn=3.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
    row = 0

    def theirs():
        nonlocal row
        x = torch.from_numpy(ours.start / alpha_sigma(ours.spans[0].logsnr_t)[0].item())
        for count, t in enumerate(scheduler.timesteps):
            row, second = (count // 2, count % 2) if twice else (count, 0)
            said = torch.from_numpy(ours.said[row, second])
            if kind is diffusers.EDMEulerScheduler:
                stepped = scheduler.step(said, t, x, pred_original_sample=said, **churn)
            elif kind is diffusers.EulerAncestralDiscreteScheduler:
                stepped = scheduler.step((x - said) / scheduler.sigmas[row], t, x)
            else:
                stepped = scheduler.step(said, t, x, **churn)
            x = stepped.prev_sample
            if not twice or second or row == sampler.num_steps - 1:
                yield x.numpy() * ours.alphas[row]

    assert_same(ours.images(), theirs())
