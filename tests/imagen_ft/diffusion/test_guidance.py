import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_ft.diffusion.guidance import (
    WEIGHT_SCHEDULES,
    anneal,
    guide,
    percentile_of_rows,
    rescaled,
    threshold,
    weight_at,
)


@pytest.mark.parametrize("weight", [0.0, 1.25, 7.0])
def test_guide(weight):
    """Channels behind eps are the prompts'."""
    output = np.random.default_rng(0).normal(size=(6, 2, 2, 3)).astype(np.float32)
    prompts, null = output[:3].astype(np.float64), output[3:].astype(np.float64)
    guided = guide(output[:3], output[3:, ..., :2], weight, channels=2)
    eps = weight * prompts[..., :2] + (1 - weight) * null[..., :2]
    np.testing.assert_allclose(guided[..., :2], eps, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(guided[..., 2:], output[:3, ..., 2:])


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaled_guidance(share):
    """Lin et al. 2024, Eq. 15 and 16."""
    plain, guided = np.random.default_rng(0).normal(1, 2, size=(2, 3, 4, 4, 2)).astype(np.float32)
    guided = 3 * guided + 1
    ratio = plain.std(axis=(1, 2, 3), keepdims=True) / guided.std(axis=(1, 2, 3), keepdims=True)
    expected = share * ratio * guided + (1 - share) * guided
    np.testing.assert_allclose(rescaled(guided, plain, share), expected, rtol=1e-5, atol=1e-5)
    # Without the variance behind eps.
    null = np.random.default_rng(1).normal(size=plain.shape).astype(np.float32)
    found = guide(plain, null, 2.5, 1, share)
    eps = (2.5 * plain - 1.5 * null)[..., :1]
    expected = rescaled(eps, plain[..., :1], share) if share else eps
    np.testing.assert_allclose(found[..., :1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[..., 1:], plain[..., 1:])


@pytest.mark.parametrize("schedule", WEIGHT_SCHEDULES)
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_weights_over_time(schedule, weight):
    """They fall with t, and are on average what a constant one is."""
    times = (np.arange(100) + 0.5) / 100
    found = np.array([weight_at(schedule, weight, jnp.float32(t)) for t in times])
    factor = {"constant": times**0, "linear": 2 - 2 * times, "cosine": 1 + np.cos(np.pi * times)}
    np.testing.assert_allclose(found, 1 + (weight - 1) * factor[schedule], rtol=1e-5)
    assert found.mean() == pytest.approx(weight, rel=1e-4)


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [0.0, 0.59, 0.7, 0.91, 1.0])
def test_annealed_texts(t, mix):
    """Sadat et al. 2024, section 4; each text by its own mean and deviation."""
    rng = np.random.default_rng(0)
    text = rng.normal([[[1.0]], [[-2.0]]], [[[0.5]], [[3.0]]], size=(2, 5, 7)).astype(np.float32)
    noise = rng.normal(size=text.shape).astype(np.float32)
    found = np.asarray(anneal(text, noise, jnp.float32(t), 0.25, (0.6, 0.9), mix))
    share = np.clip((0.9 - t) / 0.3, 0, 1)
    for y, n, annealed in zip(text.astype(np.float64), noise, found, strict=True):
        noised = np.sqrt(share) * y + 0.25 * np.sqrt(1 - share) * n
        back = y.mean() + y.std() * (noised - noised.mean()) / noised.std()
        np.testing.assert_allclose(annealed, mix * back + (1 - mix) * noised, atol=2e-5)
        if t <= 0.6:
            np.testing.assert_array_equal(annealed, y)


def test_static_threshold():
    x0 = np.float32([-3, -1, -0.5, 0, 0.9, 1.1]).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(threshold(x0, 100.0), np.clip(x0, -1, 1))


@pytest.mark.parametrize("percentile", [50.0, 95.0, 99.5])
def test_dynamic_threshold(percentile):
    rng = np.random.default_rng(0)
    # One image that needs none of it, and two that do, each by its own measure.
    x0 = rng.normal(size=(3, 8, 8, 3)) * np.array([0.2, 2, 5]).reshape(3, 1, 1, 1)
    x0 = x0.astype(np.float32)
    limit = np.percentile(np.abs(x0), percentile, axis=(1, 2, 3)).reshape(3, 1, 1, 1)
    assert limit[0] < 1 < limit[1] < limit[2]
    limit = np.maximum(limit, 1)
    limited = np.asarray(threshold(x0, percentile))
    np.testing.assert_allclose(limited, np.clip(x0, -limit, limit) / limit, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(limited[0], x0[0])
    assert np.abs(limited[1:]).max() == 1


def test_threshold_has_a_maximum():
    x0 = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32) * 5
    np.testing.assert_allclose(threshold(x0, 95.0, 1.5), np.clip(x0, -1.5, 1.5) / 1.5, rtol=1e-6)


@pytest.mark.parametrize("percentile", [95.0, 100.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_threshold_hides_no_infinity(value, percentile):
    """Clipped it would be a pixel like others; other images are as they were."""
    x0 = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    x0[1, 2, 3, 0] = value
    limited = np.asarray(threshold(x0, percentile, 1.5))
    assert np.isnan(limited[1, 2, 3, 0])
    assert np.isfinite(limited[[0, 2]]).all()


@pytest.mark.parametrize("size", [1, 2, 3, 48, 12288])
@pytest.mark.parametrize("percentile", [0.0, 33.3, 95.0, 99.5, 100.0])
def test_percentile_is_that_of_a_sort(percentile, size):
    """Bit for bit; with numbers that come more than once, an infinity and what is no number."""
    rows = np.abs(np.random.default_rng(0).normal(size=(6, size))).astype(np.float32)
    rows[1:3] *= np.float32([[1e-3], [1e30]])
    rows[3] = np.round(4 * rows[3])
    rows[4, 0], rows[5, 0] = np.inf, np.nan
    ours = jax.jit(percentile_of_rows, static_argnums=1)(rows, percentile)
    theirs = jax.jit(jnp.percentile, static_argnums=(1, 2))(rows, percentile, 1)
    np.testing.assert_array_equal(ours, theirs)
    exact = np.percentile(rows[:4].astype(np.float64), percentile, axis=1)
    np.testing.assert_allclose(ours[:4], exact, rtol=2e-4)


def test_no_image_is_sorted():
    x0 = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    text = jax.jit(threshold, static_argnums=1).lower(x0, 99.5).as_text()
    assert "sort" not in text and "top_k" not in text
