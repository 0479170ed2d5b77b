"""Tuning of the image tower against PyTorch, on a tiny CLIP of random weights."""

import copy

import flax.traverse_util
import jax
import ml_collections
import numpy as np
import pytest
import torch

from classifiers.clip.run import ClipRun
from classifiers.extractors.clip import of_run
from classifiers.extractors.features import feature_batches
from classifiers.tuning import head, tower
from classifiers.tuning.head import Loss, Part
from classifiers.tuning.tower import ImagePart, Tower, trained_parameters
from classifiers.weights.__main__ import run as weights
from input_pipeline.source import ArraySource
from launch.runtime.devices.mesh import make_mesh
from tests.parity.test_clip import torch_pixels
from tests.support import tiny_clips
from tests.support.devices import run_on_eight

RNG = np.random.default_rng(0)
START = RNG.normal(size=(4, 10)).astype(np.float32)
RATE, DECAY = 1e-2, 0.1
OPTIMIZER = ml_collections.ConfigDict(
    dict(
        name="adamw",
        schedule="constant",
        warmup_steps=0,
        weight_decay=DECAY,
        clip_norm=1.0,
        learning_rate=RATE,
        # At PyTorch's 1e-8 the first step would be the signs of gradients, of zeros too.
        eps=1e-3,
    )
)
LOSSES = Loss(1.0, 0.0, 1.0, 20.0), Loss(0.5, 0.5, 2.0, 20.0)
IMAGES = RNG.integers(0, 256, (2, 6, 8, 8, 3), np.uint8)
LABELS = RNG.integers(0, 4, (2, 6))


def imported(model, folder):
    source = tiny_clips.save(model, folder / "source")
    assert weights(["weights", f"--from=transformers:{source}", f"--to={folder / 'run'}"]) == 0
    return of_run(ClipRun.open(folder / "run"))


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The tower, the parts of real and of synthetic images, and PyTorch's model."""
    model = tiny_clips.clip()
    extractor = imported(model, tmp_path_factory.mktemp("before"))
    parts = []
    for images, labels, loss in zip(IMAGES, LABELS, LOSSES, strict=True):
        source = ArraySource(images, labels, tuple("abcd"))
        (batch,) = feature_batches(extractor, source)
        part = Part.make(batch["features"], labels, 6, loss)
        parts.append(ImagePart(**vars(part), images=source))
    return extractor, parts, model


def tuned(before, part, rate=1.0, epochs=1):
    extractor, parts, _ = before
    trained = trained_parameters(extractor.variables["params"], part)
    learning = Tower(extractor, trained, rate, make_mesh({"data": 1}, jax.devices()[:1]))
    kernel, after = tower.tune(START, parts, "mix", OPTIMIZER, epochs, 0, learning)
    flat = (
        flax.traverse_util.flatten_dict(jax.device_get(x.variables["params"]), sep="/")
        for x in (extractor, after)
    )
    return kernel, *flat


def test_the_first_step_of_the_whole_tower(before, tmp_path):
    """Both losses, the gradient of head and tower clipped together, AdamW at two rates."""
    model = copy.deepcopy(before[2])
    kernel = torch.tensor(START, requires_grad=True)
    for parameter in (*model.vision_model.parameters(), *model.visual_projection.parameters()):
        parameter.requires_grad_(True)
    named = [x for x in model.named_parameters() if x[1].requires_grad]
    decays = lambda name, x: x.ndim > 1 or name.endswith("class_embedding")  # noqa: E731
    groups = [{"params": [kernel], "lr": RATE, "weight_decay": DECAY}]
    for decayed in (True, False):
        params = [x for name, x in named if decays(name, x) == decayed]
        groups.append({"params": params, "lr": RATE / 2, "weight_decay": DECAY * decayed})
    optimizer = torch.optim.AdamW(groups, eps=1e-3)
    total = 0
    for images, labels, loss in zip(IMAGES, LABELS, LOSSES, strict=True):
        pixels = torch_pixels(images / np.float32(127.5) - 1)
        seen = model.get_image_features(pixels).pooler_output
        seen = seen / seen.norm(dim=1, keepdim=True)
        log_p = torch.log_softmax(loss.scale * seen @ kernel.T, 1)
        teacher = loss.scale * seen.detach() @ torch.tensor(START).T / loss.temperature
        soft = -(torch.softmax(teacher, 1) * log_p).sum(1).mean()
        hard = torch.nn.functional.nll_loss(log_p, torch.tensor(labels))
        total = total + loss.hard * hard + loss.soft * soft
    total.backward()
    torch.nn.utils.clip_grad_norm_([kernel, *(x for _, x in named)], 1.0)
    optimizer.step()
    ours, start, after = tuned(before, "whole", rate=0.5)
    expected = flax.traverse_util.flatten_dict(
        jax.device_get(imported(model, tmp_path).variables["params"]), sep="/"
    )
    np.testing.assert_allclose(ours, kernel.detach(), atol=2e-5)
    assert after.keys() == expected.keys()
    for name, value in after.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-5, err_msg=name)
        learns = name.startswith("image")
        # A key's bias is added to all of a query's logits alike, and changes nothing.
        moves = np.abs(value - start[name]).max() > 1e-4 or name.endswith("key/bias")
        assert moves if learns else np.array_equal(value, start[name]), name


def test_a_part_of_the_tower(before):
    """What is before the last block stays as it is, by every bit."""
    kernel, start, after = tuned(before, 1, epochs=3)
    moved = {name for name in start if not np.array_equal(start[name], after[name])}
    groups = {name.split("/")[1] for name in moved if name.startswith("image/")}
    assert groups == {"block_1", "norm"}
    assert {name for name in moved if not name.startswith("image/")} == {"image_projection/kernel"}
    alone = head.tune(START, before[1], "mix", OPTIMIZER, 3, 0)
    assert np.abs(kernel - alone).max() > 1e-4


def test_no_part_of_the_tower(before):
    """Then the head learns as it does on features that were computed once."""
    kernel, start, after = tuned(before, "head", epochs=3)
    assert all(np.array_equal(value, after[name]) for name, value in start.items())
    alone = head.tune(START, before[1], "mix", OPTIMIZER, 3, 0)
    np.testing.assert_allclose(kernel, alone, atol=5e-6)
    assert np.abs(kernel - START).max() > 1e-3


def test_blocks_of_a_resnet():
    names = ("stem_conv_0", "stage_0_block_0", "stage_1_block_0", "stage_1_block_1")
    params = {"image": {name: {"kernel": 0} for name in (*names, "attention_pool")}, "text": {}}
    found = lambda tuned: {path.split("/")[1] for path in trained_parameters(params, tuned)}  # noqa: E731
    assert found(1) == {"stage_1_block_1", "attention_pool"}
    assert found(2) == {"stage_1_block_0", "stage_1_block_1", "attention_pool"}
    assert found("whole") == {*names, "attention_pool"} and found("head") == set()


@pytest.mark.slow
def test_eight_devices_tune_alike():
    found = run_on_eight("tests.classifiers.tuning.tower_devices")
    assert found["difference"] <= 2e-5 and found["moved"] > 1e-2
