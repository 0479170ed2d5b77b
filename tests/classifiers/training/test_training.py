"""Losses against PyTorch, weights of the domains, and what a step measures of each."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import torch

from classifiers.models import presets
from classifiers.training import losses
from classifiers.training.training import Training
from configs.digits import classifier
from launch.errors import InputError
from launch.runtime.state import TrainState
from launch.runtime.training.metrics import to_scalars
from tests.support.close import assert_same_up_to_rounding

REAL, BOTH = dict(real={}), dict(real={}, synthetic={})


def config_of(**fields):
    config = classifier.get_config("runlocal").to_dict()
    config["model"] = dict(name="vit", width=8, depth=1, num_heads=2, patch_size=4, pool="mean")
    return ml_collections.ConfigDict(config | dict(label_smoothing=0.0) | fields)


def draw(b=12, classes=10):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (b, 8, 8, 1), np.uint8),
        "label": rng.integers(0, classes, b).astype(np.int32),
        "domain": (np.arange(b) % 3 == 0).astype(np.int32),
    }


def begin(config, tx):
    """A state whose head is not zero."""
    training = Training.of(config, 10, (8, 8, 1))
    variables = training.model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    state = TrainState(jnp.zeros((), jnp.int32), variables, tx.init(variables["params"]), {})
    return dataclasses.replace(training, tx=tx), state


def step(config, batch, tx=None):
    """Metrics of a step, and the gradient: what SGD at a rate of 1 subtracts."""
    tx = tx or optax.sgd(1.0)
    training, state = begin(config, tx)
    after, metrics = jax.jit(training.update)(state, batch)
    gradient = jax.tree.map(jnp.subtract, state.variables["params"], after.variables["params"])
    return to_scalars(metrics), gradient


def torch_targets(labels, classes, mixed):
    targets = torch.nn.functional.one_hot(torch.tensor(labels), classes).double()
    return 0.7 * targets + 0.3 * targets.flip(0) if mixed else targets


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("name", "smoothing"), [("cross_entropy", 0.1), ("bce", 0.0)])
def test_losses_are_those_of_torch(name, smoothing, mixed):
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32) * 4, rng.integers(0, 5, 6)
    config = ml_collections.ConfigDict(dict(loss=name, label_smoothing=smoothing))
    targets = losses.soft_targets(labels, 5, smoothing)
    targets = 0.7 * targets + 0.3 * targets[::-1] if mixed else targets
    values = losses.make_loss(config)(jnp.asarray(logits), targets)
    theirs = torch_targets(labels, 5, mixed)
    if name == "bce":
        # DeiT III's engine: BCEWithLogitsLoss against every class that is there.
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            torch.tensor(logits).double(), (theirs > 0).double(), reduction="none"
        ).mean(-1)
    else:
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(logits).double(), theirs, label_smoothing=smoothing, reduction="none"
        )
    assert values.shape == (6,)
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-5)


@pytest.mark.slow
def test_lambda_weighs_what_synthetic_images_teach():
    batch = draw()
    synthetic = batch["domain"] == 1
    parts = {}
    for name, members in (("real", ~synthetic), ("synthetic", synthetic)):
        part = {key: value[members] for key, value in batch.items()}
        metrics, gradient = step(config_of(train_sources=REAL), part)
        parts[name] = metrics["loss"], gradient, members.mean()
        assert "loss_by_domain/real" not in metrics
    metrics, gradient = step(config_of(train_sources=BOTH, synthetic_loss_weight=0.6), batch)
    (real, of_real, share), (fake, of_fake, rest) = parts.values()
    assert metrics["loss"] == pytest.approx(share * real + 0.6 * rest * fake, rel=1e-5)
    expected = jax.tree.map(lambda a, b: share * a + 0.6 * rest * b, of_real, of_fake)
    assert_same_up_to_rounding(gradient, expected)
    # What is measured of a domain is not weighed.
    assert metrics["loss_by_domain/real"] == pytest.approx(real, rel=1e-5)
    assert metrics["loss_by_domain/synthetic"] == pytest.approx(fake, rel=1e-5)
    shares = [metrics[f"accuracy_by_domain/{name}"] for name in ("real", "synthetic")]
    assert metrics["accuracy"] == pytest.approx(np.dot(shares, [share, rest]))


def test_a_domain_that_is_not_in_the_batch():
    batch = {**draw(), "domain": np.zeros(12, np.int32)}
    metrics, _ = step(config_of(train_sources=BOTH), batch)
    assert metrics["loss_by_domain/real"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert not any(name.endswith("synthetic") for name in metrics)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(loss="hinge"), r"config\.loss must be one of cross_entropy, bce"),
        (dict(loss="bce", label_smoothing=0.1), r"label_smoothing must be .*got 0\.1"),
        (dict(label_smoothing=1.0), r"label_smoothing must be at least 0 and below 1, got 1\.0"),
        (dict(synthetic_loss_weight=-1.0), r"synthetic_loss_weight must be at least 0"),
        (dict(synthetic_loss_weight=0.6, train_sources=REAL), "has one source"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(InputError, match=message):
        Training.of(config_of(**fields), 10, (8, 8, 1))


def test_what_is_mixed_is_of_one_domain_where_each_has_its_norms():
    model = dict(name="resnet", stage_sizes=(1,), width=4, auxiliary_batch_norm=True)
    fields = dict(model=model, train_sources=BOTH)
    with pytest.raises(
        InputError, match=r"mix\.by_domain must be True with model\.auxiliary_batch_norm"
    ):
        Training.of(config_of(**fields, mix=dict(mixup=0.2)), 10, (8, 8, 1))
    Training.of(config_of(**fields, mix=dict(mixup=0.2, by_domain=True)), 10, (8, 8, 1))


def test_a_mixture_of_both_domains_has_no_weight():
    fields = dict(train_sources=BOTH, synthetic_loss_weight=0.6)
    with pytest.raises(InputError, match=r"mix\.by_domain must be True with synthetic_loss_weight"):
        Training.of(config_of(**fields, mix=dict(mixup=0.2)), 10, (8, 8, 1))
    Training.of(config_of(**fields, mix=dict(mixup=0.2, by_domain=True)), 10, (8, 8, 1))


def test_presets_have_the_same_step_in_any_domain():
    """A model that has no norms of its own for a domain does not look at it."""
    batch = draw()
    first, _ = step(config_of(train_sources=REAL), batch)
    second, _ = step(config_of(train_sources=REAL), {**batch, "domain": 1 - batch["domain"]})
    assert first["loss"] == second["loss"]
    assert isinstance(begin(config_of(train_sources=REAL), optax.sgd(1.0))[0].model, presets.ViT)
