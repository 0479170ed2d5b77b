"""What test_texts asks of one job: python -m tests.multihost.text_processes."""

import json

import jax
import numpy as np

from imagen_ft.metrics.statistics import Moments, merge_hosts
from launch.errors import InputError
from launch.runtime.devices import distributed
from tests.multihost.processes import join

# In float32, which is what JAX would make of them, all would be the same.
ROWS = 1e9 + np.random.default_rng(0).standard_normal((9, 2))


def message_of(action):
    """What an error of process 1 alone says on every process."""

    def on_second():
        if jax.process_index() == 1:
            action()

    try:
        distributed.agree(on_second)
    except InputError as error:
        return str(error)
    return ""


def wrong():
    raise InputError("wörong " * 300)


def full():
    raise OSError(28, "No space left on device", "/disk")


def merged_moments(rows):
    """Number of images, mean and covariance after each process has seen its part of the rows."""
    own = Moments(rows.shape[1])
    own.add(np.array_split(rows, jax.process_count())[jax.process_index()])
    merged = merge_hosts(own).statistics()
    return [merged.num_images, merged.mean.tolist(), merged.covariance.tolist()]


def main():
    join()
    index, calls = jax.process_index(), []
    found = {
        "texts": distributed.gather_texts("" if index else "ä" * 70_000),
        "empty": distributed.gather_texts(""),
        "first": distributed.from_first_process([index, "x" * index]),
        "decided": distributed.decide_on_first_process(lambda: calls.append(1) or {"of": index}),
        "calls": len(calls),
        "wrong": message_of(wrong),
        "full": message_of(full),
        "well": message_of(lambda: None),
        "moments": merged_moments(ROWS),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
