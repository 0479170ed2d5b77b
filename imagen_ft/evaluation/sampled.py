"""The sets that are measured: existing ones, and those that a cascade draws on the way."""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import SupportsIndex

import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Int, Int32

from imagen_ft.cascade import Cascade, load_cascade
from imagen_ft.cascade.imported import as_imported
from imagen_ft.cascade.loading import mesh_of, with_dtypes
from imagen_ft.cascade.starts import check_noise
from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.evaluation.drawn import Drawn, Plan
from imagen_ft.evaluation.image_sets import ImageSet, check_spec, open_set
from input_pipeline import class_names
from input_pipeline.augment.resize import resize, square
from input_pipeline.source import Example, Source, Wrapper
from launch.errors import InputError
from launch.fields import Fields
from launch.files import json_digest
from launch.runtime.config import plain, reading
from launch.runtime.limits import BATCH, MOST, SEED, SIDE, check_numbers

# The default of sets that are drawn; papers mostly use 50,000.
NUM_IMAGES = 10_000
BALANCED, REAL = "balanced", "real"
_FIELDS = ("cascade", "num_images", "labels", "seed", "square", "low", "write")
_LIMITS = {"num_images": (1, MOST), "seed": SEED, "square": SIDE}


class Shrunk(Wrapper):
    """A source whose images a super-resolution stage can enlarge.

    Images of `low_size` stay as they are. Others are first resized to `size`, then each pixel is
    the mean of a block, as in training, but rounded to uint8. Both are pixels each way.
    """

    def __init__(self, source: Source, low_size: int, size: int, positions: Int[np.ndarray, " n"]):
        """Takes the images at `positions` of the source, in this order."""
        super().__init__(source)
        self._sizes, self._positions = (low_size, size), positions
        self.labels, self.domain = source.labels[positions], source.domain[positions]

    def __getitem__(self, i: SupportsIndex) -> Example:
        example = self._source[int(self._positions[int(i)])]
        low_size, size = self._sizes
        image = example["image"]
        if image.shape[:2] != (low_size, low_size):
            image = resize(square(image, size), low_size)
        return {**example, "image": image}

    def key(self, i: int) -> str:
        """The name of example i in the whole source."""
        return self._source.key(int(self._positions[i]))


class OneLoaded:
    """Loads cascades and keeps only the last: two may exceed the memory of a device."""

    def __init__(self) -> None:
        self._held: tuple[str, Cascade] | None = None

    def __call__(self, config: ml_collections.ConfigDict) -> Cascade:
        """The cascade of a config, see `load_cascade`."""
        name = json.dumps(plain(config), sort_keys=True)
        if self._held is None or self._held[0] != name:
            # Free the old weights before the new ones are loaded.
            self._held = None
            self._held = name, load_cascade(config, mesh_of(config), base=False)
        return self._held[1]


def check_sets(specs: Fields) -> None:
    """Checks `config.sets` without opening any; raises `InputError` for wrong names and fields."""
    if not specs:
        raise InputError("config.sets is empty; add a set, sets.NAME = dict(source=...)")
    for name, spec in specs.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise InputError(
                f"config.sets.{name}: the name must consist of letters, digits, _ and -, as it "
                "becomes part of a file name"
            )
        check = check_sampled if "cascade" in spec else check_spec
        check(f"config.sets.{name}", spec)


def open_sets(
    specs: Fields, mixed: bool, real: Source | None, folder: epath.Path
) -> list[ImageSet]:
    """Opens `config.sets`: those with a `cascade` by `open_sampled`, others by `open_set`.

    For the arguments and errors see these.
    """
    load = OneLoaded()
    return [
        open_sampled(name, spec, load, real, folder)
        if "cascade" in spec
        else open_set(name, f"config.sets.{name}", spec, mixed)
        for name, spec in specs.items()
    ]


def check_sampled(field: str, spec: Fields) -> None:
    """Checks the fields of a set that is drawn, see `open_sampled`, without loading anything.

    Raises `InputError` if one is wrong.
    """
    # 1. The fields of the set.
    if unknown := sorted(set(spec) - set(_FIELDS)):
        raise InputError(f"{field} has no field {unknown[0]!r}; use {', '.join(_FIELDS)}")
    check_numbers(spec, _LIMITS, field)
    if (labels := spec.get("labels", BALANCED)) not in (BALANCED, REAL):
        raise InputError(
            f"{field}.labels must be {BALANCED!r} (the same number of each class) or {REAL!r} "
            f"(drawn as those of config.reference.source), got {labels!r}"
        )
    # 2. The cascade, as far as shapes and settings go.
    config = spec["cascade"]
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"{field}.cascade must be a dict, a config as for imagen_ft.sample, got {config!r}"
        )
    with _named(field), reading(config):
        check_numbers(config, {"batch_size": BATCH}, "cascade")
        check_noise("cascade", config)
        stages, _ = make_stages(config, base=False), (config.text, config.class_names)
    # 3. Images to enlarge: needed if and only if the first stage does not start from noise.
    low, first = spec.get("low"), next(iter(stages.values()))
    if bool(low) != bool(first.denoiser.low_size):
        needed = (
            "set it to the images to enlarge" if not low else "leave the base out of cascade.stages"
        )
        raise InputError(
            f"{field}.low must be set if the first stage enlarges images, and only then, got "
            f"{'images' if low else 'none'}; {needed}"
        )
    if low:
        check_spec(f"{field}.low", low)


