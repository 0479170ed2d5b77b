"""The report says what its numbers say."""

import json

import numpy as np
import pytest

from imagen_ft.demo import report
from input_pipeline.records.image_codec import encode_png
from input_pipeline.sources.digits import digits
from input_pipeline.synthetic.writer import SyntheticWriter
from launch.goodput import GOODPUT, Attempt
from tests.support.synthetic_set import write_shard


def made_up(**changes):
    """Results in which 10 copies help most, by 7.5 points."""
    means = {
        "real": (0.8, None),
        "real+synthetic_1x": (0.82, 0.04),
        "real+synthetic_10x": (0.875, 2e-5),
        "real+synthetic_30x": (0.87, 1e-6),
        "synthetic": (0.71, 1e-7),
        "pretrained": (0.705, 1e-7),
        "pool": (0.975, 1e-9),
    } | changes
    arms = {
        name: {"mean": mean, "std": 0.01, "p_value": p_value, "per_class": [mean] * 10}
        for name, (mean, p_value) in means.items()
    }
    return {"arms": arms}


@pytest.mark.parametrize(
    ("changes", "good", "said"),
    [
        ({}, True, "helped: real+synthetic_10x reaches 87.5%, +7.5 points"),
        # The best mean does not hold, another size does.
        (
            {"real+synthetic_10x": (0.875, 0.01)},
            True,
            "helped: real+synthetic_30x reaches 87.0%, +7.0 points",
        ),
        (
            {"real+synthetic_10x": (0.84, 1e-5), "real+synthetic_30x": (0.83, 1e-5)},
            False,
            "did not help enough: real+synthetic_10x reaches 84.0%, +4.0 points",
        ),
        (
            {"real+synthetic_10x": (0.875, 1e-3), "real+synthetic_30x": (0.87, None)},
            False,
            "did not help enough: real+synthetic_10x reaches 87.5%, +7.5 points against real only "
            "(paired t-test over seeds, p = 0.001;",
        ),
        (
            {"real+synthetic_10x": (0.9, None), "real+synthetic_30x": (0.84, 1e-4)},
            False,
            "+10.0 points against real only (paired t-test over seeds, p = none;",
        ),
        (
            {name: (0.7, 1e-5) for name in report.COPIES if name != "real"},
            False,
            "reaches 70.0%, -10.0 points",
        ),
    ],
    ids=["good", "another size", "too small", "too uncertain", "no test", "harmful"],
)
def test_verdict(changes, good, said):
    sentence, truth = report.verdict(made_up(**changes))
    assert truth is good
    assert said in sentence and sentence.startswith("Synthetic digits ")
    assert sentence.endswith("asked for: 5 points at p < 0.001).")


@pytest.mark.parametrize(
    ("mean", "said"), [(0.715, "no more than chance"), (0.68, "a gain"), (0.73, "a loss")]
)
def test_fine_tuning_is_judged(mean, said):
    sentence = report.fine_tuning(made_up(pretrained=(mean, 0.1)), {"sr8": (0.25, 0.2)})
    assert f": {said}. " in sentence and "sr8 0.25000 to 0.20000" in sentence


def test_rows_and_table():
    rows = report.rows(made_up())
    assert rows == [
        ["real", "80.00 ± 1.00", "", ""],
        ["real+synthetic_1x", "82.00 ± 1.00", "+2.00", "0.04"],
        ["real+synthetic_10x", "87.50 ± 1.00", "+7.50", "2e-05"],
        ["real+synthetic_30x", "87.00 ± 1.00", "+7.00", "1e-06"],
        ["synthetic", "71.00 ± 1.00", "-9.00", "1e-07"],
        ["pretrained", "70.50 ± 1.00", "-9.50", "1e-07"],
        ["pool", "97.50 ± 1.00", "+17.50", "1e-09"],
    ]
    lines = report.table(made_up()).split("\n")
    assert len(lines) == 9 and set(lines[1]) == {"-"}
    assert lines[0].split("  ")[0] == "arm" and lines[4].startswith("real+synthetic_10x  ")
    # Columns end together.
    assert {len(line) for line in lines} == {len(lines[0]), len(lines[2])}
    assert lines[0].index("(%)") + 3 == lines[2].index("± 1.00") + 6 == len(lines[2])
    assert lines[0].endswith(" p-value") and lines[4].endswith("  2e-05")


