"""Programs that are one job of several processes, each with CPU devices of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from tests.support import ROOT

_ADDRESS, _COUNT, _INDEX = "TEST_COORDINATOR", "TEST_PROCESSES", "TEST_PROCESS"


def run_processes(
    module: str,
    *arguments: str,
    processes: int = 2,
    devices: int = 2,
    timeout: float = 120.0,
    variables: Callable[[int], Mapping[str, str]] = lambda index: {},
) -> list[Any]:
    """Runs `python -m module arguments`, warnings as errors, as one job; the program calls `join`.

    `variables` are more of the environment of each process, by its number.

    Returns:
        The JSON that each process prints as its last line.
    """
    with start_processes(
        module, *arguments, processes=processes, devices=devices, variables=variables
    ) as started:
        deadline = time.monotonic() + timeout
        # One that fails leaves the others waiting at a barrier.
        while any(p.poll() is None for p, _ in started):
            failed = any(p.poll() not in (None, 0) for p, _ in started)
            if failed or time.monotonic() > deadline:
                time.sleep(1.0)  # what the others have to say about it
                break
            time.sleep(0.05)
        said = [
            f"process {index}: exit code {process.poll()}\n{log.read_text()}"
            for index, (process, log) in enumerate(started)
        ]
        assert all(process.poll() == 0 for process, _ in started), "\n".join(said)
        return [json.loads(_stdout(log).splitlines()[-1]) for _, log in started]


@contextlib.contextmanager
def start_processes(
    module: str,
    *arguments: str,
    processes: int = 2,
    devices: int = 2,
    variables: Callable[[int], Mapping[str, str]] = lambda index: {},
) -> Iterator[list[tuple[subprocess.Popen, Path]]]:
    """Starts the job; what is still running at the end of the block is killed.

    Yields:
        Each process and the file that its standard error goes to; its standard output goes to the
        file with the suffix `.out`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[tuple[subprocess.Popen, Path]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for index in range(processes):
                settings = {
                    "JAX_NUM_CPU_DEVICES": str(devices),
                    _ADDRESS: f"127.0.0.1:{port}",
                    _COUNT: str(processes),
                    _INDEX: str(index),
                    **variables(index),
                }
                log = Path(folder, f"{index}.err")
                with log.open("w") as err, log.with_suffix(".out").open("w") as out:
                    process = subprocess.Popen(
                        [sys.executable, "-W", "error", "-m", module, *arguments],
                        cwd=ROOT,
                        env=os.environ | settings,
                        stdout=out,
                        stderr=err,
                    )
                started.append((process, log))
            yield started
        finally:
            for process, _ in started:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                process.wait()


def _stdout(log: Path) -> str:
    return log.with_suffix(".out").read_text()


def join() -> None:
    """Makes this process one of the job that `run_processes` has started, if it has."""
    count = int(os.environ.get(_COUNT, 1))
    if count > 1:
        jax.distributed.initialize(
            os.environ[_ADDRESS], num_processes=count, process_id=int(os.environ[_INDEX])
        )
