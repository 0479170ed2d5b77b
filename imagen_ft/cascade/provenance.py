"""What decides about the images that a cascade draws."""

from collections.abc import Collection
from typing import Any

import ml_collections

from imagen_ft.cascade.cascade import Cascade
from launch.runtime.config import plain

# Fields that no image depends on, anywhere in the config: what they name is known by its checksum,
# counts are recorded as such, and what batches and devices decide is `Cascade.rounding`.
OUTSIDE_PROVENANCE = ("batch_size", "cache", "counts", "mesh", "real_source", "remat", "run")


def provenance(config: ml_collections.ConfigDict, cascade: Cascade) -> dict[str, Any]:
    """All that decides about a cascade's images, for JSON; `config` is the part that matters."""
    # Stored in the provenance.json of a synthetic set.
    return {
        "config": without(plain(config), OUTSIDE_PROVENANCE),
        "weights": list(cascade.digests),
        "text": cascade.encoder.digest,
        "rounding": cascade.rounding(),
    }


def without(config: Any, names: Collection[str]) -> Any:
    """A config without the fields of these names, at any depth."""
    if isinstance(config, dict):
        return {key: without(x, names) for key, x in config.items() if key not in names}
    return config
