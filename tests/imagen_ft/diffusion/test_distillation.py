"""Targets of distillation against the sampler and formulas; what it comes to on normal data.

Of normal data all is known: the prediction of x_0, and the trajectories of the noise.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_ft.diffusion.consistency import MultistepConsistency, boundary_time, consistency
from imagen_ft.diffusion.ddpm import DDIM
from imagen_ft.diffusion.distillation import (
    Consistency,
    Progressive,
    ddim_step,
    make_consistency,
    make_progressive,
)
from imagen_ft.diffusion.samplers import Interval, Prediction, sample
from imagen_ft.diffusion.schedule import Cosine, ScaledLinear, SquaredCos, alpha_sigma
from launch.errors import InputError

MEAN, STD = 0.4, 0.3
SCHEDULES = [Cosine(), SquaredCos(), ScaledLinear()]
CURVED = 0.2


def ratio_of(schedule, t):
    return schedule.logsnr(t).astype(jnp.float64).reshape(-1, 1, 1, 1)


def normal_x0(schedule, x_t, t):
    """E[x_0 | x_t] of normal data."""
    alpha, sigma = alpha_sigma(ratio_of(schedule, t))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x_t - alpha * MEAN)


def curved_x0(schedule, x_t, t):
    """A denoiser that no step leaves alone: it is linear nowhere, and depends on the time."""
    return jnp.sin(x_t) + CURVED * t.reshape(-1, 1, 1, 1) * jnp.cos(3.0 * x_t)


def exact(schedule, x_t, t, s):
    """Where the flow takes x_t, for normal data: the standardised values stay."""
    deviations = []
    for time in (t, s):
        alpha, sigma = alpha_sigma(ratio_of(schedule, time))
        deviations.append((alpha * MEAN, jnp.sqrt((alpha * STD) ** 2 + sigma**2)))
    (mean_t, std_t), (mean_s, std_s) = deviations
    return mean_s + std_s * (x_t - mean_t) / std_t


def noisy(count, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, 2, 1, 1)))


def all_times(method, schedule, count):
    return method.times(schedule, jnp.asarray((np.arange(count) + 0.5) / count))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("schedule", "steps"), [(SCHEDULES[0], 1), *((schedule, 3) for schedule in SCHEDULES)]
)
def test_a_step_of_the_student_ends_where_two_of_our_sampler_do(schedule, steps):
    """The student that predicts its goal comes to the same points, and to the same image."""
    method = Progressive(steps, 2 * steps)
    times = all_times(method, schedule, steps)
    x_t = noisy(steps)
    teacher = functools.partial(curved_x0, schedule)
    goal = method.goal(schedule, teacher, x_t, times)
    sampler, grid = DDIM(2 * steps), DDIM(2 * steps).times(schedule)
    for row in range(steps):
        x = x_t[row : row + 1]
        for step in (2 * row, 2 * row + 1):
            t, s = jnp.asarray(grid[step]), jnp.asarray(grid[step + 1])
            ratios = (schedule.logsnr(t).astype(jnp.float64), schedule.logsnr(s).astype(float))
            interval = Interval(t, s, *ratios, jnp.asarray(2 * steps - step), schedule)
            denoise = lambda x, t: Prediction(teacher(x, t[None]))  # noqa: E731
            x, _ = sampler.step(x, denoise, jnp.zeros_like(x), interval)
        begin, end = (jnp.asarray(grid[k])[None] for k in (2 * row, 2 * row + 2))
        own = goal[row : row + 1]
        if row < steps - 1:
            own = ddim_step(schedule, x_t[row : row + 1], own, begin, end)
        np.testing.assert_allclose(own, x, rtol=1e-5, atol=1e-6)
    # The sampler of so many steps begins where the student has learned to.
    np.testing.assert_array_equal(times["t"], DDIM(steps).times(schedule)[:-1])
    np.testing.assert_array_equal(times["s"], DDIM(steps).times(schedule)[1:])


def test_the_goal_of_a_step_by_the_paper():
    """Salimans and Ho 2022, algorithm 2, with alpha and sigma written out."""
    schedule, method = Cosine(), Progressive(4, 8)
    x_t = noisy(4)
    times = all_times(method, schedule, 4)
    found = method.goal(schedule, functools.partial(curved_x0, schedule), x_t, times)
    alphas, sigmas = {}, {}
    for name, time in times.items():
        ratio = np.float64(schedule.logsnr(time))[:, None, None, None]
        alphas[name] = np.sqrt(1 / (1 + np.exp(-ratio)))
        sigmas[name] = np.sqrt(1 / (1 + np.exp(ratio)))
    x0 = np.float64(curved_x0(schedule, x_t, times["t"]))
    eps = (x_t - alphas["t"] * x0) / sigmas["t"]
    x_middle = alphas["middle"] * x0 + sigmas["middle"] * eps
    x0 = np.float64(curved_x0(schedule, jnp.asarray(x_middle), times["middle"]))
    eps = (x_middle - alphas["middle"] * x0) / sigmas["middle"]
    x_s = alphas["s"] * x0 + sigmas["s"] * eps
    ratio = sigmas["s"] / sigmas["t"]
    expected = np.array((x_s - ratio * x_t) / (alphas["s"] - ratio * alphas["t"]))
    expected[-1] = x0[-1]  # Sampling ends with the prediction.
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("weighting", "power"), [("truncated_snr", 0), ("snr_plus_one", 1)])
def test_weights_of_the_error(weighting, power):
    schedule, method = Cosine(), Progressive(8, 16, weighting)
    times, x_t = all_times(method, schedule, 8), noisy(8)
    teacher = functools.partial(curved_x0, schedule)
    student = lambda x, t: teacher(x, t) * 0.0  # noqa: E731
    losses = method.losses(schedule, student, teacher, student, x_t, times)
    goal = method.goal(schedule, teacher, x_t, times)
    snr = np.exp(np.float64(schedule.logsnr(times["t"])))
    weight = snr + 1 if power else np.maximum(snr, 1)
    assert snr[0] < 1 < snr[-1]
    expected = np.mean(np.square(goal), axis=(1, 2, 3))
    np.testing.assert_allclose(losses["simple"], expected, rtol=1e-9)
    np.testing.assert_allclose(losses["loss"], weight * expected, rtol=1e-6)


def test_learning_another_form_first():
    """With as many steps as the teacher the goal is what the teacher predicts."""
    method, schedule = Progressive(4, 4), Cosine()
    times, x_t = all_times(method, schedule, 4), noisy(4)
    teacher = functools.partial(curved_x0, schedule)
    goal = method.goal(schedule, teacher, x_t, times)
    np.testing.assert_array_equal(goal, teacher(x_t, times["t"]))
    np.testing.assert_array_equal(times["t"], DDIM(4).times(schedule)[:-1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_boundary(schedule):
    """f(x, eps) = x, whatever the network; by the paper's c_skip and c_out elsewhere."""
    boundary = jnp.asarray(boundary_time(schedule))
    x = noisy(9)
    ratio = ratio_of(schedule, boundary).ravel()[0]
    alpha, sigma = alpha_sigma(ratio)
    first = consistency(x, 100.0 * x, ratio, ratio)
    np.testing.assert_allclose(first, x / alpha, rtol=1e-9)
    # Song et al. 2023, appendix C, with sigma_data = 1 and F = -v: alpha x_t - sigma v is x_0.
    logsnr = jnp.linspace(-9.0, float(ratio) - 0.01, 9)
    v = noisy(9, seed=1)
    alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in alpha_sigma(logsnr))
    found = consistency(x, alpha * x - sigma * v, logsnr, ratio)
    deviation, least = sigma / alpha, np.exp(-0.5 * ratio)
    c_skip = 1.0 / ((deviation - least) ** 2 + 1.0)
    c_out = (deviation - least) / np.sqrt(1.0 + deviation**2)
    np.testing.assert_allclose(found, c_skip * x / alpha - c_out * v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_the_step_of_the_teacher(solver):
    """Euler's and Heun's (Karras et al. 2022, algorithm 1) of dx / dsigma = (x - x_0) / sigma."""
    schedule, method = Cosine(), Consistency(18, solver)
    times, x_t = all_times(method, schedule, 17), noisy(17)
    teacher = functools.partial(curved_x0, schedule)
    found = method.before(schedule, teacher, x_t, times)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        [np.float64(a) for a in alpha_sigma(ratio_of(schedule, times[name]))] for name in ("t", "s")
    )
    x, t, s = x_t / alpha_t, sigma_t / alpha_t, sigma_s / alpha_s
    slope = (x - teacher(x_t, times["t"])) / t
    euler = x + (s - t) * slope
    there = (euler - teacher(jnp.asarray(euler * alpha_s), times["s"])) / s
    heun = x + (s - t) * (slope + there) / 2
    expected = alpha_s * (euler if solver == "ddim" else heun)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_metrics():
    """Of a trajectory's two points; Song and Dhariwal 2023, Eq. 7, of two values an image."""
    schedule = Cosine()
    teacher = functools.partial(normal_x0, schedule)
    student = functools.partial(curved_x0, schedule)
    target = lambda x, t: 0.5 * student(x, t)  # noqa: E731
    losses = {}
    for metric in ("l2", "pseudo_huber"):
        method = Consistency(18, metric=metric)
        times, x_t = all_times(method, schedule, 17), noisy(17)
        losses[metric] = method.losses(schedule, student, teacher, target, x_t, times)
    x_s = method.before(schedule, teacher, x_t, times)
    boundary = ratio_of(schedule, jnp.asarray(boundary_time(schedule))).ravel()[0]
    ends = [
        consistency(x, network(x, times[name]), schedule.logsnr(times[name]), boundary)
        for x, network, name in ((x_t, student, "t"), (x_s, target, "s"))
    ]
    distance = np.linalg.norm((ends[0] - ends[1]).reshape(17, 2), axis=1)
    np.testing.assert_allclose(losses["l2"]["loss"], distance**2 / 2, rtol=1e-6)
    c = 0.00054 * np.sqrt(2)
    expected = (np.sqrt(distance**2 + c**2) - c) / np.sqrt(2)
    np.testing.assert_allclose(losses["pseudo_huber"]["loss"], expected, rtol=1e-6)
    # The last pair's target is at the boundary: it is the point itself.
    alpha, _ = alpha_sigma(boundary)
    np.testing.assert_allclose(ends[1][-1], x_s[-1] / alpha, rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_grid_ends_at_the_boundary(schedule):
    for steps in (2, 18, 100):
        grid = Consistency(steps).grid(schedule)
        assert len(grid) == steps and (np.diff(grid) < 0).all()
        assert grid[-1] == pytest.approx(boundary_time(schedule), rel=1e-4)
    times = all_times(Consistency(18), schedule, 200)
    assert set(np.asarray(times["t"])) == set(np.float64(Consistency(18).grid(schedule)[:-1]))
    assert (times["s"] < times["t"]).all()


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_the_sampler_of_consistency(spacing):
    """Song et al. 2023, algorithm 1: with the exact map the first point, then noise on it.

    Karras' spacing ends at the boundary, where no noise is left to add.
    """
    schedule, sampler = Cosine(), MultistepConsistency(3, spacing)
    boundary = jnp.asarray(boundary_time(schedule))[None]
    noises = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1, 2, 1, 1)), jnp.float32)
    logsnr = schedule.logsnr(boundary)[0]
    scale = alpha_sigma(logsnr)[0]

    def denoise(x, t):
        """The x_0 with which f is where the flow ends."""
        ends = exact(schedule, x, t[None], boundary) / scale
        at = schedule.logsnr(t), logsnr
        skip, one = consistency(x, 0.0 * x, *at), consistency(x, 0.0 * x + 1.0, *at)
        share = jnp.where(
            one - skip > 1e-6, one - skip, 1.0
        )  # At the boundary x_0 counts for none.
        return Prediction(((ends - skip) / share).astype(jnp.float32))

    images, _ = sample(sampler, denoise, schedule, lambda step: noises[step])
    x = np.float64(noises[0])
    times, least = sampler.times(schedule), np.exp(-0.5 * float(logsnr))
    for row, step in enumerate((3, 2, 1)):
        first = exact(schedule, jnp.asarray(x), jnp.asarray(times[row])[None], boundary) / scale
        if step > 1:
            ratio = schedule.logsnr(jnp.asarray(times[row + 1]))
            alpha, sigma = (float(a) for a in alpha_sigma(ratio))
            added = np.sqrt(max((sigma / alpha) ** 2 - least**2, 0.0))
            x = alpha * (np.float64(first) + added * np.float64(noises[step]))
    np.testing.assert_allclose(images, first, rtol=1e-4, atol=1e-5)


