"""Tiny classifiers of transformers with random weights, saved as users find them."""

import numpy as np
import torch
import transformers

VIT = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    image_size=12,
    patch_size=4,
    num_labels=5,
)
RESNET = dict(embedding_size=4, depths=[2, 1], num_labels=5)
MODELS = {
    "ViT": (transformers.ViTForImageClassification, transformers.ViTConfig(**VIT)),
    "DeiT": (transformers.DeiTForImageClassification, transformers.DeiTConfig(**VIT)),
    "DeiT with teacher": (
        transformers.DeiTForImageClassificationWithTeacher,
        transformers.DeiTConfig(**VIT),
    ),
    "ResNet of bottlenecks": (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(**RESNET, hidden_sizes=[16, 32]),
    ),
    "ResNet of two layers": (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(**RESNET, hidden_sizes=[4, 8], layer_type="basic"),
    ),
}
VITS = ("ViT", "DeiT", "DeiT with teacher")
RESNETS = ("ResNet of bottlenecks", "ResNet of two layers")
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
PLAIN = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def make(name, folder, pixels=PLAIN):
    """The model, no tensor of which is zero or one, and saved with its preprocessor's config."""
    maker, config = MODELS[name]
    model = maker(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith(("running_var", "norm.weight", "normalization.weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                spread = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.3
                tensor.normal_(0, max(spread, 0.2), generator=generator)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(**pixels).save_pretrained(folder)
    return model


def draw_images(batch, size, seed=0):
    """[b, h, w, c] in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def to_torch(images, pixels=PLAIN):
    """What the peer is given: scaled as its preprocessor does it."""
    scaled = (torch.tensor(images).permute(0, 3, 1, 2) + 1) / 2
    mean, std = (torch.tensor(pixels[f"image_{key}"])[:, None, None] for key in ("mean", "std"))
    return (scaled - mean) / std


def difference(ours, theirs):
    """Largest difference, relative to the largest number."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 1e-3
    return np.abs(ours - theirs).max() / np.abs(theirs).max()
