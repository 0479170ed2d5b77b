"""Tasks as users run them, but in this process."""

import sys

import pytest

from launch.runtime import app


def run(task, config, workdir, *argv):
    """Runs a task's `main` with a config file and arguments; returns the exit code."""
    module = sys.modules[task.__module__]
    with pytest.raises(SystemExit) as ended:
        arguments = ["task", f"--config={config}", *argv]
        arguments += [f"--workdir={workdir}"] if workdir else []
        options = {name: getattr(module, name, None) for name in ("define_flags", "lacking")}
        app.run(task, module.__doc__, argv=arguments, **options)
    return ended.value.code
