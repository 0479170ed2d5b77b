from tests.support.devices import run_on_eight


def test_eight_devices_say_what_one_says():
    found = run_on_eight("tests.classifiers.evaluation.scores_devices")
    assert found.pop("moved") > 1e-3
    assert found["predicted"] == found["top5"] == found["correct"] == 0
    assert max(found.values()) < 1e-4, found
