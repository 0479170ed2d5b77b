"""Classifiers on a mesh whose every axis is split."""

import pytest

from tests.support.devices import run_on_eight


@pytest.mark.slow
def test_gradients_where_every_axis_is_split():
    found = run_on_eight("tests.classifiers.models.gradient_devices")
    assert set(found) == {"class token", "mean", "resnet", "resnet, as products"}
    assert max(found.values()) < 1e-3
