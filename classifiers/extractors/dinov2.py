"""DINOv2 (Oquab et al. 2023) from transformers' files: the extractor of FD-DINOv2.

The weights' positions are for 37 x 37 patches. Two rules resize them to fewer patches, which gives
two sets of features for the same weights.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import flax.traverse_util
import numpy as np
from etils import epath

from classifiers.extractors.classifier import tapped
from classifiers.extractors.extractor import Extractor, Taps
from classifiers.extractors.pixel_rules import DINOV2_RULES, check_rule, dinov2_pixels
from classifiers.models import presets
from classifiers.models.vit import ViT, resize_positions
from launch.errors import InputError
from launch.runtime.checkpoints.content_digest import content_digest
from launch.runtime.checkpoints.safetensors_io import (
    Tensor,
    check_finite,
    open_file,
    open_weights,
)
from launch.runtime.checkpoints.tensor_mapping import Rules, check_fit, tensor_mappings
from launch.runtime.types import Array, Variables

# By rule: what is added to the new number of patches before the old ones are spread over it. The
# code of torch.hub, which dgm-eval and EDM2 run, adds 0.1; transformers adds nothing.
POSITION_RULES = {"hub": 0.1, "size": 0.0}
_HEAD_WIDTH = 64  # channels a head, in all published networks
_POSITIONS = "embeddings.position_embeddings"
_LAYER = r"encoder.layer.\1."
_BLOCK = r"^block_(\d+)\."
_RULES: Rules = (
    (r"^params\.", ""),
    (r"\.(kernel|scale)$", ".weight"),
    (rf"{_BLOCK}(query|key|value)\.", rf"{_LAYER}attention.attention.\2."),
    (rf"{_BLOCK}out\.", f"{_LAYER}attention.output.dense."),
    (rf"{_BLOCK}norm_(\d)\.", rf"{_LAYER}norm\2."),
    (rf"{_BLOCK}mlp_(\d)\.", rf"{_LAYER}mlp.fc\2."),
    (rf"{_BLOCK}scale_(\d)$", rf"{_LAYER}layer_scale\2.lambda1"),
    (r"^norm\.", "layernorm."),
    (r"^patch_embed\.", "embeddings.patch_embeddings.projection."),
    (r"^class_token$", "embeddings.cls_token"),
    (r"^positions$", _POSITIONS),
)


def dinov2(
    path: epath.PathLike, positions: str = "hub", pixels: str = "torch", size: int = 224
) -> Extractor:
    """The extractor of FD-DINOv2: ViT-B/14 or L/14, whichever the weights are.

    `path` is a .safetensors file, or a folder with model.safetensors or its index; `positions` one
    of `POSITION_RULES` ('hub' gives the numbers that others publish); `pixels` one of
    `DINOV2_RULES`; `size` that of images in pixels.

    Raises:
        InputError: there is no such rule or file, the file is damaged or of another network, or
            patches do not divide the size.
    """
    check_rule(positions, tuple(POSITION_RULES))
    check_rule(pixels, DINOV2_RULES)
    model, variables = load(Path(path), positions, size)
    return Extractor(
        name=f"dinov2_{model.width}x{model.depth}",
        rule=f"{pixels} {size}, positions {positions}",
        digest=content_digest(variables),
        apply=functools.partial(apply_to_images, model, pixels, size),
        variables=variables,
    )


def apply_to_images(
    model: ViT, pixels: str, size: int, variables: Variables, images: Array
) -> Taps:
    """The class token and, as `spatial`, the patches' tokens of images uint8 [b, h, w, c]."""
    return tapped(model, variables, dinov2_pixels(images, pixels, size), features=True)[1]


def load(path: Path, positions: str, size: int) -> tuple[ViT, Variables]:
    """The network and its variables for images of a size; arguments and errors as of `dinov2`."""
    # 1. Open the file, and read the network off its shapes.
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; choose one with weights")
    tensors = open_weights(path, "model", None).tensors if path.is_dir() else open_file(path)
    # The mask token stands for patches hidden in training, and has no use after it.
    tensors = {name: tensor for name, tensor in tensors.items() if "mask_token" not in name}
    model, trained_size = _model(tensors, path)
    if size % model.patch_size:
        raise InputError(
            f"size must be a multiple of {model.patch_size} (the patch size), got {size}; 224 is "
            "usual"
        )
    # 2. Copy every tensor to its place, as float32.
    shapes = presets.variable_shapes(model, (trained_size, trained_size, 3))
    del shapes["params"]["head"]
    mappings = tensor_mappings(shapes, _RULES)
    check_fit(mappings, {name: tensor.shape for name, tensor in tensors.items()}, path)
    ours = {}
    for name, mapping in mappings.items():
        values = tensors[name].view()
        check_finite(name, tensors[name], values)
        (ours[mapping.paths[0]],) = mapping.to_ours(np.array(values, np.float32))
    # 3. Resize the positions; those of the class token stay.
    old, new = (pixels // model.patch_size for pixels in (trained_size, size))
    path_of_positions = "params.positions"
    ours[path_of_positions] = resize_positions(
        ours[path_of_positions], 1, (old, old), (new, new), POSITION_RULES[positions]
    )
    arrays = {name: np.ascontiguousarray(array) for name, array in ours.items()}
    return model, flax.traverse_util.unflatten_dict(arrays, sep=".")


def _model(tensors: Mapping[str, Tensor], where: Path) -> tuple[ViT, int]:
    """The network of these tensors, and the image size that their positions are for."""
    patches = tensors.get("embeddings.patch_embeddings.projection.weight")
    rows = tensors.get(_POSITIONS)
    if patches is None or rows is None or len(patches.shape) != 4 or len(rows.shape) != 3:
        raise InputError(
            f"{where}: {_POSITIONS} or the patches' kernel is missing; use DINOv2 as transformers "
            "saves it"
        )
    width, patch_size = patches.shape[0], patches.shape[-1]
    depth = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")})
    model = presets.make(
        "vit",
        1,  # no head is used
        width=width,
        depth=depth,
        num_heads=width // _HEAD_WIDTH,
        patch_size=patch_size,
        layer_scale=1.0,
        pixels="imagenet",
    )
    assert isinstance(model, ViT)
    # Positions are of a square of patches and the class token.
    return model, round((rows.shape[1] - 1) ** 0.5) * patch_size
