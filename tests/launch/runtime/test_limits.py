import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from launch.errors import InputError
from launch.runtime.limits import building, make_module


@dataclasses.dataclass
class Model:
    """Fields of every kind that the models have."""

    width: Any = 4
    layers_per_block: int | Sequence[int] = (1, 2)
    hidden: int = 0
    mlp_dim: int | None = None
    rate: float = 0.0
    scale: float | None = None
    remat: bool | Sequence[bool] = False
    attention: Sequence[bool] = (True,)
    pool: str = "mean"
    dtype: Any = "float32"


def test_fields_that_a_network_can_be_made_of():
    assert make_module(Model, {}, "unet") == Model()
    fields = dict(layers_per_block=1000, hidden=2**17, mlp_dim=1, rate=1, remat=(True,))
    fields["scale"] = np.float64(0.5)
    assert make_module(Model, fields, "unet") == Model(**fields)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("layers_per_block", 0, " must be at least 1, got 0"),
        ("layers_per_block", (1, -1), " must be at least 1, got -1"),
        ("layers_per_block", (1, 1001), " must be at most 1000, got 1001"),
        ("layers_per_block", (), r" must hold at least one value, got \(\)"),
        ("layers_per_block", (1, 2.0), " must be an integer, got 2.0"),
        ("layers_per_block", None, " must be an integer, got None"),
        ("hidden", -1, " must be at least 0, got -1"),
        ("hidden", 2**17 + 1, " must be at most 131072, got 131073"),
        ("hidden", True, " must be an integer, got True"),
        ("mlp_dim", 0, " must be at least 1, got 0"),
        ("mlp_dim", "4", " must be an integer, got '4'"),
        ("rate", float("nan"), " must be a finite number of at least 0, got nan"),
        ("rate", None, " must be a finite number of at least 0, got None"),
        ("scale", float("inf"), " must be a finite number of at least 0, got inf"),
        ("scale", -0.5, " must be a finite number of at least 0, got -0.5"),
        ("rate", True, " must be a finite number of at least 0, got True"),
        ("remat", 1, " must be True or False, got 1"),
        ("remat", (True, 0), " must be True or False, got 0"),
        ("attention", True, " must be a list of values, got True"),
        ("pool", 3, " must be a string, got 3"),
    ],
)
def test_fields_that_no_network_can_be_made_of(field, value, said):
    with pytest.raises(InputError, match=f"unet.{field}{said}"):
        make_module(Model, {field: value}, "unet")


@pytest.mark.parametrize("error", [ValueError, TypeError, ZeroDivisionError, IndexError])
def test_shapes_that_do_not_fit(error):
    with pytest.raises(
        InputError, match=r"^unet: its fields do not fit together \(a\); change one of them$"
    ):
        with building("unet"):
            raise error("a\nb")
