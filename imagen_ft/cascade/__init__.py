"""Cascades: `Cascade.load` or `load_cascade`, then `sample` or, for a `Request`, `stream`.

In a notebook `show` displays images and `film` the steps towards them; `grid` and `to_pil` return
them as an array or Pillow images; `memory_table` says what fits.
"""

from imagen_ft.cascade.cascade import Cascade, load_cascade
from imagen_ft.cascade.memory import memory_phases, memory_table
from imagen_ft.cascade.pictures import film, grid, show, to_pil
from imagen_ft.cascade.request import Request

__all__ = [
    "Cascade",
    "Request",
    "film",
    "grid",
    "load_cascade",
    "memory_phases",
    "memory_table",
    "show",
    "to_pil",
]
