"""Contrastive losses in PyTorch, over logits that exist at once; and as a program, on 8 devices.

python -m tests.classifiers.contrastive.reference    prints the largest errors of a mesh
"""

import jax
import numpy as np
import torch

from classifiers.contrastive.losses import make_loss
from classifiers.models.clip import Pairs
from launch.runtime.devices.mesh import make_mesh

SIZE, WIDTH, SCALE, BIAS = 48, 16, 12.0, -3.0


def pairs():
    """Features of length 1."""
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(SIZE, WIDTH)) for _ in range(2))
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    return Pairs(unit(images), unit(texts), np.float32(SCALE), np.float32(BIAS))


def expected(sigmoid):
    """The loss and its gradient by PyTorch, in float64."""
    leaves = [torch.tensor(np.float64(leaf), requires_grad=True) for leaf in pairs()]
    images, texts, scale, bias = leaves
    logits = images @ texts.T * scale + bias
    if sigmoid:
        signs = 2 * torch.eye(SIZE, dtype=torch.float64) - 1
        loss = -torch.nn.functional.logsigmoid(signs * logits).sum() / SIZE
    else:
        own = torch.arange(SIZE)
        cross_entropy = torch.nn.functional.cross_entropy
        loss = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    loss.backward()
    return loss.item(), [leaf.grad.numpy() for leaf in leaves]


def error(sigmoid, chunk):
    """The largest of loss and gradients, relative to the largest value of each."""
    value, grads = jax.jit(jax.value_and_grad(make_loss(sigmoid, chunk)))(pairs())
    loss, gradients = expected(sigmoid)
    # A softmax does not see the bias: there the gradient is 0.
    sizes = [max(np.abs(there).max(), 1e-2) for there in gradients]
    errors = [np.abs(a - b).max() / s for a, b, s in zip(grads, gradients, sizes, strict=True)]
    return max(abs(float(value) - loss) / loss, *map(float, errors))


if __name__ == "__main__":
    for axes in (dict(data=4, fsdp=2), dict(data=2, fsdp=2, tensor=2)):
        with jax.set_mesh(make_mesh(axes)):
            found = [error(sigmoid, chunk) for sigmoid in (False, True) for chunk in (0, 2)]
        print("errors", *(f"{number:.3e}" for number in found))
