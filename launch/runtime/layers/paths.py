"""Choosing parameters by patterns in their paths."""

import re
from typing import Any

import jax

from launch.errors import InputError


def matching(field: str, patterns: Any, params: Any) -> Any:
    """A tree of booleans: which parameters have a path that one of the patterns is found in.

    `patterns` is a list of regular expressions, searched for in paths such as
    `down_0/resnet_0/conv1/kernel`; `field` names it in messages. Raises `InputError` if it is not a
    list, or a pattern is invalid or matches nothing.
    """
    # A string is a sequence too: each of its letters would match nearly everything.
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
                f"{field}: {pattern!r} must be a valid regular expression ({error})"
            ) from None
        if not any(hits):
            raise InputError(
                f"{field}: {pattern!r} matches no parameter; their paths are like {names[0]!r}"
            )
        matched = [before or hit for before, hit in zip(matched, hits, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, matched)
