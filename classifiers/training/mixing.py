"""Mixup and CutMix on the device: images and targets of a batch, mixed with each other."""

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
    """Mixes every image, and its targets by the same share, with its mate in the batch.

    `images` may be in any linear range, and `targets` may be smoothed before
    (`losses.soft_targets`). `mixup` and `cutmix` are the a of Beta(a, a), 0 for none; `switch` is
    the probability of CutMix where both are on, `probability` that of any mixing. Each batch draws
    once for all its examples, or, with `per_example`, each example for itself. With `domain`, mates
    are of one domain (`mates`); every device then gathers all images, where otherwise two devices
    exchange theirs.

    Raises:
        InputError: a number is out of its range.
    """
    # 1. Check the numbers; they are Python's, so under jit this runs at tracing.
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if not value >= 0:
            raise InputError(
                f"{name} must be above 0 for Beta({name}, {name}), or 0 to turn it off, got {value}"
            )
    for name, value in (("switch", switch), ("probability", probability)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be in [0, 1], got {value}")
    if not (mixup or cutmix):
        return images, targets
    # 2. Draw whether to mix, by which of the two, and by how much.
    b, height, width, _ = images.shape
    n = b if per_example else 1
    keys = jax.random.split(key, 5)
    mixed = jax.random.uniform(keys[0], (n,)) < probability
    switch = (switch if mixup else 1.0) if cutmix else 0.0
    cut = jax.random.uniform(keys[1], (n,)) < switch
    # What the mate gets, 1 - lambda: of pixel values in mixup, of the area in CutMix. Beta(a, a)
    # is symmetric, so drawing it for lambda or 1 - lambda is the same.
    mixup_share = jax.random.beta(keys[2], mixup, mixup, (n,)) if mixup else jnp.zeros(n)
    cutmix_share = jax.random.beta(keys[3], cutmix, cutmix, (n,)) if cutmix else jnp.zeros(n)
    # 3. Its share of each pixel [n, h, w] and of the targets [n].
    box = random_box(keys[4], cutmix_share, height, width)
    # Zhang et al. 2018, section 2: a share of all pixels. Yun et al. 2019, Eq. 1: all of the
    # pixels in a box, and of the targets the box's area after it is cut at the border.
    of_pixels = (
        jnp.where(cut[:, None, None], box, mixup_share[:, None, None]) * mixed[:, None, None]
    )
    of_targets = jnp.where(cut, box.mean((1, 2)), mixup_share) * mixed
    # 4. Blend both with those of the mate.
    order = None if domain is None else mates(domain)
    return _blend(images, of_pixels[..., None], order), _blend(targets, of_targets[:, None], order)


def random_box(
    key: Array, area: Float[Array, " n"], height: int, width: int
) -> Bool[Array, "n height width"]:
    """Boxes around a random pixel, cut at the border; `area` in [0, 1] is the share before it."""
    keys = jax.random.split(key)

    def inside(key: Array, length: int) -> Bool[Array, "n length"]:
        # Yun et al. 2019, Eq. 2: sides are sqrt(area) of the image's, the centre is uniform.
        half = (length * jnp.sqrt(area)).astype(jnp.int32) // 2
        middle = jax.random.randint(key, area.shape, 0, length)
        at = jnp.arange(length)[None]
        return ((middle - half)[:, None] <= at) & (at < (middle + half)[:, None])

    # [n, h, 1] & [n, 1, w]
    return inside(keys[0], height)[:, :, None] & inside(keys[1], width)[:, None, :]


def mates(domain: Int[Array, " b"]) -> Int[Array, " b"]:
    """Pairs within each domain, its first example with its last; one domain gives the flip."""
    order = jnp.argsort(domain, stable=True)  # domains as contiguous blocks
    ordered = domain[order]
    first = jnp.searchsorted(ordered, ordered, side="left")
    last = jnp.searchsorted(ordered, ordered, side="right") - 1
    positions = jnp.arange(len(domain))
    # Mirror each position within its block, then undo the sort.
    return jnp.zeros_like(order).at[order].set(order[first + last - positions])


def _blend(own: Array, share: Array, order: Array | None) -> Array:
    # A flip exchanges rows between two devices at most; a gather needs all rows on each.
    other = own[::-1] if order is None else own[order]
    return (own * (1 - share) + other * share).astype(own.dtype)


def make_mix(config: ml_collections.ConfigDict) -> Mix | None:
    """`mix` with the fields of `config.mix`, as a function of key, images, targets and domains.

    None where nothing is mixed. Raises InputError for a wrong field.
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

    # Tracing it once checks the numbers now, rather than in the first step.
    shapes = ((2, 4, 4, 3), jnp.float32), ((2, 2), jnp.float32), ((2,), jnp.int32)
    jax.eval_shape(mixed, jax.random.key(0), *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    return mixed


def check_mix(config: ml_collections.ConfigDict, separate_norms: bool) -> None:
    """Raises InputError where images mix across domains although each needs its own domain."""
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
