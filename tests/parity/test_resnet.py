"""ResNets against transformers: evaluation, training, statistics, gradients, weights both ways."""

import functools

import flax.traverse_util
import jax
import numpy as np
import pytest
import torch
import transformers

from classifiers import weights
from classifiers.models import presets
from classifiers.weights.config_files import write_configs
from classifiers.weights.tensor_rules import COUNTER, FUSED, tensor_rules
from launch.runtime.checkpoints.tensor_mapping import tensor_mappings
from tests.parity.transformers_models import (
    IMAGENET,
    MODELS,
    RESNETS,
    difference,
    draw_images,
    make,
    to_torch,
)
from tests.support.slow import first_fast


@pytest.fixture(scope="module", params=RESNETS)
def pair(request, tmp_path_factory):
    """Transformers' model, its name, ours and its variables."""
    folder = tmp_path_factory.mktemp("resnet")
    peer = make(request.param, folder, IMAGENET)
    model, size = weights.build(folder)
    assert size == 224 and model.pixels == "imagenet"
    return peer, request.param, model, weights.load(folder, model, (24, 24, 3))


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep=".")


def test_evaluation(pair):
    peer, _, model, variables = pair
    images = draw_images(3, 24)
    run = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, features=True)))
    logits, features = run(variables, images)
    peer.eval()
    with torch.no_grad():
        given = to_torch(images, IMAGENET)
        assert difference(logits, peer(given).logits) <= 1e-5
        assert difference(features, peer.resnet(given).pooler_output[:, :, 0, 0]) <= 1e-5


@pytest.mark.slow
def test_training(pair):
    """Outputs, new statistics and gradients, which batch norm makes harder to agree on."""
    peer, name, model, variables = pair
    images, targets = draw_images(6, 24), np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 4, 0]]
    reference = MODELS[name][0](peer.config).train()
    reference.load_state_dict(peer.state_dict())
    counts = {}
    for key, module in reference.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, given, __, key=key: counts.update(
                    {key: given[0].numel() // given[0].shape[1]}
                )
            )
    logits = reference(to_torch(images, IMAGENET)).logits
    (-(logits.log_softmax(-1) * torch.tensor(targets)).sum()).backward()

    def loss(params):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        out, state = apply({**variables, "params": params}, images)
        return -(jax.nn.log_softmax(out) * targets).sum(), (out, state)

    grads, (ours, state) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert difference(ours, logits) <= 1e-5
    after = {"params": grads, "batch_stats": state["batch_stats"]}
    arrays = {path: np.asarray(leaf) for path, leaf in flat(after).items()}
    statistics, gradients = reference.state_dict(), dict(reference.named_parameters())
    scale = max(value.grad.abs().max().item() for value in gradients.values())
    before = flat(variables)
    rules = tensor_rules(model, "transformers")
    for key, mapping in tensor_mappings(variables, rules, FUSED).items():
        if key in gradients:
            gap = np.abs(mapping.to_file(arrays) - gradients[key].grad.numpy()).max()
            assert gap <= 1e-5 * scale, key
            continue
        expected = statistics[key].numpy()
        if key.endswith("running_var"):
            # PyTorch notes the unbiased variance, Flax the one that it divides by.
            kept, count = 0.9 * mapping.to_file(before), counts[key.rpartition(".")[0]]
            expected = kept + (expected - kept) * (count - 1) / count
        assert difference(mapping.to_file(arrays), expected) <= 1e-5, key


def test_transformers_reads_what_is_written(pair, tmp_path):
    _, name, model, variables = pair
    changed = jax.tree.map(lambda leaf: leaf * 1.25, variables)
    weights.save(tmp_path, changed, model, (24, 24, 3), "transformers")
    write_configs(tmp_path, model, (24, 24, 3), "transformers")
    read, facts = MODELS[name][0].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(facts.values())
    assert {key for key in read.state_dict() if key.endswith(COUNTER)}
    images = draw_images(2, 24)
    with torch.no_grad():
        theirs = read.eval()(to_torch(images, IMAGENET)).logits
    assert difference(jax.jit(model.apply)(changed, images), theirs) <= 1e-5


@pytest.mark.parametrize(
    ("name", "depths"),
    first_fast(
        [("resnet50", [3, 4, 6, 3]), ("resnet101", [3, 4, 23, 3]), ("resnet152", [3, 8, 36, 3])]
    ),
)
def test_published_sizes(name, depths):
    """Every tensor of the full networks has its name and shape; nothing is allocated."""
    with torch.device("meta"):
        config = transformers.ResNetConfig(depths=depths, num_labels=1000)
        tensors = transformers.ResNetForImageClassification(config).state_dict()
    theirs = {key: tuple(leaf.shape) for key, leaf in tensors.items() if not key.endswith(COUNTER)}
    model = presets.make(name, 1000)
    shapes = presets.variable_shapes(model, (224, 224, 3))
    ours = tensor_mappings(shapes, tensor_rules(model, "transformers"), FUSED)
    assert {key: mapping.file_shape for key, mapping in ours.items()} == theirs
