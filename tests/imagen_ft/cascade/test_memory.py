"""Memory by phase: weights as they are, activations as a bound on what XLA takes."""

import gc

import jax
import jax.numpy as jnp
import pytest
from transformers import T5Config, T5EncoderModel

import imagen_ft.cascade.cascade as cascades
from imagen_ft import weights
from imagen_ft.cascade import Cascade, memory, memory_phases, memory_table
from imagen_ft.diffusion.from_config import make_stages
from launch.errors import InputError
from tests.imagen_ft.text import tiny_text
from tests.support import small_cascade

UNET = dict(
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention=(False, True),
    cross_attention_dim=32,
    attention_head_dim=16,
    num_groups=8,
    cross_num_groups=8,
    pooling_heads=2,
)


def config(**changes):
    fields = small_cascade.config()
    for entry in fields.stages.values():
        entry.run = "deepfloyd:somewhere"
    fields.update(changes)
    return fields


@pytest.mark.slow
def test_phases_of_a_cascade_with_t5(tmp_path):
    tiny_text.save(tmp_path)
    text = dict(weights=str(tmp_path), max_length=9, dtype="float16", resident=False)
    phases = {phase.name: phase for phase in memory_phases(config(text=text))}
    assert list(phases) == [
        "T5: load", "T5: embed the prompts", "base4: load", "sr8: load", "base4: draw", "sr8: draw"
    ]  # fmt: skip
    _, params = weights.load_t5(tmp_path, jnp.float16)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert phases["T5: load"].device == held < phases["T5: embed the prompts"].device
    assert phases["T5: load"].host > memory.RUNTIME
    stages = make_stages(config())
    sizes = [
        4 * sum(leaf.size for leaf in jax.tree.leaves(stage.denoiser.shapes((9, 16))["params"]))
        for stage in stages.values()
    ]
    # T5 has left before the first stage comes, unless it is to stay.
    assert [phases[f"{name}: load"].device for name in stages] == [sizes[0], sum(sizes)]
    stays = memory_phases(config(text=dict(text, resident=True)))
    assert [phase.device for phase in stays[2:4]] == [held + sizes[0], held + sum(sizes)]
    assert memory_table(config(text=text)).splitlines()[-1].split()[0] == "peak"


def test_t5_has_left_before_the_stages_come(tmp_path, monkeypatch):
    def load_stages(config, encoder, *_):
        assert {"a cat", "a dog", ""} == encoder._states.keys() and not encoder._loaded
        return tuple(make_stages(config).values()), ({}, {}), ("", "")

    tiny_text.save(tmp_path)
    monkeypatch.setattr(cascades, "load_stages", load_stages)
    # Of weights that are nowhere there is no scheduler to compare with.
    monkeypatch.setattr(cascades, "as_imported", lambda config: config)
    text = dict(weights=str(tmp_path), max_length=9, dtype="auto")
    prompts = ["a cat", "a dog", "a cat"]
    cascade = Cascade.load(config(text=text, class_names=()), prompts=prompts)
    assert cascade.config.text.dtype == "bfloat16"
    with pytest.raises(InputError, match="prompt 1: 'a cat' is not a class"):
        Cascade.load(config(text=text, class_names=("dog",)), prompts=prompts)


def test_activations_are_a_bound_on_what_xla_takes():
    fields = config()
    del fields.stages.sr8
    base = fields.stages.base4
    base.stage = dict(size=32, low_size=0, channels=3, schedule="cosine", unet=UNET)
    [stage] = make_stages(fields).values()
    shapes = stage.denoiser.shapes((5, 16))
    batch = 4
    inputs = jnp.zeros((batch, 32, 32, 3)), jnp.float32(0.5), jnp.zeros((batch, 5, 16))

    def predict(variables, x, t, text):
        texts = stage._texts(text, text[:1], None)
        return stage._make_denoise(variables, texts, None, None)(x, t)

    options = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(predict).lower(shapes, *inputs).compile(compiler_options=options)
    taken = compiled.memory_analysis().temp_size_in_bytes
    bound = batch * memory._activations(stage, 5)
    assert taken <= bound < 8 * taken


@pytest.mark.slow
def test_deepfloyd_if_on_a_free_gpu():
    """IF-I-M and IF-II-M with T5-XXL: a T4 has 16 GB, its host 12."""
    phases = memory_phases("configs/deepfloyd/sample.py:hub")
    assert 9.4e9 < phases[0].device < 9.6e9
    assert max(phase.device for phase in phases) < 14e9
    assert max(phase.host for phase in phases) < 11e9


def peak():
    """The most memory since it was last asked for, in bytes."""
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM")]
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return int(line.split()[1]) * 1024


def test_t5_is_read_tensor_by_tensor(tmp_path):
    """Of files in float32, much larger than what their reading may take beside the parameters."""
    fields = dict(d_model=512, d_kv=64, d_ff=2048, num_layers=12, num_heads=8, vocab_size=400)
    model = T5EncoderModel(T5Config(**fields, feed_forward_proj="gated-gelu"))
    model.save_pretrained(tmp_path / "text_encoder", max_shard_size="16MB")
    del model
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 10
    _, shapes = weights.open_t5(tmp_path)
    gc.collect()
    peak()
    before = peak()
    _, params = weights.load_t5(tmp_path, jnp.float16)
    taken = peak() - before
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    # On a CPU the parameters are the process's too. Its allocator has some slack.
    assert taken < held + memory._reading(shapes, jnp.dtype(jnp.float16)) + 30e6 < 1.7 * held
