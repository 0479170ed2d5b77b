"""The option --slice of pytest: all fast tests, and a sixth of the slow ones.

`.ci/run` takes another sixth each time, so that none is left out for long.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

SLICES = [f"{k}/6" for k in range(1, 7)]
# CPU seconds that a file's slow tests take, compilation included: only proportions
# matter. `sh launch/test.sh -m slow -n 0 --durations=0` prints each test's time.
SECONDS = json.loads(Path(__file__).with_name("slow_seconds.json").read_text())
UNKNOWN = 60


def deal(files: Collection[str], seconds: Mapping[str, int] = SECONDS) -> dict[str, str]:
    """The slice of each file: longest first, each to the shortest slice so far."""
    sums = dict.fromkeys(SLICES, 0)
    dealt = {}
    for file in sorted(files, key=lambda file: (-seconds.get(file, UNKNOWN), file)):
        dealt[file] = min(SLICES, key=sums.__getitem__)
        sums[dealt[file]] += seconds.get(file, UNKNOWN)
    return dealt


def pytest_addoption(parser):
    about = "of the tests marked slow, take only those of this slice"
    parser.addoption("--slice", choices=SLICES, help=about)


def pytest_collection_modifyitems(config, items):
    """Leaves out the slow tests of other slices, and starts with the longest files of this one.

    If they came last, one worker would still be busy with them when the other has nothing left.
    """
    chosen = config.getoption("slice")
    if chosen is None:
        return
    slow = {item for item in items if item.get_closest_marker("slow")}
    dealt = deal({_file(item) for item in slow})
    others = [item for item in items if item in slow and dealt[_file(item)] != chosen]
    config.hook.pytest_deselected(items=others)
    left_out = set(others)
    items[:] = [item for item in items if item not in left_out]
    first = {file: SECONDS.get(file, UNKNOWN) for file in dealt if dealt[file] == chosen}
    items.sort(key=lambda item: -first.get(_file(item), 0))


def _file(item) -> str:
    return item.nodeid.partition("::")[0]
