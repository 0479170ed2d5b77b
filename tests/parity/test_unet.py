"""Our U-Net against diffusers', in the configurations of DeepFloyd IF."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from imagen_ft import weights
from tests.parity.torch_weights import randomize, relative_error
from tests.support.diffusers_unet import TEXT_WIDTH, TOKENS, diffusers_unet

# At half of it some norms have groups of four values: there diffusers itself is 2e-5 from float64.
SIZE = 16


def random_config(seed):
    """A tiny member of the family; what tells stage II from stage I is drawn field by field."""
    rng = np.random.default_rng(seed)
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    levels = (1, 2, 2, 3)[seed % 4]
    some = lambda *values: tuple(pick(*values) for _ in range(levels))  # noqa: E731
    return dict(
        out_channels=pick(3, 6),
        block_out_channels=some(64, 96),
        layers_per_block=pick(1, some(1, 2)),
        attention=some(True, False),
        cross_attention_dim=pick(32, 64, 96),
        time_embedding_dim=pick(0, 64, 96),
        attention_head_dim=pick(8, some(8, 16, 32)),
        num_groups=pick(8, 16, 32),
        pooling_heads=pick(2, 4, 8),
        noise_level=pick(False, True),
        skip_time_act=pick(False, True),
        time_act=pick(None, False, True),
        out_scale=pick(1.0, 1.41422712),
        mid_out_scale=pick(None, 1.2),
    )


CASES = {f"seed {seed}": random_config(seed) for seed in range(8)}


def test_the_cases_cover_the_family():
    found = {
        field: {config[field] if np.isscalar(config[field]) or config[field] is None else "levels"
                for config in CASES.values()}
        for field in CASES["seed 0"]
    }  # fmt: skip
    wanted = dict(
        out_channels={3, 6},
        layers_per_block={1, "levels"},
        attention_head_dim={8, "levels"},
        num_groups={8, 16, 32},
        noise_level={False, True},
        skip_time_act={False, True},
        time_act={None, False, True},
        out_scale={1.0, 1.41422712},
        mid_out_scale={None, 1.2},
    )
    assert {field: found[field] for field in wanted} == wanted
    assert {any(config["attention"]) for config in CASES.values()} == {False, True}


@pytest.mark.parametrize(
    "config",
    [
        # Eight would take a minute and a half.
        pytest.param(config, id=name, marks=[pytest.mark.slow] if name > "seed 0" else [])
        for name, config in CASES.items()
    ],
)
def test_output_and_gradient(config, tmp_path):
    """Through the files that diffusers writes and `load_unet` reads."""
    theirs = randomize(diffusers_unet(config), seed=0)
    theirs.save_pretrained(tmp_path)
    model, params = weights.load_unet(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, SIZE, SIZE, theirs.config.in_channels)).astype(np.float32)
    text = rng.normal(size=(2, TOKENS, TEXT_WIDTH)).astype(np.float32)
    cotangent = rng.normal(size=(2, SIZE, SIZE, config["out_channels"])).astype(np.float32)
    t = np.array([17.0, 803.0], np.float32)
    level = np.array([250.0, 0.0], np.float32) if config.get("noise_level") else None

    torch_x = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
    labels = None if level is None else torch.from_numpy(level)
    expected = theirs(torch_x, torch.from_numpy(t), torch.from_numpy(text), labels).sample
    expected.backward(torch.from_numpy(cotangent.transpose(0, 3, 1, 2)))

    # The least optimisation by LLVM: compiling is most of this test's time.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(variables, x):
        output, back = jax.vjp(lambda x: model.apply(variables, x, t, text, level), x)
        return output, back(jnp.asarray(cotangent))[0]

    output, gradient = run({"params": params}, x)
    assert relative_error(output, expected.detach().permute(0, 2, 3, 1)) <= 1e-5
    # Two ways through the network in float32, each rounded anew.
    assert relative_error(gradient, torch_x.grad.permute(0, 2, 3, 1)) <= 2e-5
