"""PyTorch's weights under our names, and random values for them."""

import re

import flax.traverse_util
import numpy as np
import torch

# From diffusers' names to ours.
UNET_RENAMES = (
    (r"\.(\d+)\b", r"_\1"),  # resnets.0 -> resnets_0
    (r"^(down_blocks_\d+|mid_block|up_blocks_\d+)\.", r"\1_"),
)


def randomize(module, seed):
    """Gives every parameter random values, also those that start as zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim <= 1:
                # Biases stay around 0, scales of norms around 1, single numbers where they are.
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)


def variables(module, shapes, renames):
    """Our variables with the values of a PyTorch module.

    Args:
        module: of PyTorch.
        shapes: of our variables; names and shapes must be the same, no fewer and no more.
        renames: (pattern, replacement) for the dotted names, applied in order.
    """
    expected = flax.traverse_util.flatten_dict(shapes["params"], sep=".")
    ours = {}
    for name, value in module.state_dict().items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        stem, leaf = name.rsplit(".", 1)
        kinds = ("kernel", "scale", "embedding") if leaf == "weight" else (leaf,)
        found = [f"{stem}.{kind}" for kind in (*kinds, leaf) if f"{stem}.{kind}" in expected]
        assert found, f"we have no {name}"
        ours[found[0]] = to_ours(value.numpy(), found[0].endswith(".kernel"))
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in expected.items()
    }
    return {"params": flax.traverse_util.unflatten_dict(ours, sep=".")}


def to_ours(value, is_kernel):
    """Inputs before outputs, and in convolutions the space before both."""
    if not is_kernel:
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
