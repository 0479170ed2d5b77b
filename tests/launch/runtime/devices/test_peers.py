"""Who is taken for lost, on a clock of the test; real processes are in tests/multihost."""

import types

import pytest

from launch.runtime.devices import peers
from launch.runtime.devices.peers import LOST_SECONDS, Watch


class Store(dict):
    """JAX's, as far as a watch uses it."""

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        self[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.items() if key.startswith(folder)]


@pytest.fixture
def watches(monkeypatch):
    """Those of three processes, at the time 0."""
    monkeypatch.setattr(peers.time, "monotonic", lambda: 0.0)
    state = types.SimpleNamespace(client=Store())
    monkeypatch.setattr(peers.distributed, "global_state", state)
    monkeypatch.setattr(peers.jax, "process_count", lambda: 3)
    made = []
    for index in range(3):
        monkeypatch.setattr(peers.jax, "process_index", lambda index=index: index)
        made.append(Watch())
    return made


def talk(watches, start, stop):
    """All say every second that they are alive, process 0 last."""
    for now in range(start, stop):
        for watch in reversed(watches):
            watch.talk(float(now))
    for watch in watches:  # what process 0 has told last
        watch.talk(float(stop - 1))


def verdicts(watches, now):
    return [watch.verdict(float(now)) for watch in watches]


def test_nobody_is_lost(watches):
    talk(watches, 0, 60)
    assert verdicts(watches, 60) == [None] * 3


def test_one_that_is_not_heard_of(watches):
    talk(watches, 0, 10)
    talk(watches[:2], 10, 10 + int(LOST_SECONDS))
    assert verdicts(watches[:2], 24) == [None] * 2
    talk(watches[:2], 25, 28)
    assert verdicts(watches[:2], 28) == [("2", "is gone")] * 2


def test_one_that_was_not_heard_of_yet_has_minutes(watches):
    talk(watches[:2], 0, 200)
    assert verdicts(watches[:2], 200) == [None] * 2
    talk(watches[:2], 200, 330)
    assert verdicts(watches[:2], 330) == [("2", "is gone")] * 2


def test_the_store_is_gone_with_process_0(watches):
    talk(watches, 0, 10)
    assert watches[1].verdict(9 + LOST_SECONDS) is None
    assert watches[1].verdict(9 + LOST_SECONDS + 1) == ("0", "is gone")


def test_one_that_has_left_waits_for_those_that_save(watches):
    talk(watches, 0, 10)
    watches[2].leave(1)
    with watches[0].finishing():
        talk(watches, 10, 40)
        assert verdicts(watches[:2], 40) == [None, ("2", "has ended")]
        talk(watches, 40, 160)
        assert watches[0].verdict(159.0) is None
        assert watches[0].verdict(160.0) == ("2", "has ended")


def test_one_that_fails_is_lost_after_one_that_was_before(watches, monkeypatch):
    """A step of process 1 fails because process 2 is lost: nobody blames process 1."""
    talk(watches, 0, 10)
    monkeypatch.setattr(peers.time, "monotonic", lambda: 10.0)
    watches[1].be_silent()
    talk(watches[:2], 10, 28)
    assert verdicts(watches[:2], 28) == [("2", "is gone")] * 2
    assert not watches[1].is_to_blame()


def test_one_that_fails_alone_is_to_blame(watches, monkeypatch):
    talk(watches, 0, 10)
    monkeypatch.setattr(peers.time, "monotonic", lambda: 10.0)
    watches[1].be_silent()
    talk(watches, 10, 40)
    assert watches[1].is_to_blame() and watches[1].verdict(40.0) is None
    assert verdicts([watches[0], watches[2]], 40) == [("1", "is gone")] * 2
