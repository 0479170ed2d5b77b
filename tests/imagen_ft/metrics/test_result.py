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
    assert text.startswith(f"they differ in {name} (")
    assert "\n" not in text


def test_results_that_compare():
    assert difference(Result("fid", 3.0, CONDITIONS), Result("fid", 2.0, CONDITIONS)) is None


def test_all_that_differs_is_one_line():
    other = dataclasses.replace(CONDITIONS, num_images=50_000, weights_digest="3" * 64, settings=())
    assert difference(Result("fid", 3.0, CONDITIONS), Result("sfid", 3.0, other)) == (
        "they differ in measure (fid and sfid), weights_digest (111111111111 and 333333333333), "
        "num_images (10000 and 50000), settings (splits=10 and none)"
    )
