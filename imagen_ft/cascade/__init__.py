"""Cascades: `Cascade.load` or `load_cascade`, then `sample` or, for a `Request`, `stream`."""

from imagen_ft.cascade.cascade import Cascade, load_cascade
from imagen_ft.cascade.request import Request

__all__ = ["Cascade", "Request", "load_cascade"]
