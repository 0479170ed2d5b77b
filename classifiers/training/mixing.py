"""Mixup and CutMix, on the device: images and targets of a batch, mixed with each other."""

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Bool, Float, Int

from classifiers.from_config import Mix
from launch.errors import InputError
from launch.runtime.config import plain
from launch.runtime.types import Array


def mix(
    key: Array,
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b classes"],
    *,
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
    probability: float = 1.0,
    per_example: bool = False,
    domain: Int[Array, " b"] | None = None,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b classes"]]:
    """Mixes every image, and its targets as much, with its mate in the batch.

    Mixup (Zhang et al. 2018, section 2) adds lambda of the image and 1 - lambda of the mate; CutMix
    (Yun et al. 2019, Eq. 1 and 2) sets a box of the mate into the image, whose share of the area,
    once it is cut at the border, is 1 - lambda. lambda is drawn from Beta(a, a). The targets may be
    smoothed before (`losses.soft_targets`); mixing keeps that.

    Args:
        key: randomness.
        images: in any linear range.
        targets: probabilities of the classes.
        mixup: a of mixup; 0 is no mixup.
        cutmix: a of CutMix; 0 is no CutMix.
        switch: probability of CutMix where both are on.
        probability: of anything being mixed.
        per_example: whether each example draws for itself, and not the batch for all.
        domain: if given, mates are of one domain, see `mates`; every device then gets all images
            of the batch, where otherwise two devices exchange theirs.

    Returns:
        Images and targets, of the same shapes and dtypes.

    Raises:
        InputError: a number is out of its range.
    """
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if not value >= 0:
            raise InputError(
                f"{name} must be above 0 for Beta({name}, {name}), or 0 to leave it out, "
                f"got {value}"
            )
    for name, value in (("switch", switch), ("probability", probability)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be in [0, 1], got {value}")
    if not (mixup or cutmix):
        return images, targets
    b, height, width, _ = images.shape
    n = b if per_example else 1
    keys = jax.random.split(key, 5)
    mixed = jax.random.uniform(keys[0], (n,)) < probability
    switch = (switch if mixup else 1.0) if cutmix else 0.0
    cut = jax.random.uniform(keys[1], (n,)) < switch
    # What the mate has: of the image and its targets by mixup, of the area by CutMix.
    mixup_share = jax.random.beta(keys[2], mixup, mixup, (n,)) if mixup else jnp.zeros(n)
    cutmix_share = jax.random.beta(keys[3], cutmix, cutmix, (n,)) if cutmix else jnp.zeros(n)
    box = random_box(keys[4], cutmix_share, height, width)
    of_pixels = (
        jnp.where(cut[:, None, None], box, mixup_share[:, None, None]) * mixed[:, None, None]
    )
    of_targets = jnp.where(cut, box.mean((1, 2)), mixup_share) * mixed
    order = None if domain is None else mates(domain)
    return _blend(images, of_pixels[..., None], order), _blend(targets, of_targets[:, None], order)


def random_box(
    key: Array, area: Float[Array, " n"], height: int, width: int
) -> Bool[Array, "n height width"]:
    """Boxes around a random pixel, of the image's proportions, cut at its border.

    Args:
        key: randomness.
        area: before the cut, as shares of the image's.
        height: of the image.
        width: of the image.

    Returns:
        True inside.
    """
    keys = jax.random.split(key)

    def inside(key: Array, length: int) -> Bool[Array, "n length"]:
        half = (length * jnp.sqrt(area)).astype(jnp.int32) // 2
        middle = jax.random.randint(key, area.shape, 0, length)
        at = jnp.arange(length)[None]
        return ((middle - half)[:, None] <= at) & (at < (middle + half)[:, None])

    return inside(keys[0], height)[:, :, None] & inside(keys[1], width)[:, None, :]


def mates(domain: Int[Array, " b"]) -> Int[Array, " b"]:
    """Whom each example is mixed with: the first of its domain with the last of it, and so on.

    If all are of one domain it is the flipped batch. Who is whose mate is mutual.
    """
    order = jnp.argsort(domain, stable=True)
    ordered = domain[order]
    first = jnp.searchsorted(ordered, ordered, side="left")
    last = jnp.searchsorted(ordered, ordered, side="right") - 1
    positions = jnp.arange(len(domain))
    return jnp.zeros_like(order).at[order].set(order[first + last - positions])


def _blend(own: Array, share: Array, order: Array | None) -> Array:
    other = own[::-1] if order is None else own[order]
    return (own * (1 - share) + other * share).astype(own.dtype)


def make_mix(config: ml_collections.ConfigDict) -> Mix | None:
    """Mixup and CutMix: `mix`, a dict of the arguments of `mixing.mix` and `by_domain`.

    Returns:
        A function of a key, images, targets and domains; None where nothing is mixed.

    Raises:
        InputError: a field is wrong.
    """
    fields = dict(plain(config.get("mix") or {}))
    if not fields:
        return None
    by_domain = bool(fields.pop("by_domain", False))
    names = ("mixup", "cutmix", "switch", "probability", "per_example")
    if unknown := sorted(set(fields) - set(names)):
        raise InputError(f"mix has no field {unknown[0]!r}; use {', '.join(names)}, by_domain")
    fields = {"mixup": 0.0, "cutmix": 0.0, **fields}

    def mixed(key: Array, images: Array, targets: Array, domain: Array) -> tuple[Array, Array]:
        return mix(key, images, targets, domain=domain if by_domain else None, **fields)

    # Its numbers are looked at now, and not in the first step.
    shapes = ((2, 4, 4, 3), jnp.float32), ((2, 2), jnp.float32), ((2,), jnp.int32)
    jax.eval_shape(mixed, jax.random.key(0), *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    return mixed


def check_mix(config: ml_collections.ConfigDict, separate_norms: bool) -> None:
    """Looks for mixtures across domains where what follows has to know an image's domain.

    Args:
        config: `mix`, see `make_mix`; `synthetic_loss_weight`.
        separate_norms: whether each domain has its own batch norms.

    Raises:
        InputError: there are such.
    """
    if not config.get("mix") or config.mix.get("by_domain"):
        return
    both = "a mixture of a real and a synthetic image"
    if separate_norms:
        raise InputError(
            "config.mix.by_domain must be True with model.auxiliary_batch_norm, got "
            f"False: {both} has no domain"
        )
    if config.get("synthetic_loss_weight", 1.0) != 1.0:
        raise InputError(
            "config.mix.by_domain must be True with synthetic_loss_weight, got False: "
            f"{both} has no weight"
        )
