"""Which sources a program opens."""

from input_pipeline import sources


def count_openings(monkeypatch):
    """A list to which each opening of a source appends its fields."""
    opened, load = [], sources.load

    def note(spec):
        opened.append(dict(spec))
        return load(spec)

    monkeypatch.setattr(sources, "load", note)
    return opened
