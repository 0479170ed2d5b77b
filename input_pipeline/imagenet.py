"""What ImageNet's 1,000 classes are called on disk, and how its images are read."""

import collections
import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from launch.errors import InputError

_OTHER_SPELLINGS = 10
_WORDNET_ID = re.compile(r"n\d{8}")


def wordnet_ids() -> tuple[str, ...]:
    """Names of ImageNet's 1,000 folders, in the order of the labels, which is the sorted one."""
    return _lines("imagenet_wnids.txt")


def lemmas() -> tuple[str, ...]:
    """WordNet's words for each of the classes, in the same order; 'crane' is there twice."""
    return _lines("imagenet_lemmas.txt")


def ids_of_lemmas() -> dict[str, str]:
    """Words -> WordNet id, of the classes that have their words alone."""
    times = collections.Counter(lemmas())
    pairs = zip(lemmas(), wordnet_ids(), strict=True)
    return {words: wordnet_id for words, wordnet_id in pairs if times[words] == 1}


def _lines(file: str) -> tuple[str, ...]:
    text = (resources.files("input_pipeline") / "data" / file).read_text()
    return tuple(text.splitlines())


def canonical_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """WordNet ids where a set has ImageNet's 1,000 classes by what WordNet calls them.

    The Hub's imagenet-1k does ("tench, Tinca tinca"), in the same order. Spelling may differ in a
    few places; order may not.

    Args:
        class_names: of a set.

    Returns:
        The ids, or the names as they are.
    """
    names = lemmas()
    if len(class_names) != len(names):
        return tuple(class_names)
    other = [pair for pair in zip(class_names, names, strict=True) if pair[0] != pair[1]]
    moved = {name for name, _ in other} & set(names)
    return wordnet_ids() if len(other) <= _OTHER_SPELLINGS and not moved else tuple(class_names)


def in_words(class_name: str) -> str:
    """A class as reports show it: "n01440764 (tench)"; what is no id of ImageNet stays as it is."""
    word = _words().get(class_name)
    return f"{class_name} ({word})" if word else class_name


@functools.cache
def _words() -> dict[str, str]:
    """The first of WordNet's words for each id."""
    words = (lemma.partition(",")[0] for lemma in lemmas())
    return dict(zip(wordnet_ids(), words, strict=True))


def upright(chosen: Any, class_names: Sequence[str]) -> bool:
    """Whether images are turned as their EXIF orientation says.

    Training and evaluation on ImageNet ignore it, everywhere; where cameras took the pictures as
    somebody held them, what is up would be lost.

    Args:
        chosen: the option of a source, True or False; None looks at the names.
        class_names: of the source; ImageNet's, or some of them, are WordNet ids.

    Raises:
        InputError: another option.
    """
    if chosen is not None and type(chosen) is not bool:
        raise InputError(f"upright must be True or False, got {chosen!r}; choose one")
    return not all(map(_WORDNET_ID.fullmatch, class_names)) if chosen is None else chosen
