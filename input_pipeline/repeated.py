"""Repeated augmentation: every image several times in a batch, each time augmented otherwise."""

import numpy as np
from jaxtyping import Int

from input_pipeline.files import InputError


def repeat(
    positions: Int[np.ndarray, " n"], repeats: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Which example of an unrepeated run comes at a position of the repeated one.

    The repetitions of an example follow each other, so a batch whose size is a multiple of
    `repeats` holds all of them (Hoffer et al. 2020, section 3), and who loads them can decode the
    image once. Positions stay what randomness is drawn for; so every repetition has its own.

    An epoch of examples takes `repeats` times as many positions: training as long as without
    repetition (DeiT) sees each image as often, in fewer, larger portions.

    Args:
        positions: places in the run, counted over all batches.
        repeats: how often each example comes; 1 is once.

    Returns:
        Positions in the unrepeated run, and the number of the repetition, 0 to repeats - 1.

    Raises:
        InputError: repeats is less than 1.
    """
    if repeats < 1:
        raise InputError(f"repeats={repeats}: every example comes at least once; choose 1 or more")
    return np.divmod(positions, repeats)
