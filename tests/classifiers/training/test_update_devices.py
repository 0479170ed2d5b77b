"""Twenty steps give the same losses on any mesh, of one process or of two."""

import json

import pytest

from tests.multihost.processes import run_processes
from tests.support.devices import run_on_eight, splits

MODULE = "tests.classifiers.training.update_devices"
EVERY = [split for devices in (1, 2, 4, 8) for split in splits(devices)]


def same(runs, alone):
    for run in runs:
        for field in ("losses", "gradient_norms"):
            assert run[field] == pytest.approx(alone[field], rel=2e-5)


@pytest.mark.slow  # Compiles for twenty meshes; always run are gradients on one of eight devices.
@pytest.mark.parametrize("net", ["resnet", "vit"])
def test_losses_on_every_mesh(net):
    alone, *others = run_on_eight(MODULE, net, json.dumps(EVERY))["found"]
    assert len(set(alone["losses"])) == 20 and alone["held"] == 1
    same(others, alone)
    for (_, *ways), run in zip(EVERY[1:], others, strict=True):
        assert max(ways) == 1 or run["held"] < 0.8


@pytest.mark.slow  # Two processes compile for half a minute each.
@pytest.mark.parametrize("net", ["resnet", "vit"])
def test_two_processes_have_the_losses_of_one(net):
    one, *_ = run_processes(MODULE, net, "[[1, 1, 1]]", processes=1, devices=1)
    two = run_processes(MODULE, net, "[[2, 2, 1]]", processes=2, devices=2, timeout=300)
    for process in two:
        assert process["devices"] == 4
        same(process["found"], one["found"][0])
