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
        ("layers_per_block", 0, "=0: at least 1 is needed"),
        ("layers_per_block", (1, -1), "=-1: at least 1 is needed"),
        ("layers_per_block", (1, 1001), "=1001: at most 1000 is possible"),
        ("layers_per_block", (), r"=\(\): at least one value is needed"),
        ("layers_per_block", (1, 2.0), "=2.0: an integer is needed"),
        ("layers_per_block", None, "=None: an integer is needed"),
        ("hidden", -1, "=-1: at least 0 is needed"),
        ("hidden", 2**17 + 1, "=131073: at most 131072 is possible"),
        ("hidden", True, "=True: an integer is needed"),
        ("mlp_dim", 0, "=0: at least 1 is needed"),
        ("mlp_dim", "4", "='4': an integer is needed"),
        ("rate", float("nan"), "=nan: a finite number of at least 0 is needed"),
        ("rate", None, "=None: a finite number"),
        ("scale", float("inf"), "=inf: a finite number"),
        ("scale", -0.5, "=-0.5: a finite number"),
        ("rate", True, "=True: a finite number"),
        ("remat", 1, "=1: True or False is needed"),
        ("remat", (True, 0), "=0: True or False is needed"),
        ("attention", True, "=True: a list of several values is needed"),
        ("pool", 3, "=3: a text is needed"),
    ],
)
def test_fields_that_no_network_can_be_made_of(field, value, said):
    with pytest.raises(InputError, match=f"unet.{field}{said}"):
        make_module(Model, {field: value}, "unet")


@pytest.mark.parametrize("error", [ValueError, TypeError, ZeroDivisionError, IndexError])
def test_shapes_that_do_not_fit(error):
    with pytest.raises(InputError, match=r"^unet: no network can be made of its fields \(a\)$"):
        with building("unet"):
            raise error("a\nb")
