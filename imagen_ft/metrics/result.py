"""A measured number, and everything that it depends on."""

import dataclasses

# Measures whose mean is the same for any number of images: unbiased (Binkowski et al. 2018),
# extrapolated (Chong & Forsyth 2020), or a mean over images or classes.
_OF_ANY_NUMBER = {"kid", "kd", "fid infinity", "fd infinity", "recognizability", "diversity"}
_OF_ANY_NUMBER |= {"authentic", "copy ratio"}


@dataclasses.dataclass(frozen=True)
class Conditions:
    """How a measure was taken; None where a condition does not apply."""

    # Network and tap that made the features, by name, and the checksum of its weights.
    extractor: str
    weights_digest: str
    # How images are resized and scaled, by name.
    input_rule: str
    # How the sampler's floats became uint8: 'round', 'floor', or a name of its own.
    uint8_rule: str
    # Of the synthetic and the real images: 'png', 'jpeg', or 'none' if never written.
    file_format: str
    reference_file_format: str | None
    # Synthetic images, and whether classes are 'balanced' or 'drawn'.
    num_images: int
    class_balance: str
    # Checksum of the real images, or of the file with their statistics.
    reference_digest: str | None
    # Size of neighbourhoods, and '<' or '<=' for their border.
    k: int | None = None
    comparison: str | None = None
    # Other arguments of the measure: splits, subsets, directions, seed.
    settings: tuple[tuple[str, int | float | str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """One number; 'fid' names only the distance on Inception-v3's pooled features."""

    measure: str
    value: float
    conditions: Conditions
    deviation: float | None = None  # over splits or subsets


def difference(a: Result, b: Result) -> str | None:
    """Why two results do not compare, in a few words; None if they do.

    Conditions that are unknown on one side do not count, nor does PNG against images never written,
    nor the number of images where the mean of the measure does not depend on it.
    """
    # Each condition that differs and matters adds a reason.
    parts = [] if a.measure == b.measure else [f"{a.measure} and {b.measure}"]
    for field in dataclasses.fields(Conditions):
        pair = tuple(getattr(result.conditions, field.name) for result in (a, b))
        if pair[0] == pair[1] or "unknown" in pair or _are_lossless(*pair):
            continue
        if field.name != "num_images":
            parts.append(f"{field.name.replace('_', ' ')} {' and '.join(_only_here(*pair))}")
        # On other extractors measures are called 'fd (NAME)': the table has the part before that.
        elif a.measure.partition(" (")[0] not in _OF_ANY_NUMBER:
            parts.append(f"{pair[0]:,} and {pair[1]:,} images")
    return ", ".join(parts) or None


def _are_lossless(ours: object, theirs: object) -> bool:
    return {ours, theirs} <= {"png", "none"}


def _only_here(ours: object, theirs: object) -> list[str]:
    if not isinstance(ours, tuple) or not isinstance(theirs, tuple):
        return [_shown(ours), _shown(theirs)]
    # Of settings, show only what the other side does not have.
    pairs = ((ours, theirs), (theirs, ours))
    return [
        " ".join(f"{name}={_shown(value)}" for name, value in own if (name, value) not in other)
        or "none"
        for own, other in pairs
    ]


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    # 12 of a SHA-256's 64 digits are enough to identify it.
    return text[:12] if len(text) == 64 else text
