"""How many images each point gets: the same for all, or by successive halving."""

import dataclasses
from collections.abc import Sequence

from launch.errors import InputError

# Fewest images of a round: a covariance takes two.
_LEAST = 2


@dataclasses.dataclass(frozen=True)
class Round:
    """The points still in the race, and the images that each has by the end of the round."""

    points: int
    images: int  # of each point, including those of earlier rounds


def plan_rounds(
    num_points: int, num_images: int, budget: int, factor: int, finalists: int
) -> list[Round]:
    """The rounds of a sweep, by successive halving (Jamieson & Talwalkar 2016).

    Every round keeps one of `factor` (at least 2) points, and multiplies their images by the same
    ratio. `num_images` is what each of the `finalists` ends with; `budget` is in images over all
    points, 0 for the whole grid. Raises `InputError` if the budget is too small.
    """
    # 1. One round for all, if the budget allows it or there is nothing to drop.
    if not budget or budget >= num_points * num_images or num_points <= finalists:
        rounds = [Round(num_points, num_images)]
        if budget and cost(rounds) > budget:
            raise _too_small(budget, cost(rounds), num_points, num_images)
        return rounds
    # 2. The points of each round.
    points = [num_points]
    while points[-1] > finalists:
        points.append(max(-(-points[-1] // factor), finalists))
    # 3. By bisection, the most images in the first round that the budget allows.
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
    """Images of all rounds together."""
    drawn, total = 0, 0
    for entry in rounds:
        # A round draws only what its points do not have yet.
        total += entry.points * (entry.images - drawn)
        drawn = entry.images
    return total


def _rounds(points: Sequence[int], first: int, last: int) -> list[Round]:
    # A geometric series from first to last.
    steps = len(points) - 1
    images = [round(first * (last / first) ** (number / steps)) for number in range(steps + 1)]
    return [Round(*pair) for pair in zip(points, images, strict=True)]


def _too_small(budget: int, least: int, num_points: int, num_images: int) -> InputError:
    return InputError(
        f"--budget must be at least {least} for {num_points} points and {num_images} images for "
        f"each finalist, got {budget}; raise it, or lower config.num_images"
    )
