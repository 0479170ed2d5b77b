"""Our CLIP and SigLIP against transformers', through the files that it and others write."""

import filecmp
import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from classifiers.clip.run import ClipRun
from classifiers.models import clip
from classifiers.weights.__main__ import run
from classifiers.weights.clip_rules import clip_mappings
from launch.runtime.checkpoints.tensor_mapping import check_fit
from launch.runtime.layers.layers import PIXELS
from tests.parity.torch_weights import randomize, relative_error
from tests.support import tiny_clips
from tests.support.clip_vocabulary import END, write_tokenizer
from tests.support.tiny_clips import LENGTH, SIZE

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
TOKENS = RNG.integers(0, END - 1, (2, LENGTH)).astype(np.int32)
# One text ends early; both begin with the start.
TOKENS[:, 0], TOKENS[0, 4:], TOKENS[1, -1] = END - 1, END, END


def command(*argv):
    return run(["weights", *map(str, argv)])


def imported(tmp_path, layout, source, *argv):
    """The run that an import makes."""
    target = tmp_path / "run"
    assert command(f"--from={layout}:{source}", f"--to={target}", *argv) == 0
    return ClipRun.open(target)


def torch_pixels(images, pixels="clip"):
    mean, std = (np.array(values, np.float32) for values in PIXELS[pixels])
    scaled = ((images + 1) / 2 - mean) / std
    return torch.from_numpy(scaled.astype(np.float32).transpose(0, 3, 1, 2).copy())


def ours(clip_run, images=IMAGES):
    """Features of length 1 and logits."""
    apply = jax.jit(clip_run.model.apply)
    pairs = apply(clip_run.variables, images, TOKENS)
    return pairs.images, pairs.texts, pairs.logits()


def theirs(model):
    tokens = torch.from_numpy(TOKENS).long()
    output = model(input_ids=tokens, pixel_values=torch_pixels(IMAGES))
    return output.image_embeds, output.text_embeds, output.logits_per_image


def check(ours, theirs):
    for mine, peer in zip(ours, theirs, strict=True):
        assert relative_error(mine, peer.detach()) <= 1e-5


