"""What decides about the images that a cascade draws."""

from collections.abc import Collection
from typing import Any

import ml_collections

from imagen_ft.cascade.cascade import Cascade
from launch.runtime.config import plain

# No image depends on these fields, wherever in the config: what they name is known by its digest,
# counts are told as such, and what batches and devices decide is `Cascade.rounding`.
OUTSIDE_PROVENANCE = ("batch_size", "cache", "counts", "mesh", "real_source", "remat", "run")


def provenance(config: ml_collections.ConfigDict, cascade: Cascade) -> dict[str, Any]:
    """All that decides about a cascade's images, for JSON.

    Args:
        config: of the task, or the part of it that matters.
        cascade: that was loaded from it.
    """
    return {
        "config": without(plain(config), OUTSIDE_PROVENANCE),
        "weights": list(cascade.digests),
        "text": cascade.encoder.digest,
        "rounding": cascade.rounding(),
    }


def without(config: Any, names: Collection[str]) -> Any:
    """A config less the fields of these names, at any depth."""
    if isinstance(config, dict):
        return {key: without(x, names) for key, x in config.items() if key not in names}
    return config
