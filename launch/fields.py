"""The type of a section of a config."""

from collections.abc import Mapping
from typing import Any

import ml_collections

# ConfigDict does not register as a Mapping.
Fields = Mapping[str, Any] | ml_collections.ConfigDict
