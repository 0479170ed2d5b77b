import dataclasses

import pytest

from imagen_ft.metrics.result import Conditions, Result, difference

CONDITIONS = Conditions(
    extractor="inception_2015",
    weights_digest="1" * 64,
    input_rule="tf1",
    uint8_rule="round",
    file_format="png",
    reference_file_format="jpeg",
    num_images=10_000,
    class_balance="balanced",
    reference_digest="2" * 64,
    settings=(("splits", 10),),
)
OTHERS = {
    "extractor": "dinov2_l",
    "weights_digest": "3" * 64,
    "input_rule": "clean",
    "uint8_rule": "floor",
    "file_format": "jpeg",
    "reference_file_format": None,
    "num_images": 50_000,
    "class_balance": "drawn",
    "reference_digest": None,
    "k": 3,
    "comparison": "<=",
    "settings": (("splits", 10), ("seed", 0)),
}


def test_every_condition_is_compared():
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Conditions)}


@pytest.mark.parametrize("name", OTHERS)
def test_a_condition_that_differs_is_named(name):
    conditions = dataclasses.replace(CONDITIONS, **{name: OTHERS[name]})
    text = difference(Result("fid", 3.0, CONDITIONS), Result("fid", 2.0, conditions, 0.1))
    assert text is not None
    words = "10,000 and 50,000 images" if name == "num_images" else f"{name.replace('_', ' ')} "
    assert text.startswith(words) and "\n" not in text


@pytest.mark.parametrize(
    ("measure", "fields"),
    [
        ("fid", dict()),
        ("fid", dict(uint8_rule="unknown", reference_file_format="unknown")),
        ("fid", dict(file_format="none")),
        ("kid", dict(num_images=50_000)),
        ("fd infinity (pool)", dict(num_images=50_000)),
    ],
)
def test_results_that_compare(measure, fields):
    other = dataclasses.replace(CONDITIONS, **fields)
    assert difference(Result(measure, 3.0, CONDITIONS), Result(measure, 2.0, other)) is None


def test_all_that_differs_is_one_line():
    other = dataclasses.replace(CONDITIONS, num_images=50_000, weights_digest="3" * 64, settings=())
    assert difference(Result("fid", 3.0, CONDITIONS), Result("sfid", 3.0, other)) == (
        "fid and sfid, weights digest 111111111111 and 333333333333, 10,000 and 50,000 images, "
        "settings splits=10 and none"
    )
