"""Cascades: `Cascade.load` or `load_cascade`, then `sample`."""

from imagen_ft.cascade.cascade import Cascade, load_cascade

__all__ = ["Cascade", "load_cascade"]