@pytest.fixture
def run(tmp_path):
    """What the road leaves, as little as will do; the synthetic digits are copies."""
    train = digits("train")
    evaluation = made_up() | {"class_names": train.class_names, "num_images": 667}
    # Named by folder, so in another order than the report's.
    evaluation["arms"] = dict(sorted(evaluation["arms"].items()))
    (tmp_path / "classifiers").mkdir()
    (tmp_path / "classifiers" / "evaluation_test.json").write_text(json.dumps(evaluation))

    writer = SyntheticWriter(
        tmp_path / "synthetic",
        name="digits_synthetic",
        class_names=train.class_names,
        image_shape=(8, 8, 1),
        counts=[1] * 10,
        copies=1,
        images_per_shard=10,
        provenance={},
    )
    # The digits of the training set come first in their class.
    order = [int(np.flatnonzero(train.labels == label)[0]) for label in range(10)]
    write_shard(writer, 0, train.images[order], list(train.class_names))
    writer.finish()

    (tmp_path / "samples").mkdir()
    for number, name in enumerate(train.class_names):
        for size in (4, 8):
            path = tmp_path / "samples" / f"{number:05d}_{name}_{size}px.png"
            path.write_bytes(encode_png(np.full((size, size, 1), 20 * number, np.uint8)))
    seeds = tmp_path / "classifiers" / "pool" / "seeds"
    seeds.mkdir(parents=True)
    attempt = Attempt(1, "a", 0.0, {"startup": 30.0, "steps": 60.0}, 1, 2, "steps", "done", 0)
    (seeds / GOODPUT).write_text(attempt.to_line())
    for name in ("pretrain_base4", "finetune_base4", "pretrain_sr8", "finetune_sr8"):
        lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]
        lines.append({"step": 1, "validation_loss": 0.46})
        lines.append({"step": 2, "validation_loss": 0.45})
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
    return tmp_path


def test_the_report_is_written(run):
    result = report.write(run, wall_seconds=321.4, peak_memory_bytes=3 * 2**29)
    assert json.loads((run / "report.json").read_text()) == result
    assert list(result["arms"]) == list(report.ORDER)
    assert result["arms"]["synthetic"]["mean"] == 0.71
    assert (result["wall_seconds"], result["peak_memory_bytes"]) == (321.4, 3 * 2**29)

    near = result["nearest_neighbours"]
    assert near["synthetic_to_train"] == 0 < near["synthetic_to_pool"]
    train, validation = digits("train").images, digits("validation").images
    differences = train[None].astype(float) - validation[:, None]
    distances = np.sqrt(np.mean(differences**2, axis=(2, 3, 4))).min(axis=1)
    assert near["validation_to_train"] == pytest.approx(distances.mean(), rel=1e-12)

    page = (run / "report.html").read_text()
    assert page.count("<figure>") == page.count('src="data:image/png;base64,') == 5
    assert page.count("<tr>") == 8 + 12 and "Wall time 321 s, peak memory at most 1.50 GiB" in page
    assert '<p class="verdict">Synthetic digits helped: real+synthetic_10x' in page
    assert "<td>classifiers/pool</td><td>productive 67% of 90 s in 1 attempt: start-up 33%<" in page
    assert "<td>pretrain_sr8</td><td>no attempt has trained yet<" in page
    assert "It generated 10 digits" in page and "tested on 667 digits" in page
    assert "from the fine-tuned one 71.0% (+0.5 points" in page and "no more than chance" in page
    assert "base4 0.46000 to 0.45000" in page
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
