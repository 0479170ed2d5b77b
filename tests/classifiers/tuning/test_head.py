"""Tuning of classes' weights against PyTorch."""

import ml_collections
import numpy as np
import pytest
import torch

from classifiers.tuning.head import Loss, Part, loss_and_gradient, tune

RNG = np.random.default_rng(0)
START = RNG.normal(size=(4, 6)).astype(np.float32)
OPTIMIZER = ml_collections.ConfigDict(
    dict(
        name="adamw",
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.1,
        clip_norm=1.0,
        learning_rate=1e-3,
    )
)
HARD, BOTH = Loss(1.0, 0.0, 1.0, 20.0), Loss(0.5, 0.5, 2.0, 20.0)


def part(count, batch_size, loss):
    features = RNG.normal(size=(count, 6)).astype(np.float32)
    return Part.make(features, RNG.integers(0, 4, count), batch_size, loss)


def torch_loss(weights, part, dtype=torch.float32):
    """He et al. 2023, section 3.1."""
    features, start = (torch.tensor(x, dtype=dtype) for x in (part.features, START))
    loss, log_p = part.loss, torch.log_softmax(part.loss.scale * features @ weights.T, 1)
    teacher = torch.softmax(loss.scale * features @ start.T / loss.temperature, 1)
    hard = torch.nn.functional.nll_loss(log_p, torch.tensor(part.labels))
    return loss.hard * hard + loss.soft * -(teacher * log_p).sum(1).mean()


def test_the_soft_loss_is_its_formula():
    """In float64, at weights other than the teacher's, and for each part of it alone."""
    weights = START + RNG.normal(size=START.shape).astype(np.float32)
    values = []
    for loss in (BOTH, HARD, Loss(0.0, 1.0, 2.0, 20.0)):
        one = part(8, 8, loss)
        expected = torch_loss(torch.tensor(weights, dtype=torch.float64), one, torch.float64)
        values.append(float(loss(weights, START, one.features, one.labels)))
        assert values[-1] == pytest.approx(float(expected), rel=1e-5)
    assert len(set(values)) == 3


def test_the_first_step():
    """Of mixed training: both losses, their gradient clipped, AdamW."""
    real, synthetic = part(3, 8, HARD), part(8, 8, BOTH)
    tuned = tune(START, (real, synthetic), "mix", OPTIMIZER, 1, 0)
    weights = torch.tensor(START, requires_grad=True)
    optimizer = torch.optim.AdamW([weights], 1e-3, weight_decay=0.1)
    (torch_loss(weights, real) + torch_loss(weights, synthetic)).backward()
    batches = [(x.features, x.labels) for x in (real, synthetic)]
    gradient = np.asarray(loss_and_gradient((HARD, BOTH), START, START, batches)[1])
    np.testing.assert_allclose(gradient, weights.grad, atol=1e-5)
    torch.nn.utils.clip_grad_norm_([weights], 1.0)
    optimizer.step()
    np.testing.assert_allclose(tuned, weights.detach(), atol=2e-6)
    assert np.abs(tuned - START).max() > 5e-4


def test_phases():
    """Both orders train as long as two mixed trainings, and end elsewhere."""
    parts = part(3, 2, HARD), part(8, 4, BOTH)
    ends = [tune(START, parts, s, OPTIMIZER, 2, 0) for s in ("real_first", "synthetic_first")]
    alone = tune(START, parts[:1], "real_first", OPTIMIZER, 2, 0)
    assert np.abs(ends[0] - ends[1]).max() > 1e-5 and np.abs(ends[0] - alone).max() > 1e-4
    np.testing.assert_array_equal(alone, tune(START, parts[:1], "mix", OPTIMIZER, 2, 0))
    order = parts[1].order(4, np.random.default_rng(0))
    assert order.shape == (4, 4) and sorted(order[:2].ravel()) == list(range(8))
