"""Which sources are opened while something runs."""

from input_pipeline import sources


def count_openings(monkeypatch):
    """A list to which every opening of a source adds its fields."""
    opened, load = [], sources.load

    def note(spec):
        opened.append(dict(spec))
        return load(spec)

    monkeypatch.setattr(sources, "load", note)
    return opened
