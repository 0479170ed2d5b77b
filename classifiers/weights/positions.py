"""Positions of vision transformers in files: for which size of images, and for another."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from classifiers.models.presets import Classifier
from classifiers.models.vit import ViT, resize_positions, sincos_positions
from launch.errors import InputError

POSITIONS, FIXED_POSITIONS = "params.positions", "pos_embed"


def trained_size(tensors: Mapping[str, Any], model: Classifier) -> int | None:
    """Pixels each way of the images that learned positions are for; None where there are none.

    Args:
        tensors: whatever has a shape, by a file's names or by our paths.
        model: the network.

    Raises:
        InputError: the images are not square.
    """
    names = ("position_embeddings", FIXED_POSITIONS, POSITIONS)
    positions = [tensor for name, tensor in tensors.items() if name.endswith(names)]
    if not isinstance(model, ViT) or not positions:
        return None
    return _rows(positions[0].shape[1], model, "the weights") * model.patch_size


def resized(
    positions: np.ndarray, model: ViT, image_shape: tuple[int, int, int], where: Any
) -> np.ndarray:
    """Positions learned on square images, for images of another shape.

    Args:
        positions: [1, n, d].
        model: the network.
        image_shape: [h, w, c] of the new images.
        where: the positions come from, for the message.

    Raises:
        InputError: there are not as many as a square image has.
    """
    rows = _rows(positions.shape[1], model, where)
    return resize_positions(
        positions, _placed_tokens(model), (rows, rows), patch_grid(model, image_shape)
    )


def has_fixed_positions(model: Classifier) -> TypeGuard[ViT]:
    """Whether positions are computed, not learned: our variables then have none, files may."""
    return isinstance(model, ViT) and model.positions == "sincos"


def patch_grid(model: ViT, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of patches of an image [h, w, c]."""
    return image_shape[0] // model.patch_size, image_shape[1] // model.patch_size


def _placed_tokens(model: ViT) -> int:
    """Tokens before the patches that have positions."""
    return model.num_tokens if model.positions == "learned" else 0


def _rows(positions: int, model: ViT, where: Any) -> int:
    """Rows of patches of a square image that has so many positions."""
    num_tokens = _placed_tokens(model)
    rows = math.isqrt(max(0, positions - num_tokens))
    if rows == 0 or rows**2 + num_tokens != positions:
        raise InputError(
            f"{where}: the number of positions must be that of a square image and "
            f"{num_tokens} tokens, got {positions}; use the model of these weights"
        )
    return rows


def check_fixed_positions(positions: np.ndarray, width: int, where: Any) -> None:
    """Compares positions of a file, [1, n, d], with those that a model of this width computes.

    Raises:
        InputError: they differ.
    """
    rows = math.isqrt(positions.shape[1]) if positions.ndim == 3 else 0
    fits = rows and positions.shape == (1, rows**2, width)
    if not fits or np.abs(positions - sincos_positions(rows, rows, width)).max() > 1e-2:
        raise InputError(
            f"{where}: {FIXED_POSITIONS} must be the model's fixed positions, got others; "
            "choose a model with positions='learned_patches'"
        )
