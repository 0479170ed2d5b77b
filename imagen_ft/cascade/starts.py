"""Real guidance: a base starts from noised real images instead of noise (He et al. 2023).

They are noised to the first step that is taken (section 3.2 and appendix C.3), so what is drawn
keeps all that the remaining steps do not decide.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Int, UInt8

from imagen_ft.diffusion.from_config import make_stages
from imagen_ft.diffusion.stage import Stage
from input_pipeline import class_names, sources
from input_pipeline.augment.resize import square
from input_pipeline.imagenet import wordnet_ids
from input_pipeline.source import Source, check_labels
from input_pipeline.sources.lacking import lacking_in_source
from input_pipeline.synthetic.plan import splitmix64
from launch.errors import InputError
from launch.files import in_parallel, json_digest
from launch.runtime.optional_fields import Defaults, below

_FIELD = "config.start"


@dataclasses.dataclass(frozen=True, eq=False)
class RealImages:
    """Images of a source, one per image of a request; a batch is read when it is drawn.

    Looks like a uint8 array [n, size, size, channels] that is sliced along its first axis.
    """

    source: Source  # images of any size
    positions: Int[np.ndarray, " n"]  # in the source
    size: int  # pixels each way that they are resized to
    channels: int

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of an array with all of them."""
        return (len(self.positions), self.size, self.size, self.channels)

    def __getitem__(self, rows: slice) -> UInt8[np.ndarray, "n size size c"]:
        return np.stack(in_parallel(self._read, self.positions[rows].tolist()))

    def keys(self) -> list[str]:
        """The name of each in its source."""
        return [self.source.key(position) for position in self.positions.tolist()]

    def _read(self, position: int) -> UInt8[np.ndarray, "size size c"]:
        image = self.source[position]["image"]
        if image.shape[-1] != self.channels:
            raise InputError(
                f"{_FIELD}: {self.source.key(position)} must have {self.channels} channels, as the "
                f"base draws, got {image.shape[-1]}; remove that image, or use other images"
            )
        return square(image, self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Starts:
    """The images of `config.start`."""

    source: Source
    size: int  # pixels each way of the base's images
    channels: int  # of the base's images
    # All names of each class of the cascade; () if it draws any text.
    closed: tuple[tuple[str, ...], ...]

    @classmethod
    def open(cls, config: ml_collections.ConfigDict) -> "Starts | None":
        """Opens the images of `config.start`; None where the config starts from noise."""
        if not _is_given(config):
            return None
        base = _base(config).denoiser
        try:
            source = sources.load(config.start)
            check_labels(source)
        except InputError as error:
            raise InputError(f"{_FIELD}: {error}") from None
        starts = cls(source, base.image_size, base.image_channels, _called(config.class_names))
        # Reads one image: wrong channels fail now, not in the first batch.
        _ = starts._images(np.arange(1))[:1]
        return starts

    def digest(self) -> str:
        """Checksum of the images and their order."""
        keys = [self.source.key(i) for i in range(len(self.source))]
        return json_digest([self.source.digest(), keys])

    def check_classes(self, names: Sequence[str], counts: Sequence[int]) -> None:
        """Raises InputError unless every class that is drawn (`counts`) has real images."""
        numbers = self._of_names(names)
        for name, count, number in zip(names, counts, numbers.tolist(), strict=True):
            if count and (number < 0 or not self._class_sizes[number]):
                raise InputError(
                    f"{_FIELD} must have images of every class that is sampled, got none of "
                    f"{name!r}; add some, or leave the class out"
                )

    def of_classes(
        self,
        names: Sequence[str],
        labels: Int[np.ndarray, " n"],
        indices: Int[np.ndarray, " n"],
        seed: int,
    ) -> RealImages:
        """A real image per label, drawn by the seed and the image's index in the set alone."""
        return self._images(self._drawn(self._of_names(names)[labels], indices, seed))

    def of_prompts(self, prompts: Sequence[str], seed: int) -> RealImages:
        """A real image for each prompt: of its class if it names one, or else the next in order."""
        names = list(dict.fromkeys(prompts))
        # Where any text will do, a prompt may well name no class.
        if self.closed:
            self.check_classes(names, [1] * len(names))
        numbers = dict(zip(names, self._of_names(names).tolist(), strict=True))
        # -1 is a prompt that names no class.
        labels, indices = np.array([numbers[prompt] for prompt in prompts]), np.arange(len(prompts))
        is_class = (labels >= 0) & (self._class_sizes[labels] > 0)
        positions = indices % len(self.source)
        positions[is_class] = self._drawn(labels[is_class], indices[is_class], seed)
        return self._images(positions)

    def _images(self, positions: Int[np.ndarray, " n"]) -> RealImages:
        return RealImages(self.source, positions, self.size, self.channels)

    def _drawn(
        self, labels: Int[np.ndarray, " n"], indices: Int[np.ndarray, " n"], seed: int
    ) -> Int[np.ndarray, " n"]:
        """Positions of images of the source's classes."""
        sizes = self._class_sizes
        order = np.argsort(self.source.labels, kind="stable")
        # Indices and seeds have 32 bits each: no two pairs share a number. Modulo a class size the
        # 64 bits of the hash are as good as uniform.
        numbers = np.uint64(seed << 32) + indices.astype(np.uint64)
        draws = (splitmix64(numbers) % sizes[labels].astype(np.uint64)).astype(np.int64)
        # `order` lists the source class by class: the class's first place, plus the draw.
        return order[(np.cumsum(sizes) - sizes)[labels] + draws]

    @functools.cached_property
    def _class_sizes(self) -> Int[np.ndarray, " classes"]:
        return np.bincount(self.source.labels, minlength=len(self.source.class_names))

    def _of_names(self, names: Sequence[str]) -> Int[np.ndarray, " names"]:
        """The classes' labels in the source, or -1, looked up by any of their names."""
        numbers = {name: label for label, name in enumerate(self.source.class_names)}
        others = {name: called for called in reversed(self.closed) for name in called}
        called = [(name, *others.get(name, ())) for name in names]
        labels = [next((numbers[x] for x in some if x in numbers), -1) for some in called]
        return np.array(labels, np.int64)


def lacking_in_start(config: ml_collections.ConfigDict) -> Defaults:
    """Fields of real guidance that a config does not set."""
    source = lacking_in_source("start", config.get("start") or {})
    return {**below("", config, {"skip_steps": 0}), **source}


def check_start(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for a wrong `start` or `skip_steps`, or one alone; opens no image."""
    skip_steps: Any = config.get("skip_steps") or 0
    if type(skip_steps) is not int or skip_steps < 0:
        raise InputError(
            f"config.skip_steps must be a whole number of steps, got {skip_steps!r}; 0 skips none"
        )
    if not _is_given(config):
        if skip_steps:
            raise InputError(
                f"config.skip_steps must be 0 if images start from noise, got {skip_steps}; set "
                "config.start to the real images to start from, or leave it out"
            )
        return
    steps = _base(config).sampler.num_steps
    if not 1 <= skip_steps < steps:
        raise InputError(
            f"config.skip_steps must be at least 1 and less than the {steps} steps of the base if "
            f"config.start names real images, got {skip_steps}; the more are skipped, the closer "
            "to those images"
        )


def check_noise(field: str, config: ml_collections.ConfigDict) -> None:
    """Raises InputError for real guidance where images must start from noise."""
    for name in ("start", "skip_steps"):
        if value := config.get(name):
            raise InputError(
                f"{field}.{name} must be left out, got {value!r}: images that are measured here "
                "start from noise; generate a set with imagen_ft.generate, and measure that"
            )


def _base(config: ml_collections.ConfigDict) -> Stage:
    return next(iter(make_stages(config).values()))


def _is_given(config: ml_collections.ConfigDict) -> bool:
    start = config.get("start")
    if start and not isinstance(start, ml_collections.ConfigDict):
        raise InputError(
            f"{_FIELD} must be a source for input_pipeline.sources.load, got {start!r}; give a dict"
        )
    return bool(start)


def _called(named: str | Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """All names of each class of a cascade: its prompt, and in ImageNet its WordNet id."""
    names = class_names.resolve(named)
    if named == class_names.IMAGENET:
        return tuple(zip(names, wordnet_ids(), strict=True))
    return tuple((name,) for name in names)
