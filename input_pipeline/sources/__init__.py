"""Sources by name: `sources.load` opens the one that a config describes."""

from input_pipeline.sources.registry import lacking_in_source, load

__all__ = ["lacking_in_source", "load"]
