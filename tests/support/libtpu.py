"""Whether the compiler for TPUs is installed."""

import platform
import sys

import pytest

needs_libtpu = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="there is no libtpu for this system",
)
