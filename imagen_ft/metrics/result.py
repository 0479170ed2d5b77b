"""A measured number, and all that it depends on."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How a measure was taken. What does not apply to it is None.

    Attributes:
        extractor: name of the network and tap that made the features.
        weights_digest: of its weights.
        input_rule: how it resizes and scales images, by name.
        uint8_rule: how the sampler's floats became uint8: 'round', 'floor', or the maker's own.
        file_format: of the generated images: 'png', 'jpeg', or 'none' if they were never written.
        reference_file_format: of the real ones.
        num_images: generated images that count.
        class_balance: 'balanced', or 'drawn'.
        reference_digest: of the real images, or of the file with their statistics.
        k: of neighbourhoods.
        comparison: of neighbourhoods, '<' or '<='.
        settings: other arguments of the measure: splits, subsets, directions, seed.
    """

    extractor: str
    weights_digest: str
    input_rule: str
    uint8_rule: str
    file_format: str
    reference_file_format: str | None
    num_images: int
    class_balance: str
    reference_digest: str | None
    k: int | None = None
    comparison: str | None = None
    settings: tuple[tuple[str, int | float | str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """One number.

    Attributes:
        measure: its name: 'fid' is on Inception-v3's pooled features alone.
        value: the number.
        conditions: what it depends on.
        deviation: over splits or subsets, where there are such.
    """

    measure: str
    value: float
    conditions: Conditions
    deviation: float | None = None


def difference(a: Result, b: Result) -> str | None:
    """What keeps two results from being compared, in one line; None if nothing does."""
    parts = [] if a.measure == b.measure else [f"measure ({a.measure} and {b.measure})"]
    for field in dataclasses.fields(Conditions):
        ours, theirs = (getattr(result.conditions, field.name) for result in (a, b))
        if ours != theirs:
            parts.append(f"{field.name} ({_shown(ours)} and {_shown(theirs)})")
    return f"they differ in {', '.join(parts)}" if parts else None


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{name}={setting}" for name, setting in value) or "none"
    text = "none" if value is None else str(value)
    # The beginning of a digest is enough to tell it from others.
    return text[:12] if len(text) == 64 else text
