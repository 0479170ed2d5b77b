"""Which arms are planned, the test of equivalence, and what is said of its results."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from scipy import stats

from configs.digits import fast_study
from imagen_ft import worth
from imagen_ft.economy import plan, report, results
from launch.errors import InputError
from launch.files import write_json
from tests.support import ROOT, commands

PAIRS = (0.95, 0.96, 0.955, 0.965, 0.95, 0.96, 0.95), (0.952, 0.957, 0.957, 0.96, 0.953, 0.96, 0.95)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_test_of_equivalence():
    """As SciPy's one-sided t-tests at both margins have it, and its interval of 90%."""
    found = results.equivalence(*PAIRS, 0.01)
    differences = np.subtract(*PAIRS)
    p_values = [
        stats.ttest_1samp(differences, -0.01, alternative="greater").pvalue,
        stats.ttest_1samp(differences, 0.01, alternative="less").pvalue,
    ]
    assert found["p_equivalent"] == pytest.approx(max(p_values)) and max(p_values) < 0.01
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.9)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    # The interval lies within the margin where the test says so, at its very level.
    for margin in (found["high"] * 0.999, found["high"] * 1.001):
        inside = -margin < found["low"] and found["high"] < margin
        assert (results.equivalence(*PAIRS, margin)["p_equivalent"] < results.LEVEL) == inside
    far = results.equivalence(np.subtract(PAIRS[0], 0.05), PAIRS[1], 0.01)
    assert far["p_equivalent"] > 0.99


def test_differences_without_a_spread():
    assert results.equivalence((0.5, 0.6), (0.5, 0.6), 0.01)["p_equivalent"] == 0.0
    assert results.equivalence((0.5, 0.6), (0.4, 0.5), 0.01)["p_equivalent"] == 1.0
    one = results.equivalence((0.5,), (0.5,), 0.01)
    assert np.isnan(one["p_equivalent"]) and not one["p_equivalent"] < results.LEVEL


def test_the_arms():
    config = fast_study.get_config("solvers=ddpm+heun,settings=8x4+3x2,distilled=8x4+2x4")
    arms = plan.make_arms(config, Path("fast"))
    found = {arm.name: arm.by_stage for arm in arms}
    assert list(found) == [
        "reference_32_16", "ddpm_8_4", "ddpm_3_2", "heun_4_2", "heun_2_1",
        "distilled_8_4", "distilled_2_4",
    ]  # fmt: skip
    # Heun's steps take two evaluations, but for the last one.
    assert found["heun_4_2"] == (7, 3) and found["heun_2_1"] == (3, 1)
    assert found["reference_32_16"] == (32, 16) and found["distilled_2_4"] == (2, 4)
    jobs = {job.name: job for job in plan.make_jobs(config, Path("fast"), arms)}
    # Down to the fewest steps that an arm needs of a stage, each from the one before it.
    rounds = [name for name in jobs if name.startswith("distil-")]
    assert rounds == [
        "distil-base4-16", "distil-base4-8", "distil-base4-4", "distil-base4-2",
        "distil-sr8-8", "distil-sr8-4",
    ]  # fmt: skip
    assert "teacher=runs/digits/finetune_base4" in jobs["distil-base4-16"].command[1]
    assert "teacher=fast/distilled/base4_16" in jobs["distil-base4-8"].command[1]
    assert jobs["distil-base4-8"].after == ("distil-base4-16",)
    drawn = jobs["draw-distilled_2_4"]
    assert drawn.after == ("distil-base4-2", "distil-sr8-4")
    assert "--config.stages.base4.run=fast/distilled/base4_2" in drawn.command
    assert "--config.stages.sr8.sampler.name=ddim" in drawn.command
    train = jobs["train-heun_4_2"]
    assert train.after == ("draw-heun_4_2",)
    assert train.command[-1] == "--config.train_sources.synthetic.path=fast/sets/heun_4_2"
    assert "arm=real" in jobs["train-real"].command[1] and not jobs["train-real"].after
    waits = {name for job in jobs.values() for name in job.after}
    assert waits <= jobs.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(settings=((8,),)), r"config\.settings must have .*for each of base4, sr8, got \(8,"),
        (dict(settings=((8, 0),)), r"config\.settings must have one number of steps"),
        (
            dict(distilled=((12, 4),)),
            r"config\.distilled must be .*\(32, 16\), halved .*got \(12, 4",
        ),
        (dict(distilled=((32, 4),)), r"config\.distilled must be .*halved"),
        (dict(margin=1.0), r"config\.margin must be a fraction .*got 1\.0"),
    ],
)
def test_wrong_fields(fields, message):
    config = fast_study.get_config()
    with config.ignore_type():
        config.update(fields)
    with pytest.raises(InputError, match=message):
        plan.make_arms(config, Path("fast"))


