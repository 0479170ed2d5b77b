"""Settings of how images become latents in training."""

from typing import Any

import ml_collections

from launch.errors import InputError

# Defaults of `config.latents`.
LATENTS = {"sample": True, "cache": ""}


def latents_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """`config.latents`, completed with its defaults; raises InputError for a wrong field."""
    # 1. The section must make sense for the stage.
    given = dict(config.get("latents") or {})
    if given and not config.stage.get("autoencoder"):
        raise InputError(
            "config.latents must be left out if config.stage has no autoencoder, got "
            f"{sorted(given)}"
        )
    if config.get("distill") and config.stage.get("autoencoder"):
        raise InputError(
            "config.distill must be left out if config.stage has an autoencoder: a teacher's "
            "predictions are clipped to the range of images, which latents do not have"
        )
    # 2. Its values.
    fields = {**LATENTS, **given}
    if not isinstance(fields["sample"], bool):
        raise InputError(
            f"config.latents.sample must be True or False, got {fields['sample']!r}; False uses "
            "the mean"
        )
    if not isinstance(fields["cache"], str):
        raise InputError(
            f"config.latents.cache must be a folder, got {fields['cache']!r}; '' encodes the "
            "images at every step"
        )
    return fields
