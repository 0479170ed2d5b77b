"""Images with texts: what a batch of contrastive training holds, and how it is read."""

import dataclasses
import functools
import math
from typing import Any, SupportsIndex

import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from classifiers import from_config
from classifiers.clip import templates
from classifiers.clip.tokenizer import ClipTokenizer
from input_pipeline import sources
from input_pipeline.augment.policy import Augment, Transform
from input_pipeline.batches import loader
from input_pipeline.batches.mixture import Union, check_weight
from input_pipeline.batches.workers import count_workers
from input_pipeline.imagenet import in_words
from input_pipeline.source import Example, Source, Wrapper
from input_pipeline.sources.parquet import NO_CLASSES
from launch.errors import InputError
from launch.runtime.devices.mesh import local_rows
from launch.runtime.types import Reader

# All images count the same; or of the images of one caption, one is drawn at every step.
UNION, ONE_OF_EACH = "union", "one_of_each"
DRAWS = (UNION, ONE_OF_EACH)
# How many captions are compared before several sources count as images of the same captions.
_COMPARED = 16


class Captioned(Wrapper):
    """Images with a 'caption' or, where they have none, a 'class_name'; all are of one class."""

    def __init__(self, source: Source):
        super().__init__(source)
        # One class for all, as sources of captions have none and a union needs the same classes.
        self._names, self.class_names = source.class_names, NO_CLASSES
        self._labels, self.labels = source.labels, np.zeros_like(source.labels)

    def __getitem__(self, i: SupportsIndex) -> Example:
        found = self._source[i]
        if "caption" in found:
            return found
        return {**found, "class_name": in_words(self._names[int(self._labels[i])])}


class Numbered(Wrapper):
    """A source of the numbers of examples; `Draw` reads the image once it has drawn a source."""

    def __getitem__(self, i: SupportsIndex) -> Example:
        return {"number": int(i)}


@dataclasses.dataclass(frozen=True)
class Draw:
    """Reads, augments and tokenizes an example, with the randomness of its place in the run."""

    choices: tuple[Source, ...]  # one is drawn for each example
    # Templates for class names; one is drawn where an image has no caption.
    sentences: tuple[str, ...]
    tokenizer: ClipTokenizer
    augment: Augment | None  # of images, if any
    transform: Transform | None  # of images, where there is no augmentation

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """'image' uint8 [h, w, c], 'tokens' int32 [length], 'domain' of an example's 'number'."""
        # The order of draws is part of a run: changing it changes what a resumed run sees.
        source = self.choices[int(rng.integers(len(self.choices)))]
        found = source[example["number"]]
        if "caption" in found:
            caption = found["caption"]
        else:
            sentence = self.sentences[int(rng.integers(len(self.sentences)))]
            caption = templates.fill(sentence, found["class_name"])
        image = _seen(found, rng, self.augment, self.transform)
        # Captions of the web are often too long: a warning each would flood the log.
        tokens = self.tokenizer([caption], warn=False)[0]
        return {"image": image, "tokens": tokens, "domain": found["domain"]}


def open_pairs(config: ml_collections.ConfigDict) -> tuple[dict[str, Captioned], Source]:
    """The sources of `config.train_sources` by name, and one of all examples of an epoch.

    Raises:
        InputError: one is missing or damaged, `config.draw` is unknown, or it is 'one_of_each' and
            the captions of the sources differ.
    """
    draw = config.get("draw", UNION)
    if draw not in DRAWS:
        raise InputError(f"config.draw must be one of {', '.join(DRAWS)}, got {draw!r}")
    opened = {name: Captioned(sources.load(spec)) for name, spec in config.train_sources.items()}
    if draw == UNION:
        union: Source = Union(list(opened.values()))
        if (weight := config.get("synthetic_weight")) is not None:
            check_weight(union.domain, weight)
        return opened, union
    # Any source has the numbers of all examples: image n is of caption n in each.
    _check_same_captions(opened)
    if config.get("synthetic_weight") is not None:
        raise InputError(
            f"config.synthetic_weight={config.synthetic_weight}: with draw={ONE_OF_EACH!r} each "
            "source is drawn equally often; leave it out"
        )
    return opened, next(iter(opened.values()))


def check_images(
    config: ml_collections.ConfigDict, opened: dict[str, Captioned], shape: tuple[int, int, int]
) -> None:
    """Raises InputError unless the first image of each source has the `shape` [h, w, c]."""
    augment, transform = from_config.make_augment(config), from_config.make_transform(config)
    for name, source in opened.items():
        found = _seen(source[0], np.random.default_rng(0), augment, transform).shape
        if found != shape:
            ours, theirs = ("x".join(map(str, each)) for each in (shape, found))
            raise InputError(
                f"config.train_sources.{name} must have images of {ours}, as in config.evaluation "
                f"and config.channels, got {theirs}; set config.augment.size, or use other images"
            )


def make_reader(
    config: ml_collections.ConfigDict,
    opened: dict[str, Captioned],
    whole: Source,
    tokenizer: ClipTokenizer,
    shape: tuple[int, int, int],
    mesh: Mesh,
) -> Reader:
    """A reader of the run's batches.

    `whole` is the source of all examples of an epoch, see `open_pairs`; `shape` is that of an
    image, [h, w, c].
    """
    rows = local_rows(mesh, config.batch_size)
    one_of_each = config.get("draw", UNION) == ONE_OF_EACH
    draw = Draw(
        tuple(opened.values()) if one_of_each else (whole,),
        templates.load(config.get("templates", "1")),
        tokenizer,
        from_config.make_augment(config),
        from_config.make_transform(config),
    )
    # The loader draws numbers; `draw` takes the place of an augmentation, which gets an rng.
    batches = loader.batches(
        Numbered(whole),
        config.batch_size,
        config.seed,
        augment=draw,
        rows=rows,
        synthetic_weight=config.get("synthetic_weight"),
    )
    workers = count_workers(config.get("loader_workers", 0), len(rows) * math.prod(shape))
    return functools.partial(loader.iterate, batches, workers=workers)


def _seen(
    example: Example, rng: np.random.Generator, augment: Augment | None, transform: Transform | None
) -> UInt8[np.ndarray, "h w c"]:
    if augment:
        example = augment(example, rng)
    elif transform:
        example = transform(example)
    image: np.ndarray = example["image"]
    return image


def _check_same_captions(opened: dict[str, Captioned]) -> None:
    """Compares the captions of `_COMPARED` images, evenly spread, and the lengths."""
    (first, source), *others = opened.items()
    if not others:
        raise InputError(
            f"config.train_sources must be at least two with draw={ONE_OF_EACH!r}, got {first}; "
            "add another, or leave draw out"
        )
    for name, other in others:
        if len(other) != len(source):
            raise InputError(
                f"config.train_sources.{name} must have an image for each of the {len(source):,} "
                f"of {first} with draw={ONE_OF_EACH!r}, got {len(other):,}; generate them from its "
                "captions"
            )
        for i in np.linspace(0, len(source) - 1, min(_COMPARED, len(source))).astype(int).tolist():
            texts = [_caption_of(one, i) for one in (source, other)]
            if texts[0] != texts[1]:
                raise InputError(
                    f"config.train_sources.{name}: image {other.key(i)} must have the caption "
                    f"{texts[0]!r}, as in {first}, got {texts[1]!r}; generate it from that caption"
                )


def _caption_of(source: Source, i: int) -> Any:
    example = source[i]
    return example.get("caption", example.get("class_name"))
