"""Every slow proof is in one slice, fast tests are in all, and slices take about as long."""

import pytest

from tests.support import ROOT, slices
from tests.support.slow import first_fast, only_fast

INI = "[pytest]\nmarkers = slow\n"
FAST = "def test_fast():\n    pass\n\n\n"
SLOW = """
import pytest

@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_slow(n):
    pass
"""


class Collected:
    ids = ()

    def pytest_collection_finish(self, session):
        self.ids = [item.nodeid for item in session.items]


def collect(folder, *argv):
    collected = Collected()
    argv = [str(folder), f"-c={folder / 'pytest.ini'}", "--collect-only", "-qq", *argv]
    argv += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    # It would look for garbage in all that this process holds, five times a call.
    argv += ["-p", "no:unraisableexception"]
    return pytest.main(argv, plugins=[slices, collected]), collected.ids


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "pytest.ini").write_text(INI)
    for n in range(8):
        (tmp_path / f"test_{n}.py").write_text(FAST + (SLOW if n else ""))
    return tmp_path


def test_every_slow_test_is_in_one_slice(suite):
    _, everything = collect(suite)
    fast = {name for name in everything if name.endswith("test_fast")}
    slow = sorted(set(everything) - fast)
    assert (len(fast), len(slow)) == (8, 14)
    taken = []
    for chosen in slices.SLICES:
        code, names = collect(suite, f"--slice={chosen}")
        assert code == 0 and fast <= set(names) and len(names) == len(set(names))
        proofs = sorted(set(names) - fast)
        # Seven files for six slices, and their files come first.
        assert len(proofs) in (2, 4)
        files = [name.partition("::")[0] for name in names]
        first = {name.partition("::")[0] for name in proofs}
        assert set(files[: len(proofs) + len(first)]) == first
        taken += proofs
    assert sorted(taken) == slow


def test_no_other_slice(suite, capsys):
    assert collect(suite, "--slice=7/6") == (pytest.ExitCode.USAGE_ERROR, ())
    assert "invalid choice: '7/6'" in capsys.readouterr().err


def test_slices_take_about_as_long():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert slices.SECONDS.keys() <= files
    dealt = slices.deal(slices.SECONDS)
    sums = dict.fromkeys(slices.SLICES, 0)
    for file, seconds in slices.SECONDS.items():
        sums[dealt[file]] += seconds
    # A file is not divided.
    longest = max(slices.SECONDS.values())
    assert max(sums.values()) <= max(longest, 1.25 * sum(sums.values()) / len(sums)), sums


def test_what_takes_long_is_alone():
    seconds = dict(a=1, b=2, c=30, d=4, e=5, f=6, g=7)
    dealt = slices.deal(seconds, seconds)
    groups = [{file for file in seconds if dealt[file] == name} for name in slices.SLICES]
    assert sorted(map(sorted, groups)) == [["a", "b"], *(["c"], ["d"], ["e"], ["f"], ["g"])]
    # One that nobody has timed counts as a minute.
    assert len({dealt[file] for file in "ab"}) == 1
    dealt = slices.deal(["new", *seconds], seconds)
    assert [file for file in dealt if dealt[file] == dealt["new"]] == ["new"]


def test_some_cases_of_a_test_are_slow():
    slow = lambda cases: [bool(getattr(case, "marks", ())) for case in cases]  # noqa: E731
    assert slow(first_fast([(1, 2), (3, 4), (5, 6)])) == [False, True, True]
    assert slow(first_fast("abc", 2)) == [False, False, True]
    assert slow(only_fast("abc", "b")) == [True, False, True]
    named = pytest.param(3, 4, id="name", marks=pytest.mark.xfail)
    first, *others = first_fast([(1, 2), (3, 4), named])
    assert first == (1, 2) and [case.values for case in others] == [(3, 4), (3, 4)]
    assert others[1].id == "name" and {mark.name for mark in others[1].marks} == {"xfail", "slow"}
