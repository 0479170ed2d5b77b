"""Attacks stay inside their ball, are worst where the worst is known, and PGD is no weaker."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from classifiers.evaluation import attacks, label_maps, scores
from launch.errors import InputError
from tests.support.close import assert_same_up_to_rounding

B, SIZE, CLASSES = 64, 8, 5
FGSM = dict(kind="fgsm", epsilon=6)
PGD = dict(kind="pgd", epsilon=6, steps=12, step_size=1.5, seed=3)
MAP = label_maps.identity("abcde")


def images(seed=0, size=SIZE, channels=3):
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 256, (B, size, size, channels), np.uint8)
    found[:4] = 255 * (found[:4] > 127)  # At the ends of the range.
    return found


def run(spec, model, variables, pixels, labels, positions=None, label_map=MAP):
    attack = attacks.make_attack(attacks.make("here", spec), scores.make_judge(model, label_map))
    positions = np.arange(len(pixels)) if positions is None else positions
    return attack(variables, pixels, labels, positions)


class Linear:
    """Logits w x of two classes: the second is 0, so w decides alone."""

    def apply(self, variables, x):
        score = (x * variables["w"][None]).sum((1, 2, 3)) + variables["b"]
        return jnp.stack([score, jnp.zeros_like(score)], axis=1)


def linear_case():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(SIZE, SIZE, 3)).astype(np.float32) / 20
    pixels = images(2)
    x = pixels / 127.5 - 1
    labels = rng.integers(0, 2, B)
    return {"w": w, "b": np.float32(0.3)}, pixels, x, labels


def worst_margin(variables, x, labels, epsilon):
    """The least margin in the ball, pixel by pixel, as far as pixels go."""
    sign = np.where(labels == 0, 1, -1)[:, None, None, None] * np.sign(variables["w"])
    low, high = np.maximum(x - epsilon / 127.5, -1), np.minimum(x + epsilon / 127.5, 1)
    worst = np.where(sign > 0, low, high)
    score = (worst * variables["w"]).sum((1, 2, 3)) + variables["b"]
    return np.where(labels == 0, score, -score), worst


@pytest.mark.parametrize("spec", [FGSM, dict(PGD, steps=20, step_size=2)])
def test_a_linear_classifier_is_attacked_as_well_as_can_be(spec):
    variables, pixels, x, labels = linear_case()
    margin, worst = worst_margin(variables, x, labels, 6)
    strongest = run(spec, Linear(), variables, pixels, labels, label_map=label_maps.identity("ab"))
    assert strongest.correct.tolist() == (margin > 0).tolist()
    clean, _ = worst_margin(variables, x, labels, 0)
    assert 3 < (margin > 0).sum() < (clean > 0).sum() - 3
    np.testing.assert_allclose(strongest.loss, np.log1p(np.exp(-margin)), rtol=1e-4)
    # Where the gradient is 0 in float32 a pixel stays; here that is nowhere.
    assert_same_up_to_rounding(strongest.images, worst)


class Net:
    """Two layers, far from linear."""

    def apply(self, variables, x):
        return jnp.sin(x.reshape(len(x), -1) @ variables["a"]) @ variables["b"]


def draw(scale):
    rng = np.random.default_rng(0)
    shapes = {"a": (SIZE * SIZE * 3, 32), "b": (32, CLASSES)}
    return {
        name: scale * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def network():
    """A network, and images whose labels are what it says of them."""
    variables, pixels = draw(0.5), images()
    logits = Net().apply(variables, pixels / np.float32(127.5) - 1)
    return Net(), variables, pixels, np.asarray(logits).argmax(1)


@pytest.mark.parametrize("epsilon", [0.5, 6, 40])
@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_attacks_stay_in_the_ball_and_in_the_range(network, kind, epsilon):
    model, variables, pixels, labels = network
    spec = dict(kind=kind, epsilon=epsilon)
    if kind == "pgd":
        spec |= dict(steps=4, step_size=epsilon)
    attacked = np.asarray(run(spec, model, variables, pixels, labels).images)
    change = attacked - (pixels / np.float32(127.5) - 1)
    assert np.abs(change).max() <= epsilon / 127.5 + 1e-6
    assert np.abs(change).max() > 0.99 * epsilon / 127.5
    assert attacked.min() >= -1 and attacked.max() <= 1
    assert attacked.shape == pixels.shape and attacked.dtype == np.float32


@pytest.mark.parametrize(("epsilon", "more"), [(0.5, 0), (1, 1), (2, 1)])
def test_pgd_finds_what_fgsm_finds_and_more(network, epsilon, more):
    model, variables, pixels, labels = network
    fgsm = run(dict(FGSM, epsilon=epsilon), model, variables, pixels, labels)
    spec = dict(PGD, epsilon=epsilon, step_size=epsilon / 4)
    pgd = run(spec, model, variables, pixels, labels)
    assert not (pgd.correct & ~fgsm.correct).any()
    assert pgd.correct.sum() + more <= fgsm.correct.sum() < B
    same = np.asarray(pgd.correct == fgsm.correct)
    assert (pgd.loss >= fgsm.loss)[same].all()


def test_what_is_said_of_the_found_images_is_so(network):
    model, variables, pixels, labels = network
    for spec in (FGSM, PGD):
        strongest = run(spec, model, variables, pixels, labels)
        logits = torch.tensor(np.asarray(model.apply(variables, strongest.images)))
        assert strongest.correct.tolist() == (logits.argmax(1).numpy() == labels).tolist()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
        np.testing.assert_allclose(strongest.loss, loss.numpy(), rtol=1e-3, atol=1e-4)


def test_fgsm_follows_torchs_gradient():
    """Where that is not nearly zero."""
    variables = draw(1 / 8)
    pixels, labels = images(5)[4:], np.arange(B - 4) % CLASSES
    pixels = np.clip(pixels, 10, 245)
    strongest = run(FGSM, Net(), variables, pixels, labels)
    a, b = (torch.tensor(variables[name]) for name in "ab")
    x = torch.tensor(pixels / np.float32(127.5) - 1, requires_grad=True)
    logits = torch.sin(x.reshape(len(x), -1) @ a) @ b
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum").backward()
    slope = x.grad.numpy()
    expected = x.detach().numpy() + 6 / 127.5 * np.sign(slope)
    clear = np.abs(slope) > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_allclose(np.asarray(strongest.images)[clear], expected[clear], atol=1e-6)


def test_random_starts_belong_to_images_not_to_batches(network):
    model, variables, pixels, labels = network
    whole = run(PGD, model, variables, pixels, labels)
    second_half = run(PGD, model, variables, pixels[8:16], labels[8:16], np.arange(8, 16))
    assert whole.correct[8:16].tolist() == second_half.correct.tolist()
    np.testing.assert_allclose(whole.loss[8:16], second_half.loss, rtol=1e-3, atol=1e-4)
    small = dict(PGD, epsilon=1, step_size=0.25)
    one, other = (
        run(dict(small, seed=seed), model, variables, pixels, labels) for seed in range(2)
    )
    assert np.abs(np.asarray(one.images - other.images)).max() > 1e-3


def test_only_competing_classes_are_aimed_at():
    """The attacked loss is that of the label map: other outputs change nothing."""
    variables, pixels, _, labels = linear_case()

    class Three(Linear):
        def apply(self, variables, x):
            other = 100 * x.mean((1, 2, 3))[:, None]
            return jnp.concatenate([super().apply(variables, x), other], axis=1)

    answers, competing = np.array([0, 1, label_maps.NO_LABEL]), np.array([True, True, False])
    label_map = label_maps.LabelMap(("a", "b"), np.arange(2), answers, competing)
    strongest = run(PGD, Three(), variables, pixels, labels, label_map=label_map)
    expected = run(PGD, Linear(), variables, pixels, labels, label_map=label_maps.identity("ab"))
    assert_same_up_to_rounding(strongest.images, expected.images)
    np.testing.assert_allclose(strongest.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (dict(kind="cw"), "here.kind must be one of 'fgsm', 'pgd'"),
        (dict(FGSM, steps=3), "here has no field 'steps'; use kind, epsilon for fgsm"),
        (
            dict(kind="fgsm"),
            r"here\.epsilon must be a number of grey levels \(of 255\) above 0, got None",
        ),
        (
            dict(FGSM, epsilon=0),
            r"here\.epsilon must be a number of grey levels \(of 255\) above 0, got 0",
        ),
        (
            dict(FGSM, epsilon=True),
            r"here\.epsilon must be a number of grey levels \(of 255\) above 0, got True",
        ),
        (dict(FGSM, epsilon=256), "must be at most 255 grey levels"),
        (dict(PGD, steps=0), r"here\.steps must be a whole number above 0, got 0"),
        (dict(PGD, steps=1.5), r"here\.steps must be a whole number above 0, got 1\.5"),
        (
            dict(PGD, step_size=-1),
            r"here\.step_size must be a number of grey levels \(of 255\) above 0, got -1",
        ),
        (dict(PGD, seed=-1), r"here\.seed must be a whole number at least 0, got -1"),
    ],
)
def test_wrong_attacks(spec, said):
    with pytest.raises(InputError, match=said):
        attacks.make("here", spec)