def fitted(method, schedule, teacher, grid, steps):
    """Trains x_0 = a x_t + b, an a and b at each time of a grid; begins at E[x_0 | x_t]."""
    rows = jnp.asarray(grid)
    alpha, sigma = (a.ravel() for a in alpha_sigma(ratio_of(schedule, rows)))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    start = gain, MEAN - gain * alpha * MEAN
    tx = optax.adam(optax.cosine_decay_schedule(0.02, steps))

    def network(params, x, t):
        row = jnp.argmin(jnp.abs(rows[None] - t[:, None]), axis=1)
        a, b = (column[row].reshape(-1, 1, 1, 1) for column in params)
        return a * x + b

    def loss_of(params, key):
        keys = jax.random.split(key, 3)
        times = method.times(schedule, (jax.random.uniform(keys[0]) + jnp.arange(64) / 64) % 1.0)
        x0 = MEAN + STD * jax.random.normal(keys[1], (64, 8, 1, 1))
        alpha, sigma = alpha_sigma(ratio_of(schedule, times["t"]))
        x_t = alpha * x0 + sigma * jax.random.normal(keys[2], x0.shape)
        student = functools.partial(network, params)
        return method.losses(schedule, student, teacher, student, x_t, times)["loss"].mean()

    def step(carry, key):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_of)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), steps)
    (params, _), _ = jax.jit(functools.partial(jax.lax.scan, step))((start, tx.init(start)), keys)
    return functools.partial(network, params)


