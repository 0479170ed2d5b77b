"""Real and synthetic digits in one classifier: as a union, at a fixed share, read by processes."""

import numpy as np
import pytest

from input_pipeline.batches import loader
from launch.errors import InputError
from tests.support.classifier_mixture import REAL, drawn, losses, run


@pytest.mark.parametrize(
    ("weight", "counts"), [(0.25, {4}), (0.0, {0}), (1.0, {16}), (0.3, {4, 5})]
)
def test_a_fixed_share(synthetic, tmp_path, monkeypatch, weight, counts):
    sources = dict(real=REAL, synthetic=synthetic)
    batches = drawn(monkeypatch, tmp_path / "run", sources, synthetic_weight=weight)
    assert {int(batch["domain"].sum()) for batch in batches} == counts
    for batch in batches:
        white = (batch["image"][:, 2:6, 2:6] == 255).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(white, batch["domain"] == 1)


def test_without_a_weight_it_is_the_union(synthetic, tmp_path, monkeypatch):
    sources = dict(real=REAL, synthetic=synthetic)
    absent = drawn(monkeypatch, tmp_path / "absent", sources)
    none = drawn(monkeypatch, tmp_path / "none", sources, synthetic_weight=None)
    for ours, theirs in zip(absent, none, strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
    # 60 of 90 on average, and not always as many.
    counts = [int(batch["domain"].sum()) for batch in absent]
    assert len(set(counts)) > 3 and 9 < np.mean(counts) < 12


@pytest.mark.parametrize(
    ("names", "fields", "said"),
    [
        (["real"], dict(synthetic_weight=0.5), "needs synthetic images to fill 0.5 of"),
        (["synthetic"], dict(synthetic_weight=0.5), "needs real images to fill 0.5 of"),
        (
            ["real", "synthetic"],
            dict(synthetic_weight=1.5),
            "synthetic_weight must be the synthetic share of",
        ),
        (["real"], dict(loader_workers=-2), "config.loader_workers must be at least -1, got -2"),
    ],
)
def test_nonsense_is_refused_before_a_run_is_begun(
    synthetic, tmp_path, capsys, names, fields, said
):
    sources = dict(real=REAL, synthetic=synthetic)
    assert run(tmp_path / "run", {name: sources[name] for name in names}, **fields) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_other_workers(synthetic, tmp_path, monkeypatch):
    sources, fields = dict(real=REAL, synthetic=synthetic), dict(synthetic_weight=0.25)
    assert run(tmp_path / "whole", sources, **fields) == 0
    iterate = loader.iterate

    def cut(dataset, start, stop, workers=0):
        yield from iterate(dataset, start, min(stop, 3), workers)
        if stop > 3:
            raise InputError("a power cut")

    with monkeypatch.context() as patch:
        patch.setattr(loader, "iterate", cut)
        assert run(tmp_path / "run", sources, loader_workers=2, **fields) == 2
    assert len(losses(tmp_path / "run")) < 4
    assert run(tmp_path / "run", sources, loader_workers=1, **fields) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
