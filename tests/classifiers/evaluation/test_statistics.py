"""What classifiers are compared by."""

import dataclasses

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from scipy import stats

from classifiers import from_config
from classifiers.evaluation.statistics import compare
from classifiers.models.resnet import ResNet
from classifiers.training.evaluation import make_evaluation
from classifiers.training.losses import soft_cross_entropy, soft_targets
from classifiers.training.training import Training
from configs.digits import classifier
from input_pipeline.source import ArraySource
from launch.errors import InputError
from launch.runtime.devices.mesh import make_mesh


def test_compare_is_a_paired_t_test():
    rng = np.random.default_rng(0)
    baseline = rng.uniform(0.7, 0.8, 5)
    accuracies = baseline + rng.normal(0.02, 0.02, 5)
    comparison = compare(accuracies, baseline)
    assert comparison["p_value"] == pytest.approx(
        stats.ttest_rel(accuracies, baseline).pvalue, rel=1e-12
    )
    assert 1e-6 < comparison["p_value"] < 0.5
    assert comparison["mean"] == pytest.approx(accuracies.mean())
    assert comparison["std"] == pytest.approx(
        np.sqrt(((accuracies - accuracies.mean()) ** 2).sum() / 4)
    )


@pytest.mark.parametrize(
    ("accuracies", "baseline"),
    [
        ([0.7, 0.8, 0.75], None),
        ([0.7, 0.8, 0.75], [0.7, 0.8, 0.75]),
        ([0.7, 0.8, 0.75], [0.6, 0.7]),
        ([0.5, 0.75, 0.875], [0.25, 0.5, 0.625]),
        # The differences are 0.1, but not to the last digit.
        ([0.9, 0.8, 0.4], [0.8, 0.7, 0.3]),
        ([0.7], [0.6]),
    ],
    ids=["no baseline", "itself", "other seeds", "constant", "constant but rounded", "one seed"],
)
def test_no_p_value(accuracies, baseline):
    comparison = compare(accuracies, baseline)
    assert comparison["p_value"] is None
    assert comparison["mean"] == pytest.approx(np.mean(accuracies))
    assert comparison["std"] == (np.std(accuracies, ddof=1) if len(accuracies) > 1 else 0)


def a_source(count, classes=3):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 4, 4, 1), np.uint8)
    names = tuple(f"class {label}" for label in range(classes))
    return ArraySource(images, np.arange(count) % classes, names)


class Brightest(ResNet):
    """In place of a network: the class is the number of the brightest pixel of the first row."""

    def apply(self, variables, images):
        return variables["sign"] * images[:, 0, :3, 0]


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_what_training_measures_leaves_padding_out(count):
    source = a_source(count)
    config = classifier.get_config("runlocal")
    config.augment, config.evaluation_batch_size = {}, 4
    training = dataclasses.replace(Training.of(config, 3, (4, 4, 1)), model=Brightest(3, (1,)))
    accuracy = make_evaluation(training, source, make_mesh({}))
    pixels = source.images[:, 0, :3, 0].astype(int)
    for sign, predicted in ((1, pixels.argmax(axis=1)), (-1, pixels.argmin(axis=1))):
        assert accuracy({"sign": np.float32(sign)}) == (predicted == source.labels).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_against_torch(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = 5 * rng.normal(size=(6, 7)).astype(np.float32), rng.integers(0, 7, 6)
    loss = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)
    theirs = loss(torch.tensor(logits), torch.tensor(labels)).numpy()
    np.testing.assert_allclose(
        soft_cross_entropy(logits, soft_targets(labels, logits.shape[-1], smoothing)),
        theirs,
        rtol=1e-5,
    )


def test_unknown_model():
    with pytest.raises(InputError, match=r"model\.name must be one of resnet"):
        from_config.make_model(ConfigDict(dict(name="vgg", width=3, dtype="float32")), 10)