def drawn(schedule, predict, x, steps):
    """By DDIM."""
    times = DDIM(steps).times(schedule)
    for t, s in itertools.pairwise(times):
        t, s = jnp.full(len(x), t), jnp.full(len(x), s)
        x0 = predict(x, t)
        x = x0 if s[0] == 0 else ddim_step(schedule, x, x0, t, s)
    return x


@pytest.mark.slow
def test_rounds_of_halving_come_to_what_the_first_teacher_draws():
    """16 steps in 4, by two rounds, the second of which learns from the first."""
    schedule, x = Cosine(), noisy(6, seed=3)
    first = teacher = functools.partial(normal_x0, schedule)
    for steps in (8, 4):
        grid = DDIM(steps).times(schedule)[:-1]
        teacher = fitted(Progressive(steps, 2 * steps), schedule, teacher, grid, 600)
    goal = drawn(schedule, first, x, 16)
    flow = exact(schedule, x, jnp.ones(6), jnp.zeros(6))
    learned, plain = drawn(schedule, teacher, x, 4), drawn(schedule, first, x, 4)
    assert np.abs(learned - goal).max() < 2e-3
    assert np.abs(learned - flow).max() < 0.4 * np.abs(plain - flow).max()


@pytest.mark.slow
def test_consistency_comes_to_the_exact_flow():
    """But for what Heun's steps of so many levels are off, a hundredth."""
    schedule, method = Cosine(), Consistency(40, "heun", "l2")
    teacher, grid = functools.partial(normal_x0, schedule), method.grid(schedule)
    student = fitted(method, schedule, teacher, grid, 6000)
    boundary = jnp.full(39, boundary_time(schedule))
    t, logsnr = jnp.asarray(grid[:-1]), schedule.logsnr(boundary[0])
    alpha, sigma = alpha_sigma(ratio_of(schedule, t))
    x = alpha * MEAN + jnp.sqrt((alpha * STD) ** 2 + sigma**2) * noisy(39)
    flow = exact(schedule, x, t, boundary) / alpha_sigma(ratio_of(schedule, boundary))[0]
    learned, begun = (
        consistency(x, predict(x, t), schedule.logsnr(t), logsnr) for predict in (student, teacher)
    )
    assert np.abs(begun - flow).max() > 0.3
    assert np.abs(learned - flow).max() < 0.02


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(teacher_steps=8), r"teacher_steps must be twice config\.distill\.steps, 16, got 8;"),
        (dict(teacher_steps=32), r"must be twice .*, got 32; halve one round at a time"),
        (dict(teacher_steps=4, same_form=False), "16, or 8 to learn another prediction first, got"),
        (dict(weighting="snr"), "weighting must be one of truncated_snr, snr_plus_one, got 'snr'"),
    ],
)
def test_wrong_fields_of_progressive(fields, message):
    given = dict(steps=8, teacher_steps=0, weighting="truncated_snr", same_form=True) | fields
    with pytest.raises(InputError, match=message):
        make_progressive(Cosine(), **given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(steps=1), "steps must be at least 2 levels of noise, got 1"),
        (dict(solver="euler"), "solver must be one of ddim, heun, got 'euler'"),
        (dict(metric="lpips"), "metric must be one of l2, pseudo_huber, got 'lpips'"),
        (dict(steps=2000), "at most the schedule's 1000 steps"),
    ],
)
def test_wrong_fields_of_consistency(fields, message):
    given = dict(steps=18, solver="heun", metric="l2", target="") | fields
    with pytest.raises(InputError, match=message):
        make_consistency(SquaredCos(), **given)
