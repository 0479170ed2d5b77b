"""As generate_devices, but the disk of process 1 is full, or a folder of its own.

python -m tests.imagen_ft.generate_fails full|apart COUNTS WORKDIR MESH [FLAGS]
"""

import errno
import sys
import time
from unittest import mock

import jax

from imagen_ft import generate
from input_pipeline.synthetic.writer import SyntheticWriter
from tests.imagen_ft import generate_devices
from tests.multihost import processes


def main(kind, counts, workdir, *rest):
    """Runs the command."""
    processes.join()
    generate_devices.join = lambda: None
    if kind == "full":
        write = SyntheticWriter.write_encoded

        def fail(self, *args):
            if jax.process_index() == 1:
                raise OSError(errno.ENOSPC, "No space left on device", "the disk of process 1")
            write(self, *args)

        SyntheticWriter.write_encoded = fail
    elif jax.process_index() == 1:
        generate.PROVENANCE = "what only process 0 has written"
        generate.time = mock.Mock(time)
    generate_devices.main(counts, workdir, *rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
