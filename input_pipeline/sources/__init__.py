"""Sources by name: `sources.load` opens the one that a config describes."""

from input_pipeline.sources.registry import load

__all__ = ["load"]
