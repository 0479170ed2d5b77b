"""The numbers of an evaluation, against PyTorch, brute force and the authors' rules."""

import jax
import numpy as np
import pytest
import torch

from classifiers.evaluation import label_maps, scores
from classifiers.evaluation.label_maps import NO_LABEL, LabelMap
from input_pipeline.imagenet import wordnet_ids
from input_pipeline.source import ArraySource

B, CLASSES, BINS = 64, 12, 15


def outputs(classes=CLASSES, seed=0):
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(B, classes)).astype(np.float32), rng.integers(0, classes, B)


def judge(logits, labels, label_map):
    judged = jax.jit(scores.judge, static_argnums=2)(logits, labels, Static(**vars(label_map)))
    return {name: np.asarray(value) for name, value in judged.items()}


class Static(LabelMap):
    """Hashable, for jit."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_plain_classes_against_torch():
    logits, labels = outputs()
    judged = judge(logits, labels, label_maps.identity("abcdefghijklmnop"[:CLASSES]))
    theirs = torch.tensor(logits)
    assert judged["predicted"].tolist() == theirs.argmax(1).tolist()
    top = theirs.topk(5, dim=1).indices
    assert judged["top5"].tolist() == (top == torch.tensor(labels)[:, None]).any(1).tolist()
    assert 0 < judged["top5"].sum() < B
    loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels), reduction="none")
    np.testing.assert_allclose(judged["loss"], loss.numpy(), rtol=1e-5)
    confidence = theirs.softmax(1).max(1).values
    np.testing.assert_allclose(judged["confidence"], confidence.numpy(), rtol=1e-5)


def test_a_part_of_the_classes_is_the_part_of_the_outputs():
    """As in the code of ImageNet-R and ImageNet-A: output[:, indices], then all as usual."""
    logits, labels = outputs()
    some = [1, 4, 5, 7, 8, 10]
    answers, competing = np.full(CLASSES, NO_LABEL), np.zeros(CLASSES, bool)
    answers[some], competing[some] = range(6), True
    labels = labels % 6
    label_map = LabelMap(tuple("abcdef"), np.arange(6), answers, competing)
    judged = judge(logits, labels, label_map)
    expected = judge(logits[:, some], labels, label_maps.identity("abcdef"))
    for name, values in expected.items():
        np.testing.assert_allclose(judged[name], values, rtol=1e-5, err_msg=name)
    assert (logits.argmax(1) != np.array(some)[expected["predicted"]]).any()


def test_several_classes_stand_for_one():
    """As ObjectNet's authors: each of the five best is made a label of theirs, or -1."""
    logits, _ = outputs()
    stands_for = {0: 2, 3: 0, 4: 0, 7: 1, 9: 0}
    answers = np.array([stands_for.get(k, NO_LABEL) for k in range(CLASSES)])
    labels = np.arange(B) % 3
    label_map = LabelMap(tuple("abc"), np.arange(3), answers, np.ones(CLASSES, bool))
    judged = judge(logits, labels, label_map)
    p = torch.tensor(logits).softmax(1).numpy()
    for row, label in enumerate(labels):
        best = [stands_for.get(k, -1) for k in np.argsort(-logits[row])[:5]]
        assert judged["predicted"][row] == best[0]
        assert judged["top5"][row] == (label in best)
        own = [k for k, of in stands_for.items() if of == label]
        assert judged["loss"][row] == pytest.approx(-np.log(p[row, own].sum()), rel=1e-4)
        said = [k for k, of in stands_for.items() if of == best[0]] or [logits[row].argmax()]
        assert judged["confidence"][row] == pytest.approx(p[row, said].sum(), rel=1e-4)
    assert (judged["predicted"] == NO_LABEL).any() and (judged["predicted"] == 0).any()


@pytest.mark.parametrize("classes", [2, 5])
def test_five_classes_or_fewer_are_all_among_the_top_five(classes):
    logits, labels = outputs(classes)
    assert judge(logits, labels, label_maps.identity("abcdefghijklmnop"[:classes]))["top5"].all()


