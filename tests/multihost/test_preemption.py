"""SIGTERM to one of two processes: both save at the same step and leave; both go on again."""

import json
import time

import pytest

from launch.runtime.checkpoints.inference import latest_step
from launch.runtime.training.metrics import column, read_metrics
from tests.multihost.processes import run_processes, start_processes

CONFIG = dict(total_steps=500, log_every=50, checkpoint_every=200, evaluate_every=0)


def options(**faults):
    return json.dumps(dict(several=True, config=CONFIG, faults=faults))


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # JAX looks for the signal once a second, so the steps last long enough for that.
    arguments = "tests.support.toy", str(cut), options(seconds=0.01)
    with start_processes(*arguments, devices=1) as started:
        while not (cut / "metrics.jsonl").exists():
            assert all(process.poll() is None for process, _ in started), started[0][1].read_text()
            time.sleep(0.01)
        started[1][0].terminate()
        codes = [process.wait(timeout=100) for process, _ in started]
        said = [log.read_text().splitlines() for _, log in started]
    assert codes == [75, 75], said
    step = latest_step(cut)
    assert 0 < step < CONFIG["total_steps"]
    for lines in said:
        assert f"preempted: {cut} is saved at step {step}: run the same command again" in lines
    # Process 0 alone shows how far it is.
    assert any(line.startswith("toy: ") for line in said[0])
    assert not any(line.startswith("toy: ") for line in said[1])

    again = run_processes("tests.support.toy", str(cut), options(), devices=1)
    expected = run_processes("tests.support.toy", str(whole), options(), devices=1)
    assert again == expected and again[0] == again[1] and again[0]["step"] == 500
    for name in ("loss", "gradient_norm", "distance"):
        ours, theirs = (column(read_metrics(workdir), name) for workdir in (cut, whole))
        assert ours[0].tolist() == theirs[0].tolist() and ours[1].tolist() == theirs[1].tolist()
