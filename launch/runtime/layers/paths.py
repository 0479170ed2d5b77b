"""Parameters by the paths that patterns are found in."""

import re
from typing import Any

import jax

from launch.errors import InputError


def matching(field: str, patterns: Any, params: Any) -> Any:
    """Which parameters' paths a pattern is found in: a tree of booleans.

    Args:
        field: that has the patterns, for messages.
        patterns: a list of regular expressions, searched for in paths such as
            `down_0/resnet_0/conv1/kernel`.
        params: the parameters or their shapes.

    Raises:
        InputError: there is no list, or a pattern is no regular expression or is found nowhere.
    """
    # The letters of a text alone would be patterns, found nearly everywhere.
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
        raise InputError(
            f"{field} must be a list of patterns, got {patterns!r}; put it in brackets"
        )
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    matched = [False] * len(names)
    for pattern in patterns:
        try:
            hits = [re.search(pattern, name) is not None for name in names]
        except re.error as error:
            raise InputError(
                f"{field}: {pattern!r} must be a regular expression ({error})"
            ) from None
        if not any(hits):
            raise InputError(
                f"{field}: {pattern!r} matches no parameter; their paths are like {names[0]!r}"
            )
        matched = [before or hit for before, hit in zip(matched, hits, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, matched)
