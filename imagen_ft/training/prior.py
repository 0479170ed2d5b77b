"""Prior preservation: a stage goes on drawing what it drew, of images that it made before.

DreamBooth (Ruiz et al. 2023, Eq. 2) adds to the loss of a few images that of generated ones of the
same class, times lambda: few images are learned without the class becoming them.
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
# Half of a batch, weighted alike: as many generated images as others, and lambda = 1.
_DEFAULTS = {"share": 0.5, "weight": 1.0}


@dataclasses.dataclass(frozen=True)
class Prior:
    """Generated images beside those that are learned.

    Attributes:
        share: of every batch that they are.
        weight: lambda, of their mean loss beside that of the others.
    """

    share: float
    weight: float

    def weights(self, domain: Int[Array, " b"]) -> Float[Array, " b"]:
        """What each loss is multiplied by, so that the batch's mean is the sum of both means.

        Args:
            domain: of each image, real or synthetic.
        """
        own, generated = 1 / (1 - self.share), self.weight / self.share
        return jnp.where(domain == SYNTHETIC, generated, own)


def make_prior(config: ml_collections.ConfigDict) -> Prior | None:
    """Reads `config.prior`; None where there is none.

    Raises:
        InputError: a field is wrong.
    """
    given = config.get("prior")
    if not given:
        return None
    for name in given:
        if name not in ("source", *_DEFAULTS):
            raise InputError(
                f"{_FIELD} has no field {name!r}; there is source, {', '.join(_DEFAULTS)}"
            )
    if not given.get("source"):
        raise InputError(f"{_FIELD}.source must name generated images, got none; set it")
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
    """The images that are learned and the generated ones, as one source.

    Args:
        config: has `prior`.
        train: the images that are learned.

    Raises:
        InputError: see `sources.load`; or they are of other classes, or not what they have to be.
    """
    generated = sources.load(config.prior.source)
    pair = "config.train_source", train.class_names, f"{_FIELD}.source", generated.class_names
    check_same_classes(*pair)
    for field, source, domain, kind in (
        ("config.train_source", train, REAL, "real"),
        (f"{_FIELD}.source", generated, SYNTHETIC, "generated"),
    ):
        if not np.all(source.domain == domain):
            raise InputError(
                f"{field} must have {kind} images alone where there is a prior, got others; name "
                f"{'images to learn' if domain == REAL else 'a set of imagen_ft.generate'}"
            )
    return Union([train, generated])


def lacking_in_prior(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of `config.prior` that a config lacks."""
    given = config.get("prior") or {}
    lacked = below("prior", given, _DEFAULTS)
    return {**lacked, **lacking_in_source("prior.source", given.get("source") or {})}