def open_sampled(
    name: str,
    spec: Fields,
    load: Callable[[ml_collections.ConfigDict], Cascade],
    real: Source | None,
    folder: epath.Path,
) -> ImageSet:
    """Opens a set that is drawn; nothing is drawn yet.

    `spec` has `cascade`, stages (runs or public weights) and how to draw, as a config of
    imagen_ft.sample has them. It may have `num_images`, 10,000 by default; `labels`, 'balanced' or
    'real'; `seed`, by default the cascade's; `square`, pixels each way after resizing; `write`, an
    npz for all images; and, for a cascade that starts with super-resolution, `low`, a set as for
    `open_set` of its low-resolution size or larger.

    `real` gives the labels where they are 'real', and the classes of a cascade that takes any text.
    Raises `InputError` if a field is wrong, or if weights or images are missing, damaged or do not
    fit.
    """
    field = f"config.sets.{name}"
    check_sampled(field, spec)
    with _named(field), reading(spec["cascade"]):
        config = as_imported(with_dtypes(spec["cascade"]))
        # 1. What to draw: the cascade's classes, or else those of the real images.
        prompts = class_names.resolve(config.class_names)
        if not prompts and real is None:
            raise InputError(
                "cascade.class_names must list what to draw, got none; add class names"
            )
        prompts = prompts or tuple(real.class_names if real else ())
        # 2. Labels, noise and images to enlarge.
        plan = _plan(field, spec, config, prompts, real)
        drawn = Drawn(functools.partial(load, config), plan, folder, name)
        # 3. Fail now, not after hours, if `write` names a file with other images.
        if path := spec.get("write"):
            drawn.is_written(epath.Path(path))
    return ImageSet(name, drawn, "none", "round", drawn)


def _plan(
    field: str,
    spec: Fields,
    config: ml_collections.ConfigDict,
    prompts: tuple[str, ...],
    real: Source | None,
) -> Plan:
    count, rule = spec.get("num_images", NUM_IMAGES), spec.get("labels", BALANCED)
    seed = spec.get("seed", config.get("seed", 0))
    fields = dict(prompts=prompts, seed=seed, size=spec.get("square", 0))
    # From noise: only labels matter. Otherwise the low-resolution images bring their labels.
    low = spec.get("low")
    if not low:
        return Plan(class_of_each(rule, count, len(prompts), real, seed), **fields)
    images = open_set("low", f"{field}.low", low, mixed=True)
    denoiser = next(iter(make_stages(config, base=False).values())).denoiser
    sizes = denoiser.low_size, denoiser.size
    source, digest = enlarged(images, *sizes, prompts, rule, count, seed)
    return Plan(source.labels, low=source, low_digest=digest, **fields)


def enlarged(
    images: ImageSet,
    low_size: int,
    size: int,
    prompts: tuple[str, ...],
    rule: str,
    count: int,
    seed: int,
) -> tuple[Shrunk, str]:
    """Real images that a stage enlarges, and a checksum of all that decides about them.

    `low_size` and `size`, in pixels each way, are the stage's input and output; `rule` is
    'balanced' or 'real'. Raises `InputError` for other classes than `prompts`, or fewer images than
    `count`.
    """
    if len(images.source.class_names) != len(prompts):
        raise InputError(
            f"low must have the {len(prompts)} classes of cascade.class_names, got "
            f"{len(images.source.class_names)}; choose another set"
        )
    if len(images.source) < count:
        raise InputError(
            f"num_images must be at most the {len(images.source)} images of low, got {count}; set "
            "it lower"
        )
    positions = _positions(rule, images.source.labels, count, seed)
    source = Shrunk(images.source, low_size, size, positions)
    return source, json_digest([images.digest(), positions.tolist()])


def class_of_each(
    rule: str, count: int, num_classes: int, real: Source | None, seed: int
) -> Int32[np.ndarray, " n"]:
    """The class of each image; the first ones do not depend on `count`.

    With rule 'real' they are drawn from the labels of the real images, with 'balanced' they take
    turns. Raises `InputError` if 'real' finds no real images with `num_classes` classes.
    """
    if rule == BALANCED:
        # In turn, so that any first part of the images is balanced too.
        return (np.arange(count) % num_classes).astype(np.int32)
    if real is None or len(real.class_names) != num_classes:
        got = "none" if real is None else f"{len(real.class_names)} classes"
        raise InputError(
            f"labels='real' needs config.reference.source with the cascade's {num_classes} "
            f"classes, got {got}; use 'balanced'"
        )
    return real.labels[np.random.default_rng(seed).integers(0, len(real), count)].astype(np.int32)


def _positions(
    rule: str, labels: Int32[np.ndarray, " n"], count: int, seed: int
) -> Int[np.ndarray, " m"]:
    # Sampled without replacement.
    order = np.random.default_rng(seed).permutation(len(labels))
    if rule == BALANCED:
        # Sort by rank within the class, then by class: each class's first image, then each second.
        shuffled = labels[order]
        rank = np.empty(len(labels), np.int64)  # [n], in shuffled order
        for label in np.unique(labels):
            members = np.flatnonzero(shuffled == label)
            rank[members] = np.arange(len(members))
        order = order[np.lexsort((shuffled, rank))]
    return order[:count]


@contextlib.contextmanager
def _named(field: str) -> Iterator[None]:
    """Prefixes messages of `InputError` with the field of the set."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(field) else f"{field}: {text}") from None
