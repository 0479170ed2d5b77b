"""Positions of vision transformers in files: for which image size, and resized to another."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from classifiers.models.presets import Classifier
from classifiers.models.vit import ViT, resize_positions, sincos_positions
from launch.errors import InputError

POSITIONS, FIXED_POSITIONS = "params.positions", "pos_embed"


def trained_size(tensors: Mapping[str, Any], model: Classifier) -> int | None:
    """The image size in pixels that learned positions are for; None where there are none.

    `tensors` may be anything with shapes, by a file's names or by our paths. Raises InputError if
    the positions are not of a square.
    """
    names = ("position_embeddings", FIXED_POSITIONS, POSITIONS)
    positions = [tensor for name, tensor in tensors.items() if name.endswith(names)]
    if not isinstance(model, ViT) or not positions:
        return None
    return _rows(positions[0].shape[1], model, "the weights") * model.patch_size


def resized(
    positions: np.ndarray, model: ViT, image_shape: tuple[int, int, int], where: Any
) -> np.ndarray:
    """Positions [1, n, d] learned on square images, for images of `image_shape` [h, w, c].

    Raises:
        InputError: their number is not that of a square image.
    """
    rows = _rows(positions.shape[1], model, where)
    return resize_positions(
        positions, _placed_tokens(model), (rows, rows), patch_grid(model, image_shape)
    )


def has_fixed_positions(model: Classifier) -> TypeGuard[ViT]:
    """Whether positions are computed: our variables then have none, but files may."""
    return isinstance(model, ViT) and model.positions == "sincos"


def patch_grid(model: ViT, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of patches of an image [h, w, c]."""
    return image_shape[0] // model.patch_size, image_shape[1] // model.patch_size


def _placed_tokens(model: ViT) -> int:
    """How many tokens before the patches have positions."""
    return model.num_tokens if model.positions == "learned" else 0


def _rows(positions: int, model: ViT, where: Any) -> int:
    """Rows of patches of the square image that has so many positions."""
    num_tokens = _placed_tokens(model)
    rows = math.isqrt(max(0, positions - num_tokens))
    if rows == 0 or rows**2 + num_tokens != positions:
        raise InputError(
            f"{where}: the number of positions must be a square number plus {num_tokens} tokens, "
            f"got {positions}; choose the model that these weights belong to"
        )
    return rows


def check_fixed_positions(positions: np.ndarray, width: int, where: Any) -> None:
    """Raises InputError unless a file's [1, n, d] are what a model of this width computes."""
    rows = math.isqrt(positions.shape[1]) if positions.ndim == 3 else 0
    fits = rows and positions.shape == (1, rows**2, width)
    # 0.01 allows for files in half precision.
    if not fits or np.abs(positions - sincos_positions(rows, rows, width)).max() > 1e-2:
        raise InputError(
            f"{where}: {FIXED_POSITIONS} must be the model's fixed positions, got others; "
            "choose a model with positions='learned_patches'"
        )
