import pytest

from tests.support.devices import run_on_eight


@pytest.mark.slow
def test_eight_devices_say_what_one_says():
    differences = run_on_eight("tests.classifiers.evaluation.scores_devices")
    assert differences.pop("moved") > 1e-3
    assert differences["predicted"] == differences["top5"] == differences["correct"] == 0
    assert max(differences.values()) < 1e-4, differences
