"""Twenty steps give the same losses however devices and parts of a batch are arranged."""

import json

import pytest

from tests.support.devices import run_on_eight, splits

# Mesh (data, fsdp, tensor) and the parts that a batch is taken in.
EVERY = [
    [split, parts]
    for devices in (1, 2, 4, 8)
    for split in splits(devices)
    for parts in (1, 2)
    if 16 % (split[0] * split[1] * parts) == 0
]


@pytest.mark.slow  # tests/classifiers/models has a fast one of the same kind.
def test_gradients_where_every_axis_is_split():
    """XLA's partitioner, left alone, returns some of them wrong by their own size."""
    errors = run_on_eight("tests.imagen_ft.training.gradient_devices")
    assert set(errors) == {"unet", "efficient_unet", "latent_unet", "decoded"}
    assert max(errors.values()) < 1e-3


@pytest.mark.slow
def test_losses_on_every_mesh():
    assert len(EVERY) == 40
    runs = run_on_eight("tests.imagen_ft.training.training_devices", json.dumps(EVERY))["found"]
    alone, others = runs[0], runs[1:]
    assert len(set(alone["losses"])) == 20 and alone["held"] == 1
    for (split, _), run in zip(EVERY[1:], others, strict=True):
        for field in ("losses", "gradient_norms"):
            assert run[field] == pytest.approx(alone[field], rel=1e-5), (split, field)
        ways = split[1] * split[2]
        # Short vectors are whole everywhere; nearly all else is split.
        assert 1 / ways <= run["held"] < 1 / ways + 0.2, split
