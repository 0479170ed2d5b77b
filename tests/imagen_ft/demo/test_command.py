"""The demo's own command line; what it runs is in test_road.py."""

from unittest import mock

import pytest

from imagen_ft.demo import __main__, road
from launch.errors import InputError


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--runlocl"], "'runlocl'"),
        (["runlocal"], "'runlocal' is not a flag"),
        (["--workdir="], "--workdir is missing"),
    ],
)
def test_wrong_flags(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    assert __main__.run(["demo", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: command line: ") and said in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help(capsys):
    assert __main__.run(["demo", "--help"]) == 0
    out = capsys.readouterr().out
    assert "sh launch/demo.sh" in out and "--runlocal: only a few steps" in out


def test_its_steps_are_no_tasks_of_a_cluster(monkeypatch):
    runner = mock.Mock(side_effect=InputError("that will do"))
    monkeypatch.setattr(road, "JobRunner", runner)
    assert __main__.run(["demo", "--workdir=x"]) == 2
    assert runner.call_args.kwargs["options"] == ("--coordinator=none",)
