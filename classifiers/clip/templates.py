"""Sentences about a class, with {} for its name: CLIP's own sets, or a list of one's own."""

import functools
import json
from collections.abc import Sequence
from importlib import resources

from launch.errors import InputError

# Named by their size: the plain sentence; the seven that OpenAI's notebook on prompts found to be
# enough; all eighty of it.
SETS = ("1", "7", "80")


def load(named: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of one of `SETS`, or a list of one's own.

    Raises:
        InputError: there is no such set, the list is empty, or a template has not just one {}.
    """
    if isinstance(named, str):
        if named not in SETS:
            raise InputError(
                f"templates must be {', '.join(SETS)} or a list of sentences with {{}}, got "
                f"{named!r}"
            )
        return _sets()[named]
    if not named:
        raise InputError("templates must be a list of at least one sentence, got none; add one")
    for template in named:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(
                f"templates must hold {{}} once each, for the name of the class, got {template!r}; "
                "add it"
            )
    return tuple(named)


def fill(template: str, class_name: str) -> str:
    """A sentence about a class."""
    # Not str.format: names may hold braces themselves.
    return template.replace("{}", class_name)


@functools.cache
def _sets() -> dict[str, tuple[str, ...]]:
    text = (resources.files("classifiers") / "data" / "clip_templates.json").read_text()
    return {name: tuple(templates) for name, templates in json.loads(text).items()}