def same_files(one, other):
    """Both folders hold the same files, byte for byte."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


MODELS = {
    "clip": tiny_clips.clip,
    "clip of open_clip": lambda: tiny_clips.clip("gelu"),
    "siglip": tiny_clips.siglip,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "clip")) for n in MODELS]
)
def test_towers_logits_and_files(name, tmp_path):
    model = MODELS[name]()
    source = tiny_clips.save(model, tmp_path / "source")
    clip_run = imported(tmp_path, "transformers", source)
    check(ours(clip_run), theirs(model))
    assert command(f"--from={tmp_path / 'run'}", f"--to=transformers:{tmp_path / 'back'}") == 0
    same_files(source, tmp_path / "back")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["openai", pytest.param("open_clip", marks=pytest.mark.slow)])
def test_files_of_openai_and_open_clip(layout, tmp_path):
    """What transformers computes of the same weights; half precision keeps its bytes."""
    model = tiny_clips.clip("quick_gelu" if layout == "openai" else "gelu", num_heads=1).half()
    tensors = tiny_clips.openai_tensors(model, torch.float16)
    tensors["context_length"] = torch.tensor(LENGTH)
    source = tmp_path / "source"
    words = write_tokenizer(tmp_path / "words" if layout == "openai" else source, LENGTH)
    if layout == "openai":
        source.mkdir()
        file = source / "tiny.safetensors"
        safetensors.torch.save_file(tensors, file)
        clip_run = imported(tmp_path, layout, file, f"--tokenizer={words}")
    else:
        text = dict(width=16, heads=1, layers=2, context_length=LENGTH, vocab_size=END + 1)
        image = dict(width=20, head_width=20, layers=2, patch_size=4, image_size=SIZE)
        text, image = dict(text, mlp_ratio=1.5), dict(image, mlp_ratio=1.4)
        config = dict(model_cfg=dict(embed_dim=10, vision_cfg=image, text_cfg=text))
        (source / "open_clip_config.json").write_text(json.dumps(config))
        safetensors.torch.save_file(tensors, source / "open_clip_model.safetensors")
        clip_run = imported(tmp_path, layout, source)
    check(ours(clip_run), theirs(model.float()))
    assert clip_run.model.text.end_token == 2 and clip_run.tokenizer(["cat"]).shape == (1, LENGTH)
    back = tmp_path / "back"
    assert command(f"--from={tmp_path / 'run'}", f"--to={layout}:{back}") == 0
    names = [path.name for path in source.glob("*.safetensors")]
    assert filecmp.cmpfiles(source, back, names, shallow=False)[0] == names
    # And to another library's, which transformers opens.
    other = tmp_path / "other"
    assert command(f"--from={tmp_path / 'run'}", f"--to=transformers:{other}") == 0
    check(ours(clip_run), theirs(CLIPModel.from_pretrained(other).eval()))


@pytest.mark.slow
def test_residual_networks(tmp_path):
    """The image tower in plain PyTorch, with statistics of its own; and its tensors' names."""
    tower = randomize(tiny_clips.ClipResNet(), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, buffer in tower.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    tensors = {f"visual.{name}": value for name, value in tower.state_dict().items()}
    peer = tiny_clips.clip(num_heads=1)
    text = tiny_clips.openai_tensors(peer)
    tensors |= {name: value for name, value in text.items() if not name.startswith("visual.")}
    safetensors.torch.save_file(tensors, tmp_path / "tiny.safetensors")
    clip_run = imported(tmp_path, "openai", tmp_path / "tiny.safetensors")
    images = RNG.uniform(-1, 1, (3, 64, 64, 3)).astype(np.float32)
    expected = tower(torch_pixels(images)).detach()
    mine = ours(clip_run, images)
    check(mine[:1], [expected / expected.norm(dim=1, keepdim=True)])
    check(mine[1:2], theirs(peer)[1:2])
    assert command(f"--from={tmp_path / 'run'}", f"--to=openai:{tmp_path / 'back'}") == 0
    assert filecmp.cmp(tmp_path / "tiny.safetensors", tmp_path / "back/tiny.safetensors", False)
    assert command(f"--from={tmp_path / 'run'}", f"--to=transformers:{tmp_path / 'no'}") == 2


_WIDE = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
_LARGE = dict(
    hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24
)
FULL_SIZE = {
    "clip_vit_b32": ({}, dict(patch_size=32)),
    "clip_vit_b16": ({}, dict(patch_size=16)),
    "clip_vit_l14": (_WIDE, dict(_LARGE, patch_size=14)),
    "clip_vit_l14_336": (_WIDE, dict(_LARGE, patch_size=14, image_size=336)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "clip_vit_b32")) for n in FULL_SIZE]
)
def test_every_tensor_of_the_full_size(name):
    text, image = FULL_SIZE[name]
    width = 768 if text else 512
    with torch.device("meta"):
        config = CLIPConfig(text_config=text, vision_config=image, projection_dim=width)
        peer = CLIPModel(config)
    check_names(name, peer)


@pytest.mark.slow
def test_every_tensor_of_siglip():
    with torch.device("meta"):
        config = SiglipConfig(vision_config=dict(patch_size=16, image_size=224))
        peer = SiglipModel(config)
    check_names("siglip_b16", peer)


def check_names(name, peer):
    model, size = clip.make({"name": name}), clip.PRESETS[name].size
    shapes = clip.variable_shapes(model, (size, size, 3))
    peer_shapes = {name: tuple(tensor.shape) for name, tensor in peer.state_dict().items()}
    check_fit(clip_mappings(model, shapes, "transformers"), peer_shapes, "")


@pytest.mark.slow
def test_every_tensor_of_the_residual_network():
    with torch.device("meta"):
        tower = tiny_clips.ClipResNet((3, 4, 6, 3), 64, 224, 1024)
    shapes = clip.variable_shapes(clip.make({"name": "clip_rn50"}), (224, 224, 3))
    mappings = clip_mappings(clip.make({"name": "clip_rn50"}), shapes, "openai")
    peer = {
        f"visual.{name}": tuple(tensor.shape)
        for name, tensor in tower.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    check_fit({n: m for n, m in mappings.items() if n.startswith("visual.")}, peer, "")