@pytest.fixture
def finished(tmp_path):
    """A study whose command lines have left their numbers, its config and its arms."""
    config = fast_study.get_config("solvers=dpmpp,settings=8x4+1x1,distilled=4x4")
    arms = plan.make_arms(config, tmp_path)
    numbers = dict(reference_32_16=PAIRS[1], dpmpp_8_4=PAIRS[0], distilled_4_4=PAIRS[0])
    numbers |= dict(dpmpp_1_1=np.subtract(PAIRS[1], 0.2).tolist(), real=(0.8,) * 7)
    for name, accuracies in numbers.items():
        path = plan.evaluation_path(config, tmp_path, name)
        path.parent.mkdir(parents=True)
        write_json(path, {"arms": {name: {"accuracies": list(accuracies)}}})
    return config, arms, tmp_path


def test_the_report(finished):
    config, arms, folder = finished
    result = results.collect(config, folder, arms)
    report.write(folder, config.name, result)
    assert json.loads((folder / "worth.json").read_text()) == result
    assert (folder / "worth.png").stat().st_size > 1000
    page = (folder / "report.html").read_text()
    # What the axis names, and the bars: of the differences, not of the means.
    axes = report.draw(result).axes[0]
    assert axes.get_xticks().tolist() == sorted({row["evaluations"] for row in result["arms"]})
    ends = [
        path.vertices[:, 1].tolist()
        for line in axes.collections
        if isinstance(line, LineCollection)
        for path in line.get_paths()
    ]
    reference = 100 * np.mean(PAIRS[1])
    row = next(row for row in result["arms"] if row["name"] == "distilled_4_4")
    expected = [reference + 100 * row["low"], reference + 100 * row["high"]]
    assert any(found == pytest.approx(expected) for found in ends)
    assert "90% of the difference" in page
    best = results.cheapest(result)
    assert best["name"] == "distilled_4_4" and best["evaluations"] == 8
    said, good = report.verdict(result)
    assert good and said.startswith(
        "8 evaluations (distilled_4_4) are as good as 48: within 1 point, "
    )
    assert "6.0 times fewer" in said and "80.00%" in page
    assert re.search(
        r"dpmpp_1_1 +1 \+ 1 +2 +1/24 +75\.\d\d ± 0\.\d\d +-20\.00", report.table(result)
    )
    for row in result["arms"][1:]:
        row["p_equivalent"] = 0.5
    said, good = report.verdict(result)
    assert not good and said.startswith(
        "No arm with fewer evaluations than 48 is within 1 point of"
    )


def test_a_dry_run_prints_the_command_lines(capsys):
    arguments = "configs/digits/fast_study.py:solvers=dpmpp,settings=4x4,distilled=4x4"
    assert commands.run(worth.main, arguments, None, "--dry_run") == 0
    out = capsys.readouterr().out
    lines = re.findall(r"-m (\S+) --config=", out)
    expected = dict(zip(*np.unique(lines, return_counts=True), strict=True))
    assert expected == {
        "imagen_ft.finetune": 5,
        "imagen_ft.generate": 3,
        "classifiers.train": 4,
        "classifiers.evaluate": 4,
    }
    assert "distilled_4_4: 8 network evaluations" in out
