"""Adapters in and out of files, against diffusers with peft."""

import jax
import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.numpy import load_file, save_file

from imagen_ft import weights
from imagen_ft.weights.__main__ import main
from imagen_ft.weights.lora_file import FILE, read_lora
from launch.errors import InputError
from launch.runtime.layers.lora import make_lora
from tests.parity.torch_weights import relative_error
from tests.parity.weights_models import make_run, theirs, tiny_unet, unet_inputs

TARGETS = ["to_q", "to_k", "to_v", "add_k_proj", "to_out.0", "conv1", "time_emb_proj"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A U-Net, the file of its adapters, and what it computes with and without them."""
    folder, unet = tmp_path_factory.mktemp("lora"), tiny_unet(1)
    unet.save_pretrained(folder / "unet")
    before = theirs(unet, 1)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS))
    torch.manual_seed(0)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2)
    unet.save_lora_adapter(folder)
    return folder, before, theirs(unet, 1)


def output(model, params):
    return jax.jit(model.apply)({"params": params}, *unet_inputs(1))


@pytest.mark.slow
def test_their_adapters_compute_the_same(saved):
    folder, before, expected = saved
    model, params = weights.load_unet(folder / "unet")
    lora, adapters = read_lora(folder / FILE, model, params)
    assert relative_error(before, expected) > 1e-2
    assert relative_error(output(model, lora.merged(params, adapters)), expected) <= 1e-5


def test_rank_stabilised_adapters(saved, tmp_path):
    folder, _, _ = saved
    unet = tiny_unet(1)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=r"mid_block.*\.to_q", use_rslora=True)
    unet.add_adapter(config)
    module = unet.mid_block.attentions[0].to_q
    torch.nn.init.normal_(module.lora_B["default"].weight)
    unet.save_lora_adapter(tmp_path)
    _, adapters = read_lora(tmp_path / FILE, *weights.load_unet(folder / "unet"))
    found = adapters["mid_block_attentions_0"]["to_q"]
    expected = module.get_delta_weight("default").detach().numpy().T
    np.testing.assert_allclose(found["down"] @ found["up"], expected, rtol=1e-4, atol=1e-5)


def older(name):
    """A name as diffusers wrote it before 0.22, where each attention had a processor."""
    name = name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
    module, _, rest = name.partition(".lora.")
    parent, _, own = module.replace(".to_out.0", ".to_out").rpartition(".")
    return f"unet.{parent}.processor.{own}_lora.{rest}" if "attentions" in parent else name


@pytest.mark.parametrize("form", ["prefix", "older", "alphas"])
def test_other_forms_of_the_file_say_the_same(saved, tmp_path, form):
    folder, _, _ = saved
    tensors = load_file(folder / FILE)
    model, params = weights.load_unet(folder / "unet")
    expected = read_lora(folder / FILE, model, params)[1]
    if form == "older":
        tensors = {older(name): array for name, array in tensors.items()}
    elif form == "prefix":
        tensors = {f"unet.{name}": array for name, array in tensors.items()}
    # Without the metadata alpha is the rank, or the file says it for each.
    modules = [name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name]
    scale = 1.0 if form == "alphas" else 6 / 4
    up = ("lora_B.", "lora.up", "_lora.up")
    tensors = {n: a * scale if any(part in n for part in up) else a for n, a in tensors.items()}
    if form == "alphas":
        tensors |= {f"{module}.alpha": np.array(6.0, np.float32) for module in modules}
    save_file(tensors, tmp_path / "file.safetensors")
    found = read_lora(tmp_path / "file.safetensors", model, params)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_ours_compute_the_same_in_diffusers(saved, tmp_path):
    folder, before, _ = saved
    model, params = weights.load_unet(folder / "unet")
    fields, rng = dict(rank=2, alpha=3.0, targets=("to_", "conv1")), np.random.default_rng(0)
    lora = make_lora(fields, params)
    assert {module[-1] for module in lora.modules} >= {"to_q", "to_out_0", "conv1"}
    noise = lambda leaf: np.float32(0.2 * rng.normal(size=leaf.shape))  # noqa: E731
    adapters = jax.tree.map(noise, lora.shapes(params))
    run = make_run(tmp_path / "run", 1, adapters, lora=fields)
    main(["", f"--from={run}", f"--to=deepfloyd:{tmp_path}/adapters"])

    peer = tiny_unet(1)
    peer.load_lora_adapter(tmp_path / "adapters", prefix="unet", weight_name=FILE)
    expected = theirs(peer, 1)
    assert relative_error(before, expected) > 1e-2
    assert relative_error(output(model, lora.merged(params, adapters)), expected) <= 1e-5
    assert len(load_file(tmp_path / "adapters" / FILE)) == 2 * len(lora.modules)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("another network", "which is not a layer of this network; use adapters"),
        (
            "another width",
            r"file\.safetensors: down_blocks\.1\.attentions\.0\.to_q must have .*got \(4, 7\)",
        ),
        ("no up", r"must have the shape .*got \(0,\)"),
        ("more", "its tensor text_encoder.x is not an adapter of a U-Net"),
        ("none", "its tensor none is not an adapter of a U-Net"),
        ("NaN", "has NaN or infinity"),
        (
            "rank 0",
            r"file\.safetensors: down_blocks\.1\.attentions\.0\.to_q must have .*got \(0, 64\)",
        ),
        ("two alphas", r"alpha of .*to_q must be a finite number, got \[1.0, 1.0\]"),
        ("endless alpha", "alpha of .* must be a finite number, got inf"),
        ("cut", "is not a complete safetensors file"),
    ],
)
def test_wrong_files(saved, tmp_path, change, message):
    folder, _, _ = saved
    tensors = load_file(folder / FILE)
    name = next(name for name in tensors if "to_q.lora_A" in name)
    if change == "another network":
        tensors[f"other.{name}"] = tensors.pop(name)
    elif change == "another width":
        tensors[name] = tensors[name][:, :7]
    elif change == "no up":
        del tensors[name.replace("lora_A", "lora_B")]
    elif change == "more":
        tensors["text_encoder.x"] = np.zeros(3, np.float32)
    elif change == "none":
        tensors = {}
    elif change == "NaN":
        tensors[name] = np.full_like(tensors[name], np.nan)
    elif change == "rank 0":
        tensors[name] = tensors[name][:0]
    elif change == "two alphas":
        tensors[name.replace("lora_A.weight", "alpha")] = np.ones(2, np.float32)
    file, alpha = tmp_path / "file.safetensors", "1e999" if change == "endless alpha" else "4"
    save_file(tensors, file, {"lora_adapter_metadata": f'{{"lora_alpha": {alpha}}}'})
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    model, params = weights.load_unet(folder / "unet")
    with pytest.raises(InputError, match=message):
        read_lora(file, model, params)
