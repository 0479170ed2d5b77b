"""A job that meets again and again: python -m tests.multihost.peer_processes JSON

JSON: `steps`, how often; `fails`, the process that raises an error half-way; `fields`, config
fields that are others on the last process.
"""

import json
import os
import sys
import tempfile

import numpy as np
from jax.experimental import multihost_utils

from launch.runtime import app
from launch.runtime.devices import joining, peers

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(seed=0, total_steps=3, model=dict(width=4)))
"""


def main(options):
    index, count = int(os.environ["TEST_PROCESS"]), int(os.environ["TEST_PROCESSES"])

    def task(args):
        for step in range(options["steps"]):
            multihost_utils.process_allgather(np.int32(step))
            if step == 0:
                print("met", flush=True)
            if options.get("fails") == index and step == options["steps"] // 2:
                raise LookupError("of this process alone")
        print(json.dumps("done"))

    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(CONFIG)
        file.flush()
        argv = ["job", f"--config={file.name}", "--workdir=anywhere", f"--num_processes={count}"]
        argv += [f"--process_id={index}", f"--coordinator={os.environ['TEST_COORDINATOR']}"]
        if index == count - 1:
            argv += [f"--config.{name}={value}" for name, value in options["fields"].items()]
        app.run(task, __doc__, joining.define_flags, argv)


if __name__ == "__main__":
    # A busy machine lets nobody wait so long; a test shall not wait longer.
    peers.LOST_SECONDS = 6.0
    main({"steps": 10**9, "fields": {}} | json.loads(sys.argv[1]))
