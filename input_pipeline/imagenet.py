"""How ImageNet's 1,000 classes are named on disk, and whether its images are turned upright."""

import collections
import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from launch.errors import InputError

# Class names that may be spelled differently before a set no longer counts as ImageNet.
_OTHER_SPELLINGS = 10
_WORDNET_ID = re.compile(r"n\d{8}")


def wordnet_ids() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 folders; sorted, which is also the order of the labels."""
    return _lines("imagenet_wnids.txt")


def lemmas() -> tuple[str, ...]:
    """WordNet's words for each class, in the same order; 'crane' is there twice."""
    return _lines("imagenet_lemmas.txt")


def ids_of_lemmas() -> dict[str, str]:
    """WordNet id by words; the classes that share their words ('crane') are left out."""
    times = collections.Counter(lemmas())
    pairs = zip(lemmas(), wordnet_ids(), strict=True)
    return {words: wordnet_id for words, wordnet_id in pairs if times[words] == 1}


def _lines(file: str) -> tuple[str, ...]:
    text = (resources.files("input_pipeline") / "data" / file).read_text()
    return tuple(text.splitlines())


def canonical_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """The WordNet ids if these are ImageNet's 1,000 classes in words, else the names unchanged."""
    # The Hub's imagenet-1k has WordNet's words ("tench, Tinca tinca"), in the order of the ids. A
    # few may be spelled differently, but a name at another's place means another order.
    names = lemmas()
    if len(class_names) != len(names):
        return tuple(class_names)
    other = [pair for pair in zip(class_names, names, strict=True) if pair[0] != pair[1]]
    moved = {name for name, _ in other} & set(names)
    return wordnet_ids() if len(other) <= _OTHER_SPELLINGS and not moved else tuple(class_names)


def in_words(class_name: str) -> str:
    """A class as reports show it, "n01440764 (tench)"; unchanged if it is not an ImageNet id."""
    word = _words().get(class_name)
    return f"{class_name} ({word})" if word else class_name


@functools.cache
def _words() -> dict[str, str]:
    # The first of the words is the most common one.
    words = (lemma.partition(",")[0] for lemma in lemmas())
    return dict(zip(wordnet_ids(), words, strict=True))


def upright(chosen: Any, class_names: Sequence[str]) -> bool:
    """Whether to turn images as their EXIF orientation says; None decides by the class names."""
    if chosen is not None and type(chosen) is not bool:
        raise InputError(f"upright must be True or False, got {chosen!r}")
    # Training and evaluation on ImageNet ignore the orientation everywhere, and published numbers
    # were measured so. Photographs of phones are only upright with it.
    return not all(map(_WORDNET_ID.fullmatch, class_names)) if chosen is None else chosen
