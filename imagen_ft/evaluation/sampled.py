"""The sets that are measured: those that are there, and those that a cascade draws on the way."""

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

NUM_IMAGES = 10_000
BALANCED, REAL = "balanced", "real"
_FIELDS = ("cascade", "num_images", "labels", "seed", "square", "low", "write")
_LIMITS = {"num_images": (1, MOST), "seed": SEED, "square": SIDE}


class Shrunk(Wrapper):
    """A source whose images a stage can enlarge: its low-resolution size, or shrunk to it.

    Larger ones are brought to the size of the stage's images first, and each pixel is the mean of a
    block of them, as in training, but rounded.
    """

    def __init__(self, source: Source, low_size: int, size: int, positions: Int[np.ndarray, " n"]):
        """Makes the source.

        Args:
            source: images of any size.
            low_size: pixels each way, which the stage begins with.
            size: pixels each way, of its images.
            positions: which of the images, in this order.
        """
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
    """Loads cascades; only the last one is held, for two can be more than a device's memory."""

    def __init__(self) -> None:
        self._held: tuple[str, Cascade] | None = None

    def __call__(self, config: ml_collections.ConfigDict) -> Cascade:
        """The cascade of a config, see `load_cascade`."""
        name = json.dumps(plain(config), sort_keys=True)
        if self._held is None or self._held[0] != name:
            self._held = None
            self._held = name, load_cascade(config, mesh_of(config), base=False)
        return self._held[1]


def check_sets(specs: Fields) -> None:
    """Looks at `config.sets` without opening any.

    Raises:
        InputError: there is none, or a name or a field is wrong.
    """
    if not specs:
        raise InputError("config.sets is empty; name a set, sets.NAME = dict(source=...)")
    for name, spec in specs.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise InputError(
                f"config.sets.{name}: the name must be letters, digits, _ and -, as it "
                "becomes part of a file name"
            )
        check = check_sampled if "cascade" in spec else check_spec
        check(f"config.sets.{name}", spec)


def open_sets(
    specs: Fields, mixed: bool, real: Source | None, folder: epath.Path
) -> list[ImageSet]:
    """Opens `config.sets`: those with a `cascade` by `open_sampled`, others by `open_set`.

    Args:
        specs: by name.
        mixed: see `open_set`.
        real: see `open_sampled`.
        folder: see `open_sampled`.

    Raises:
        InputError: as these do.
    """
    load = OneLoaded()
    return [
        open_sampled(name, spec, load, real, folder)
        if "cascade" in spec
        else open_set(name, f"config.sets.{name}", spec, mixed)
        for name, spec in specs.items()
    ]


def check_sampled(field: str, spec: Fields) -> None:
    """Looks at the fields of a set that is drawn; nothing is loaded.

    Args:
        field: where it stands in the config.
        spec: see `open_sampled`.

    Raises:
        InputError: a field is wrong.
    """
    if unknown := sorted(set(spec) - set(_FIELDS)):
        raise InputError(f"{field} has no field {unknown[0]!r}; use {', '.join(_FIELDS)}")
    check_numbers(spec, _LIMITS, field)
    if (labels := spec.get("labels", BALANCED)) not in (BALANCED, REAL):
        raise InputError(
            f"{field}.labels must be {BALANCED!r} (as many of each class) or {REAL!r} (drawn as "
            f"those of config.reference.source), got {labels!r}; name one"
        )
    config = spec["cascade"]
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"{field}.cascade must be what imagen_ft.sample reads, got {config!r}; give a dict"
        )
    with _named(field), reading(config):
        check_numbers(config, {"batch_size": BATCH}, "cascade")
        check_noise("cascade", config)
        stages, _ = make_stages(config, base=False), (config.text, config.class_names)
    low, first = spec.get("low"), next(iter(stages.values()))
    if bool(low) != bool(first.denoiser.low_size):
        needed = "name images to enlarge" if not low else "leave the base out of cascade.stages"
        raise InputError(
            f"{field}.low must be there where the first stage enlarges images, and only there, got "
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

    Args:
        name: of the set, in `config.sets`.
        spec: `cascade`, stages (of runs or public weights) and how to draw, as a config of
            imagen_ft.sample; `num_images`, 10,000 if it is not there; `labels`, 'balanced' or
            'real'; `seed`, else the cascade's; `square`, pixels each way that images are resized
            to; of a cascade that begins with super-resolution `low`, a set as for `open_set`, of
            its low-resolution size or larger; `write`, an npz that all images are written to.
        load: gives the cascade of a config.
        real: the real images, for 'real' labels, and for the classes of a cascade that draws any
            text.
        folder: where images are held while they are needed.

    Raises:
        InputError: a field is wrong; weights or images are missing, damaged, or do not fit.
    """
    field = f"config.sets.{name}"
    check_sampled(field, spec)
    with _named(field), reading(spec["cascade"]):
        config = as_imported(with_dtypes(spec["cascade"]))
        prompts = class_names.resolve(config.class_names)
        if not prompts and real is None:
            raise InputError("cascade.class_names must say what to draw, got none; name classes")
        prompts = prompts or tuple(real.class_names if real else ())
        plan = _plan(field, spec, config, prompts, real)
        drawn = Drawn(functools.partial(load, config), plan, folder, name)
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
    """Real images that a stage enlarges, and a digest of what decides about them.

    Args:
        images: of the low-resolution size or larger.
        low_size: pixels each way, which the stage begins with.
        size: pixels each way, of its images.
        prompts: of each class.
        rule: 'balanced' or 'real'.
        count: how many.
        seed: which.

    Raises:
        InputError: they are of other classes, or fewer.
    """
    if len(images.source.class_names) != len(prompts):
        raise InputError(
            f"low must have the {len(prompts)} classes of cascade.class_names, got "
            f"{len(images.source.class_names)}; name another set"
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
    """The class of each image; the first ones do not depend on how many there are.

    Args:
        rule: 'balanced' or 'real'.
        count: how many images.
        num_classes: of the cascade.
        real: for 'real': labels are drawn from its own.
        seed: of the drawing.

    Raises:
        InputError: it needs real images of as many classes.
    """
    if rule == BALANCED:
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
    """Which images are enlarged: drawn without returning, of all or as many of each class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if rule == BALANCED:
        shuffled = labels[order]
        rank = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            members = np.flatnonzero(shuffled == label)
            rank[members] = np.arange(len(members))
        order = order[np.lexsort((shuffled, rank))]
    return order[:count]


@contextlib.contextmanager
def _named(field: str) -> Iterator[None]:
    """A block in which messages of wrong input begin with the field of the set."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(field) else f"{field}: {text}") from None
