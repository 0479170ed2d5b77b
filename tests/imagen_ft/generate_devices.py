"""imagen_ft.generate with a small cascade on the devices and processes that there are.

python -m tests.imagen_ft.generate_devices COUNTS WORKDIR MESH [FLAGS]
"""

import dataclasses
import json
import sys
import tempfile
import warnings

import jax

from imagen_ft import generate
from launch.runtime import app
from launch.runtime.devices.mesh import state_shardings
from tests.imagen_ft.trivial_generate import CONFIG
from tests.multihost.processes import join
from tests.support import small_cascade


def main(counts, workdir, mesh, *flags):
    """Runs the command."""
    join()

    def load(config, mesh):
        cascade = dataclasses.replace(small_cascade.make_cascade(), batch_size=config.batch_size)
        if mesh is None:
            return cascade
        variables = [jax.device_put(v, state_shardings(mesh, v)) for v in cascade.variables]
        return dataclasses.replace(cascade, variables=tuple(variables), mesh=mesh)

    generate.load_cascade = load
    fields = dict(names=small_cascade.NAMES, copies=1, per_shard=6, stored=0)
    fields["batch_size"] = 5 * jax.device_count()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        text = CONFIG.format(counts=counts, **fields)
        file.write(text.replace("stages=dict()", f"stages=dict(), mesh={json.loads(mesh)}"))
        file.flush()
        argv = ["generate", f"--config={file.name}", f"--workdir={workdir}", *flags]
        # ml_collections loads config files in an old way.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            app.run(generate.main, generate.__doc__, generate.define_flags, argv)
        except SystemExit as ended:
            if ended.code:
                raise
    print(json.dumps({"devices": jax.device_count()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
