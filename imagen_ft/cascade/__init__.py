"""Cascades: `Cascade.load` or `load_cascade`, then `sample` or, for a `Request`, `stream`.

In a notebook `show` displays images and `film` the way to them; `memory_table` tells what fits.
"""

from imagen_ft.cascade.cascade import Cascade, load_cascade
from imagen_ft.cascade.memory import memory_phases, memory_table
from imagen_ft.cascade.pictures import film, show
from imagen_ft.cascade.request import Request

__all__ = ["Cascade", "Request", "film", "load_cascade", "memory_phases", "memory_table", "show"]
