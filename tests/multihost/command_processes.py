"""A command whose processes find each other by Slurm's variables, and share its work.

python -m tests.multihost.command_processes text|sample|evaluate|finetune|measure ARGUMENTS
"""

import dataclasses
import json
import sys
import warnings

import jax

from classifiers import evaluate
from imagen_ft import evaluate as measure
from imagen_ft import finetune, sample
from imagen_ft.text import __main__ as text
from launch.runtime import app
from launch.runtime.devices.mesh import state_shardings
from tests.support import small_cascade


def load(config, mesh, prompts):
    """The small cascade, on the mesh of all processes."""
    cascade = small_cascade.make_cascade()
    variables = [jax.device_put(v, state_shardings(mesh, v)) for v in cascade.variables]
    return dataclasses.replace(cascade, variables=tuple(variables), mesh=mesh)


def main(name, *arguments):
    """Runs the command."""
    # ml_collections loads config files in an old way.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    sample.load_cascade = load
    if name == "text":
        code = text.run([name, *arguments])
    else:
        tasks = dict(sample=sample, evaluate=evaluate, finetune=finetune, measure=measure)
        task = tasks[name]
        try:
            app.run(task.main, task.__doc__, task.define_flags, [name, *arguments])
        except SystemExit as ended:
            code = ended.code
    if code:
        sys.exit(code)
    print(json.dumps({"processes": jax.process_count(), "index": jax.process_index()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
