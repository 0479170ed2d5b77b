"""Auxiliary batch norm through the command lines, from training to the comparison of arms."""

import numpy as np
import pytest

from classifiers import evaluate
from configs.digits import classifier
from launch.files import read_json
from launch.runtime import app
from launch.runtime.training.metrics import column, read_metrics
from tests.support.classifier_mixture import REAL, losses, run

AUXILIARY = {"plain": False, "auxiliary": True}


@pytest.fixture(scope="module")
def arms(tmp_path_factory, synthetic):
    """Runs by (images, batch norm)."""
    folder = tmp_path_factory.mktemp("arms")
    mixtures = {"real": dict(real=REAL), "mixed": dict(real=REAL, synthetic=synthetic)}
    for images, sources in mixtures.items():
        for norm, auxiliary in AUXILIARY.items():
            model = dict(classifier.get_config().model, stage_sizes=(1,), width=4)
            model["auxiliary_batch_norm"] = auxiliary
            share = None if images == "real" else 0.5
            path = folder / f"{images}_{norm}"
            assert run(path, sources, model=model, synthetic_weight=share) == 0
    return folder


@pytest.mark.slow
def test_real_images_alone_are_trained_as_with_plain_batch_norm(arms):
    plain, auxiliary = (losses(arms / f"real_{norm}") for norm in AUXILIARY)
    assert len(plain) == 4 and auxiliary == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_synthetic_images_are_normalised_by_themselves(arms):
    plain, auxiliary = (losses(arms / f"mixed_{norm}") for norm in AUXILIARY)
    assert np.isfinite(auxiliary).all()
    assert np.abs(np.subtract(plain, auxiliary)).min() > 1e-4  # rounding gives 1e-7


@pytest.mark.slow
def test_evaluation_finds_what_training_has_measured(arms, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    config = "--config=configs/digits/evaluate.py:split=validation"
    argv = ["task", config, f"--workdir={arms}", "--config.baseline=real_plain"]
    with pytest.raises(SystemExit) as ended:
        app.run(evaluate.main, "", argv=argv)
    assert ended.value.code == 0
    found = read_json(arms / "evaluation_validation.json")["arms"]
    assert len(found) == 4
    for name, arm in found.items():
        measured = column(read_metrics(arms / name / "seed_0"), "validation_accuracy")[1]
        assert measured.tolist() == [pytest.approx(arm["accuracies"][0])]
