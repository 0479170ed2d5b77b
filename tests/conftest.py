"""Sets what JAX and matplotlib read only once, at import; child processes inherit it."""

import os
import signal
import sys

from tests.support import ROOT
from tests.support.object_store import bucket, store, store_server

__all__ = ["bucket", "store", "store_server"]  # pytest takes them from here

pytest_plugins = ["tests.support.messages", "tests.support.slices"]

SETTINGS = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax-tests"),
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_PLATFORMS": "cpu",
    # A test that needs several devices starts its own process, where it sets this.
    "JAX_NUM_CPU_DEVICES": "1",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    # The tests' programs take longer to compile than to run. Flags of the caller are kept, so
    # that XLA_FLAGS=--xla_cpu_max_isa=AVX2 sh launch/test.sh tests another processor.
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip(),
}

if "jax" in sys.modules:
    raise RuntimeError("a pytest plugin imported jax before tests/conftest.py could set it up")
os.environ.update(SETTINGS)
# A suite started in the background by a script ignores Ctrl-C, and so would every child.
signal.signal(signal.SIGINT, signal.default_int_handler)

# From here on these rooms check the types and shapes of arguments and results.
from jaxtyping import install_import_hook  # noqa: E402

import tests.support.typechecker  # noqa: E402

install_import_hook(tests.support.typechecker.ROOMS, "tests.support.typechecker.check")
