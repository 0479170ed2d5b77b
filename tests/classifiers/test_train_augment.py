"""What a config says of augmentation reaches the batches, the step and the evaluation."""

import numpy as np
import pytest

from tests.support.classifier_mixture import REAL, drawn, losses, run

POLICY = dict(size=6, crop=dict(scale=(0.3, 1.0)), erasing=0.5)
MIX = dict(mixup=0.2, cutmix=1.0)


def test_images_are_augmented_and_repeated(tmp_path, monkeypatch):
    plain = drawn(monkeypatch, tmp_path / "plain", dict(real=REAL), augment={})
    batches = drawn(monkeypatch, tmp_path / "set", dict(real=REAL), augment=POLICY, repeats=4)
    assert {batch["image"].shape for batch in batches} == {(16, 6, 6, 1)}
    drawn_labels = np.concatenate([batch["label"] for batch in plain])[:80]
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels, np.repeat(drawn_labels, 4))
    images = np.concatenate([batch["image"] for batch in batches])
    copies = images.reshape(-1, 4, 36)
    assert (copies[:, 0] != copies[:, 1]).any(axis=1).mean() > 0.9


@pytest.mark.slow
def test_mixing_changes_the_losses_and_a_run_is_repeatable(tmp_path):
    fields = dict(augment=POLICY, evaluation=dict(size=6, crop_ratio=0.9))
    for name, more in (("plain", {}), ("mixed", dict(mix=MIX)), ("again", dict(mix=MIX))):
        assert run(tmp_path / name, dict(real=REAL), **fields, **more) == 0
    plain, mixed, again = (losses(tmp_path / name) for name in ("plain", "mixed", "again"))
    assert np.isfinite(mixed).all() and mixed == again
    assert all(a != b for a, b in zip(plain, mixed, strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(augment=dict(size=6, flop=True)), "augment has no field 'flop'"),
        (dict(augment=dict(size=0)), "augment.size must be a whole number from 1 to 65536, got 0"),
        (
            dict(evaluation=dict(size=6, crop_ratio=2)),
            "evaluation.crop_ratio must be a number in [0, 1], got 2",
        ),
        (
            dict(mix=dict(mixup=-1)),
            "mixup must be above 0 for Beta(mixup, mixup), or 0 to turn it off, got -1",
        ),
        (dict(mix=dict(mixup=0.2, cut=1.0)), "mix has no field 'cut'"),
        (dict(repeats=0), "repeats must be at least 1, got 0"),
    ],
)
def test_wrong_fields(tmp_path, capsys, fields, message):
    assert run(tmp_path / "run", dict(real=REAL), **fields) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
