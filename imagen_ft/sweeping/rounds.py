"""Which points get how many images: all of them all, or by successive halving."""

import dataclasses
from collections.abc import Sequence

from launch.errors import InputError

# A round of fewer images tells nothing: a covariance takes two.
_LEAST = 2


@dataclasses.dataclass(frozen=True)
class Round:
    """Points that are still in, and the images that each has by the end of it.

    Attributes:
        points: how many.
        images: of each, those of earlier rounds among them.
    """

    points: int
    images: int


def plan_rounds(
    num_points: int, num_images: int, budget: int, factor: int, finalists: int
) -> list[Round]:
    """The rounds of a sweep.

    Successive halving (Jamieson and Talwalkar 2016): every round leaves one of `factor` points, and
    these get more images, by the same ratio each time. The first round has as many as the budget
    allows, if the finalists are to have `num_images`.

    Args:
        num_points: of the grid.
        num_images: of each point that is compared in the end.
        budget: images in all; 0 is as many as the whole grid takes.
        factor: at least 2.
        finalists: how many points are compared in the end.

    Raises:
        InputError: the budget is too small.
    """
    if not budget or budget >= num_points * num_images or num_points <= finalists:
        rounds = [Round(num_points, num_images)]
        if budget and cost(rounds) > budget:
            raise _too_small(budget, cost(rounds), num_points, num_images)
        return rounds
    points = [num_points]
    while points[-1] > finalists:
        points.append(max(-(-points[-1] // factor), finalists))
    least = _rounds(points, _LEAST, num_images)
    if cost(least) > budget:
        raise _too_small(budget, cost(least), num_points, num_images)
    low, high = _LEAST, num_images
    while high - low > 1:
        middle = (low + high) // 2
        fits = cost(_rounds(points, middle, num_images)) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return _rounds(points, low, num_images)


def cost(rounds: Sequence[Round]) -> int:
    """Images of all rounds."""
    drawn, total = 0, 0
    for entry in rounds:
        total += entry.points * (entry.images - drawn)
        drawn = entry.images
    return total


def _rounds(points: Sequence[int], first: int, last: int) -> list[Round]:
    steps = len(points) - 1
    images = [round(first * (last / first) ** (number / steps)) for number in range(steps + 1)]
    return [Round(*pair) for pair in zip(points, images, strict=True)]


def _too_small(budget: int, least: int, num_points: int, num_images: int) -> InputError:
    return InputError(
        f"--budget must be at least {least} for {num_points} points and {num_images} images of "
        f"each finalist, got {budget}; raise it, or lower config.num_images"
    )