def test_the_gradient_of_the_loss_is_finite_and_right():
    logits, labels = outputs()
    competing = np.arange(CLASSES) % 2 == 0
    label_map = LabelMap(
        tuple("abcdef"),
        np.arange(6),
        np.where(competing, np.arange(CLASSES) // 2, NO_LABEL),
        competing,
    )
    labels = labels % 6
    gradient = jax.grad(lambda x: scores.judge(x, labels, label_map)["loss"].sum())(logits)
    expected = np.zeros_like(logits)
    expected[:, ::2] = torch.tensor(logits[:, ::2]).softmax(1).numpy()
    expected[np.arange(B), 2 * labels] -= 1
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def brute_force_calibration_error(confidence, correct):
    """Guo et al. 2017, Eq. 2 and 3, bin by bin."""
    total = 0.0
    for m in range(1, BINS + 1):
        inside = (confidence > (m - 1) / BINS) & (confidence <= m / BINS)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.sum() / len(confidence) * gap
    return total


def test_calibration_error():
    rng = np.random.default_rng(0)
    confidence = np.append(rng.uniform(0.01, 1, 500), [1.0, 1.0]).astype(np.float32)
    correct = rng.uniform(size=502) < confidence**2
    calibration = scores.calibration(confidence, correct, BINS)
    expected = brute_force_calibration_error(confidence.astype(np.float64), correct)
    assert calibration["calibration_error"] == pytest.approx(expected, rel=1e-12)
    assert 0.05 < expected < 0.4
    bins = calibration["calibration"]
    assert sum(bins["count"]) == 502 and sum(bins["correct"]) == correct.sum()
    assert sum(bins["confidence"]) == pytest.approx(confidence.sum(dtype=np.float64))


@pytest.mark.parametrize(("right", "error"), [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75)])
def test_calibration_error_of_the_certain(right, error):
    correct = np.arange(100) < 100 * right
    calibration = scores.calibration(np.ones(100, np.float32), correct, BINS)
    assert calibration["calibration_error"] == pytest.approx(error)


def test_summary():
    image_scores = {
        "predicted": np.array([0, 1, 1, 3]),
        "top5": np.array([True, True, False, True]),
        "loss": np.array([0.5, 1.0, 2.5, 0.0], np.float32),
        "confidence": np.full(4, 0.5, np.float32),
    }
    summary = scores.summarise(image_scores, np.array([0, 0, 1, 3]), num_classes=5, bins=2)
    assert (summary["accuracy"], summary["top5"], summary["loss"]) == (0.75, 0.75, 1.0)
    assert summary["per_class"] == [0.5, 1.0, None, 1.0, None]
    assert summary["calibration_error"] == 0.25
    assert summary["calibration"]["count"] == [4, 0]


class Reader:
    """A network whose outputs are the pixels of the first row."""

    def apply(self, variables, images):
        return images[:, 0, :, 0] * variables["scale"]


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_every_image_counts_once(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 2, 6, 1), np.uint8)
    source = ArraySource(images, np.arange(count) % 6, tuple("abcdef"))
    counts = []
    score = scores.make_score(
        Reader(), source, label_maps.identity("abcdef"), batch_size=4, tell=counts.append
    )
    image_scores = score({"scale": np.float32(-9)})
    assert image_scores["predicted"].tolist() == images[:, 0, :, 0].argmin(1).tolist()
    assert (
        all(values.shape == (count,) for values in image_scores.values()) and sum(counts) == count
    )
    logits = -9 * (images[:, 0, :, 0] / 127.5 - 1)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(source.labels.astype(int)), reduction="none"
    )
    np.testing.assert_allclose(image_scores["loss"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_imagenets_own_order():
    label_map = label_maps.identity(wordnet_ids())
    assert label_map.num_model_classes == 1000 and label_map.answers[999] == 999
