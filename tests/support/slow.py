"""Cases of a test of which a few run always, and all others with the slow tests."""

import pytest


def first_fast(cases, fast=1):
    """`cases` for `pytest.mark.parametrize`, those behind the first `fast` ones marked as slow."""
    return [case if i < fast else _slow(case) for i, case in enumerate(cases)]


def only_fast(names, fast):
    """`names`, those that are not among `fast` marked as slow."""
    return [name if name in fast else _slow(name) for name in names]


def _slow(case):
    if hasattr(case, "marks"):  # made by pytest.param
        return pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.slow])
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
