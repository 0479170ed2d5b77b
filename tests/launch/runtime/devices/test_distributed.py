"""What one process, or several by their word, agree on; several are in tests/multihost."""

import json

import pytest

from launch.errors import InputError
from launch.runtime.devices import distributed


def test_the_first_process_speaks_for_all():
    done = []
    distributed.on_first_process(lambda: done.append(1))
    assert done == [1]

    def wrong():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        distributed.on_first_process(wrong)


def test_the_first_process_decides_for_all():
    assert distributed.decide_on_first_process(lambda: {"a": (1, None)}) == {"a": [1, None]}

    def wrong():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        distributed.decide_on_first_process(wrong)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"config": {"seed": 1}, "the code": "1 a"}, "config.seed = 1, process 0 with 0"),
        ({"config": {"seed": 0}, "the code": "1 b"}, "the code = 1 b, process 0 with 1 a"),
        # Other code can have other fields; it alone is to be mended.
        ({"config": {"a": 1}, "the code": "1 b"}, "the code = 1 b, process 0 with 1 a"),
        ({"config": {"seed": 0}}, "the code = nothing, process 0 with 1 a"),
    ],
)
def test_settings_of_several_processes(monkeypatch, other, said):
    own = {"config": {"seed": 0}, "the code": "1 a"}
    texts = [json.dumps(settings) for settings in (own, own, other)]
    monkeypatch.setattr(distributed, "gather_texts", lambda text: texts[:2])
    distributed.check_same(own)
    monkeypatch.setattr(distributed, "gather_texts", lambda text: texts)
    with pytest.raises(InputError, match=f"process 2 was started with {said}; start all"):
        distributed.check_same(own)
