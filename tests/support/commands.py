"""Tasks as users call them, in this process."""

import sys

import pytest

from launch.runtime import app


def run(task, config, workdir, *argv):
    """The exit code of a task's `main` with a config file and its arguments."""
    module = sys.modules[task.__module__]
    with pytest.raises(SystemExit) as ended:
        arguments = ["task", f"--config={config}", *argv]
        arguments += [f"--workdir={workdir}"] if workdir else []
        app.run(task, module.__doc__, getattr(module, "define_flags", None), argv=arguments)
    return ended.value.code
