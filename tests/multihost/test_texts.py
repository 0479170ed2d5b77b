"""What processes tell each other."""

from tests.multihost.processes import run_processes


def test_processes_hear_of_each_other():
    first, second = run_processes("tests.multihost.text_processes", devices=1)
    assert (first.pop("calls"), second.pop("calls")) == (1, 0)
    assert first == second
    assert first == {
        "texts": ["ä" * 70_000, ""],
        "empty": ["", ""],
        "first": [0, ""],
        "decided": {"of": 0},
        "wrong": "wörong " * 300,
        "full": "cannot read or write at /disk: No space left on device (the disk at /)",
        "well": "",
    }
