"""Prior preservation: a stage keeps drawing what it drew before, by learning from its own images.

DreamBooth (Ruiz et al. 2023, Eq. 2) adds to the loss of a few images lambda times the loss of
synthetic ones of the same class, so that the few do not take over the class.
"""

import dataclasses
import math

import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, Int

from input_pipeline import sources
from input_pipeline.batches.mixture import Union
from input_pipeline.source import REAL, Source, check_same_classes
from input_pipeline.sources.lacking import lacking_in_source
from input_pipeline.synthetic.source import SYNTHETIC
from launch.errors import InputError
from launch.runtime.optional_fields import Defaults, below
from launch.runtime.types import Array

_FIELD = "config.prior"
# Half of each batch, with lambda = 1.
_DEFAULTS = {"share": 0.5, "weight": 1.0}


@dataclasses.dataclass(frozen=True)
class Prior:
    """Synthetic images beside those that are learned."""

    share: float  # of every batch that is synthetic
    weight: float  # lambda, of their mean loss beside that of the others

    def weights(self, domain: Int[Array, " b"]) -> Float[Array, " b"]:
        """Factors of each loss that make the batch's mean the sum of both means."""
        # mean over b of w_i l_i = mean(own) + lambda mean(synthetic), with `share` of b synthetic.
        own, synthetic = 1 / (1 - self.share), self.weight / self.share
        return jnp.where(domain == SYNTHETIC, synthetic, own)


def make_prior(config: ml_collections.ConfigDict) -> Prior | None:
    """Reads `config.prior`; None where there is none. Raises InputError for a wrong field."""
    given = config.get("prior")
    if not given:
        return None
    for name in given:
        if name not in ("source", *_DEFAULTS):
            raise InputError(f"{_FIELD} has no field {name!r}; use source, {', '.join(_DEFAULTS)}")
    if not given.get("source"):
        raise InputError(f"{_FIELD}.source must be a set of synthetic images, got none; set it")
    numbers = {}
    for name, most, end in (("share", 1.0, "below 1"), ("weight", math.inf, "finite")):
        value = given.get(name, _DEFAULTS[name])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < most:
            raise InputError(
                f"{_FIELD}.{name} must be above 0 and {end}, got {value!r}; "
                f"{_DEFAULTS[name]} is usual"
            )
        numbers[name] = value
    return Prior(**numbers)


def with_prior(config: ml_collections.ConfigDict, train: Source) -> Source:
    """The images that are learned and the synthetic ones, of the same classes, as one source."""
    synthetic = sources.load(config.prior.source)
    pair = "config.train_source", train.class_names, f"{_FIELD}.source", synthetic.class_names
    check_same_classes(*pair)
    # `Prior.weights` tells them apart by domain: neither source may hold both.
    for field, source, domain, kind in (
        ("config.train_source", train, REAL, "real"),
        (f"{_FIELD}.source", synthetic, SYNTHETIC, "synthetic"),
    ):
        if not np.all(source.domain == domain):
            raise InputError(
                f"{field} must have only {kind} images when there is a prior, got others; use "
                f"{'the images to learn' if domain == REAL else 'a set of imagen_ft.generate'}"
            )
    return Union([train, synthetic])


def lacking_in_prior(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `config.prior` that a config does not set."""
    given = config.get("prior") or {}
    lacked = below("prior", given, _DEFAULTS)
    return {**lacked, **lacking_in_source("prior.source", given.get("source") or {})}
