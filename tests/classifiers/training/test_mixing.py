"""Mixup and CutMix against float64, and against their distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from classifiers.training.losses import soft_cross_entropy, soft_targets
from classifiers.training.mixing import mates, mix, random_box
from launch.errors import InputError

B, SIZE, CLASSES = 6, 8, 7
IMAGES = np.random.default_rng(0).uniform(-1, 1, (B, SIZE, SIZE, 3)).astype(np.float32)
TARGETS = np.eye(CLASSES, dtype=np.float32)[[0, 1, 2, 3, 4, 5]]


def draw(count, images=IMAGES, targets=TARGETS, **arguments):
    """`count` mixed batches, each with a key of its own."""
    keys = jax.random.split(jax.random.key(0), count)
    mixing = functools.partial(mix, **arguments)
    mixed = jax.jit(jax.vmap(lambda key: mixing(key, images, targets)))(keys)
    return jax.tree.map(np.asarray, mixed)


def own_share(targets):
    """What each example has kept: nobody else in the batch is of its class."""
    return targets[..., np.arange(B), np.arange(B)]


def assert_mixed(images, targets, kept):
    """By the share `kept` [..., b], in float64."""
    for mixed, own in ((images, IMAGES), (targets, TARGETS)):
        share = kept.astype(np.float64).reshape(kept.shape + (1,) * (own.ndim - 1))
        np.testing.assert_allclose(mixed, share * own + (1 - share) * own[::-1], atol=3e-7)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("a", [0.2, 0.8, 2.0])
def test_mixup(a, per_example):
    images, targets = draw(600, mixup=a, cutmix=0, per_example=per_example)
    kept = own_share(targets)
    assert_mixed(images, targets, kept)
    if not per_example:
        np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :1], kept.shape))
    drawn = (kept if per_example else kept[:, 0]).ravel()
    # Below 1e-6 float32 next to 1 has no more numbers.
    inner = stats.beta(a, a).cdf([1e-6, 1 - 1e-6])
    assert abs((drawn < 1e-6).mean() - inner[0]) < 0.02
    drawn = drawn[(drawn > 1e-6) & (drawn < 1 - 1e-6)]
    uniform = (stats.beta(a, a).cdf(drawn) - inner[0]) / (inner[1] - inner[0])
    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    if per_example:
        assert abs(np.corrcoef(kept[:, 0], kept[:, 1])[0, 1]) < 0.13


def shares_of_boxes(area, count, height, width):
    """Yun et al. 2019, Eq. 2, and the cut at the border: in float64, with other randomness."""
    rng = np.random.default_rng(1)
    area = np.broadcast_to(area, count) if area is not None else rng.beta(1, 1, count)
    sides = []
    for length in (height, width):
        half = (length * np.sqrt(area)).astype(int) // 2
        middle = rng.integers(0, length, count)
        sides.append(np.minimum(middle + half, length) - np.maximum(middle - half, 0))
    return sides[0] * sides[1] / (height * width)


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (np.ptp(rows) + 1, np.ptp(columns) + 1) if len(rows) else (0, 0)


@pytest.mark.parametrize("per_example", [False, True])
def test_cutmix(per_example):
    images, targets = draw(400, mixup=0, cutmix=1.0, per_example=per_example)
    own, other = (images == IMAGES).all(-1), (images == IMAGES[::-1]).all(-1)
    assert (own ^ other).all()  # every pixel is one of the two, to the bit
    shares = other.mean((-1, -2))
    kept = own_share(targets)
    np.testing.assert_allclose(kept, 1 - shares, atol=1e-6)
    share = shares[..., None]
    np.testing.assert_allclose(targets, (1 - share) * TARGETS + share * TARGETS[::-1], atol=1e-6)
    for mask, share in zip(other.reshape(-1, SIZE, SIZE), shares.ravel(), strict=True):
        assert np.prod(box_of(mask)) == round(share * SIZE**2)  # a box it is
    expected = shares_of_boxes(None, 20_000, SIZE, SIZE)
    drawn = shares.ravel() if per_example else shares[:, 0]
    assert stats.ks_2samp(drawn, expected).pvalue > 0.01
    if not per_example:
        assert (other == other[:, :1]).all()


@pytest.mark.parametrize("area", [0.0, 0.1, 0.5, 1.0])
def test_boxes(area):
    """Their areas and their places, of an image that is not square."""
    count, height, width = 4000, 20, 30
    boxes = np.asarray(
        jax.jit(random_box, static_argnums=(2, 3))(
            jax.random.key(0), jnp.full(count, area), height, width
        )
    )
    assert boxes.shape == (count, height, width) and boxes.dtype == bool
    expected = shares_of_boxes(area, 50_000, height, width)
    assert abs(boxes.mean() - expected.mean()) < 0.012
    if area:
        assert stats.ks_2samp(boxes.mean((1, 2)), expected).pvalue > 0.01
        heights, widths = np.transpose([box_of(box) for box in boxes[:300]])
        assert heights.max() == int(height * area**0.5) // 2 * 2
        assert widths.max() == int(width * area**0.5) // 2 * 2
    # Symmetric but for one pixel: what is cut left is cut right.
    columns = boxes.mean((0, 1))
    np.testing.assert_allclose(columns[1:], columns[:0:-1], atol=0.05)


def kinds(images):
    """Of each image: 0 unmixed, 1 by mixup, 2 by CutMix."""
    own, other = (images == IMAGES).all(-1), (images == IMAGES[::-1]).all(-1)
    cut = (own | other).all((-1, -2))
    return np.where(own.all((-1, -2)), 0, np.where(cut, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("per_example", [False, True])
def test_how_often(per_example):
    arguments = dict(mixup=1.0, cutmix=20.0, switch=0.3, probability=0.6, per_example=per_example)
    drawn_kinds = kinds(draw(800, **arguments)[0])
    drawn = drawn_kinds.ravel() if per_example else drawn_kinds[:, 0]
    counts = np.bincount(drawn, minlength=3)
    expected = np.array([0.4, 0.6 * 0.7, 0.6 * 0.3]) * len(drawn)
    assert stats.chisquare(counts, expected).pvalue > 0.01
    assert per_example or (drawn_kinds == drawn_kinds[:, :1]).all()


@pytest.mark.slow
def test_always_and_never():
    both = dict(mixup=1.0, cutmix=20.0)
    assert set(kinds(draw(50, **both, switch=0.0)[0]).ravel()) == {1}
    assert set(kinds(draw(50, **both, switch=1.0)[0]).ravel()) == {2}
    for off in (dict(both, probability=0.0), dict(mixup=0, cutmix=0)):
        images, targets = draw(3, **off)
        np.testing.assert_array_equal(images, np.stack([IMAGES] * 3))
        np.testing.assert_array_equal(targets, np.stack([TARGETS] * 3))


def test_the_key_decides():
    mixing = functools.partial(mix, mixup=0.8, cutmix=1.0, per_example=True)
    keys = [jax.random.key(seed) for seed in (1, 1, 2)]
    first, again, other = (jax.jit(mixing)(key, IMAGES, TARGETS) for key in keys)
    eager = mixing(keys[0], IMAGES, TARGETS)
    for a, b, c, d in zip(first, again, other, eager, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, d, atol=1e-6)
        assert (a != c).any()


def test_kinds_of_numbers_stay():
    images, targets = mix(
        jax.random.key(0), jnp.asarray(IMAGES, jnp.bfloat16), TARGETS, mixup=0.8, cutmix=0
    )
    assert images.dtype == jnp.bfloat16 and targets.dtype == jnp.float32
    assert images.shape == IMAGES.shape and targets.shape == TARGETS.shape


def test_mates_of_one_domain_are_the_flipped_batch():
    for size in (1, 4, 5):
        flipped = np.arange(size)[::-1]
        np.testing.assert_array_equal(mates(jnp.zeros(size, jnp.int32)), flipped)


def test_mates_stay_in_their_domain():
    rng = np.random.default_rng(0)
    for _ in range(20):
        domain = rng.integers(0, 3, 11).astype(np.int32)
        partners = np.asarray(jax.jit(mates)(domain))
        np.testing.assert_array_equal(domain[partners], domain)
        np.testing.assert_array_equal(partners[partners], np.arange(11))
        for one in range(3):
            positions = np.flatnonzero(domain == one)
            np.testing.assert_array_equal(partners[positions], positions[::-1])


def test_mixing_within_domains():
    domain = np.array([0, 1, 0, 0, 1, 1], np.int32)
    mixing = jax.jit(functools.partial(mix, mixup=1.0, cutmix=0))
    images, targets = mixing(jax.random.key(3), IMAGES, TARGETS, domain=domain)
    kept, order = float(targets[0, 0]), np.array([3, 5, 2, 0, 4, 1])
    assert 0.01 < kept < 0.99
    np.testing.assert_allclose(images, kept * IMAGES + (1 - kept) * IMAGES[order], atol=1e-6)
    np.testing.assert_allclose(targets, kept * TARGETS + (1 - kept) * TARGETS[order], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(mixup=-0.1, cutmix=0),
            r"mixup must be above 0 for Beta\(mixup, mixup\), or 0 to turn it off, got -0\.1",
        ),
        (
            dict(mixup=0, cutmix=float("nan")),
            r"cutmix must be above 0 for Beta\(cutmix, cutmix\), or 0 to turn it off, got nan",
        ),
        (dict(mixup=1, cutmix=1, switch=1.5), r"switch must be in \[0, 1\], got 1.5"),
        (dict(mixup=1, cutmix=1, probability=-1), r"probability must be in \[0, 1\], got -1"),
    ],
)
def test_wrong_numbers(arguments, message):
    with pytest.raises(InputError, match=message):
        mix(jax.random.key(0), IMAGES, TARGETS, **arguments)


def test_smoothed_targets():
    targets = soft_targets(np.array([2, 0]), 4, 0.1)
    np.testing.assert_allclose(
        targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6
    )
    np.testing.assert_array_equal(soft_targets(np.array([2]), 4), [[0, 0, 1, 0]])


def test_losses_of_labels_and_of_targets():
    """By the definition in float64."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 4)).astype(np.float32), rng.integers(0, 4, 5)
    log_p = logits - np.log(np.exp(logits.astype(float)).sum(-1, keepdims=True))
    targets = rng.dirichlet(np.ones(4), 5)
    np.testing.assert_allclose(
        soft_cross_entropy(logits, targets.astype(np.float32)),
        -(targets * log_p).sum(-1),
        rtol=1e-5,
    )
    smooth = 0.9 * np.eye(4)[labels] + 0.1 / 4
    np.testing.assert_allclose(
        soft_cross_entropy(logits, soft_targets(labels, 4, 0.1)),
        -(smooth * log_p).sum(-1),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        soft_cross_entropy(logits, soft_targets(labels, 4)),
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        rtol=1e-5,
    )


def test_losses_of_half_precision_are_computed_in_full():
    logits = jnp.array([[2.0, 0.013]], jnp.bfloat16)
    expected = np.log1p(np.exp(-2.0 + float(logits[0, 1])))
    losses = soft_cross_entropy(logits, soft_targets(jnp.array([0]), 2))
    np.testing.assert_allclose(losses, [expected], rtol=1e-5)
