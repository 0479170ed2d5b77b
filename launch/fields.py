"""The type of a part of a config."""

from collections.abc import Mapping
from typing import Any

import ml_collections

# A ConfigDict is no Mapping to Python.
Fields = Mapping[str, Any] | ml_collections.ConfigDict
