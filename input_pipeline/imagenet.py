"""What ImageNet's 1,000 classes are called on disk, and how its images are read."""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from launch.errors import InputError

_WORDNET_ID = re.compile(r"n\d{8}")


def wordnet_ids() -> tuple[str, ...]:
    """Names of ImageNet's 1,000 folders, in the order of the labels, which is the sorted one."""
    text = (resources.files("input_pipeline") / "data" / "imagenet_wnids.txt").read_text()
    return tuple(text.splitlines())


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
