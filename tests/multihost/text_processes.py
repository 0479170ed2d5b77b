"""What test_texts asks of one job: python -m tests.multihost.text_processes."""

import json

import jax

from launch.errors import InputError
from launch.runtime.devices import distributed
from tests.multihost.processes import join


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
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
