"""A measured number, and all that it depends on."""

import dataclasses

# Measures whose mean is the same for any number of images: unbiased (Binkowski et al. 2018),
# extrapolated (Chong & Forsyth 2020), or a mean over images or classes.
_OF_ANY_NUMBER = {"kid", "kd", "fid infinity", "fd infinity", "recognizability", "diversity"}
_OF_ANY_NUMBER |= {"authentic", "copy ratio"}


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
    """What keeps two results from being compared, in a few words; None if nothing does.

    What is not known of one of them is no difference, nor are two ways of writing that lose
    nothing; nor is the number of images where the mean of a measure does not depend on it.
    """
    parts = [] if a.measure == b.measure else [f"{a.measure} and {b.measure}"]
    for field in dataclasses.fields(Conditions):
        pair = tuple(getattr(result.conditions, field.name) for result in (a, b))
        if pair[0] == pair[1] or "unknown" in pair or _are_lossless(*pair):
            continue
        if field.name != "num_images":
            parts.append(f"{field.name.replace('_', ' ')} {' and '.join(_only_here(*pair))}")
        elif a.measure.partition(" (")[0] not in _OF_ANY_NUMBER:
            parts.append(f"{pair[0]:,} and {pair[1]:,} images")
    return ", ".join(parts) or None


def _are_lossless(ours: object, theirs: object) -> bool:
    return {ours, theirs} <= {"png", "none"}


def _only_here(ours: object, theirs: object) -> list[str]:
    """Both values, of settings those alone that the other one has not."""
    if not isinstance(ours, tuple) or not isinstance(theirs, tuple):
        return [_shown(ours), _shown(theirs)]
    pairs = ((ours, theirs), (theirs, ours))
    return [
        " ".join(f"{name}={_shown(value)}" for name, value in own if (name, value) not in other)
        or "none"
        for own, other in pairs
    ]


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    # The beginning of a digest is enough to tell it from others.
    return text[:12] if len(text) == 64 else text
