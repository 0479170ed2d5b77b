"""Whole stages against diffusers' pipelines: same weights, same text states, same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from imagen_ft import weights
from imagen_ft.cascade.imported import as_imported
from imagen_ft.diffusion.from_config import make_denoiser, make_stage
from imagen_ft.diffusion.stage import CONDITION_STEP
from tests.parity.torch_weights import relative_error
from tests.parity.weights_models import TEXT_WIDTH, tiny_unet
from tests.support.diffusers_pipelines import IF, LEVEL, make_theirs, to_torch
from tests.support.slow import first_fast

SIZE, LOW, IMAGES, STEPS = 8, 4, 2, 6


def make_ours(folder, number, guidance_weight):
    """A stage and its variables, from the files that diffusers has written, as a task makes it."""
    model, params = weights.load_unet(folder)
    fields = (
        "block_out_channels",
        "layers_per_block",
        "attention",
        "cross_attention_dim",
        "time_embedding_dim",
        "attention_head_dim",
        "pooling_heads",
        "skip_time_act",
        "out_scale",
    )
    config = dict(
        size=SIZE,
        low_size=LOW if number == 2 else 0,
        channels=3,
        schedule="squaredcos_cap_v2",
        learned_variance=True,
        upsampling="bilinear_corners",
        unet={field: getattr(model, field) for field in fields},
    )
    sampler = dict(name="ddpm", num_steps=STEPS, logvar_coeff="learned", spacing="leading")
    sampling = dict(
        sampler=sampler,
        guidance_weight=guidance_weight,
        threshold_percentile=95.0,
        threshold_maximum=1.5,
        noise_augmentation=(LEVEL + 1) / 1000,
    )
    entry = dict(run=str(folder), stage=config, **sampling)
    entry = as_imported(ConfigDict(dict(stages=dict(only=entry)))).stages.only
    denoiser = make_denoiser(entry.stage)
    assert denoiser.model == model
    return make_stage(entry, denoiser), {"params": params}


@pytest.mark.parametrize(
    ("number", "guidance_weight", "variance_type"),
    first_fast(
        [
            (2, 4.0, "learned_range"),
            (2, 1.0, "learned_range"),
            (1, 4.0, "learned_range"),
            # DreamBooth's IF: of the network's variance nothing is learned.
            (1, 1.0, "fixed_small"),
        ]
    ),
)
def test_pipeline(number, guidance_weight, variance_type, tmp_path, monkeypatch, capsys):
    unet = tiny_unet(number)
    unet.save_pretrained(tmp_path / "unet")
    pipeline = make_theirs(unet, number, variance_type)
    pipeline.scheduler.save_pretrained(tmp_path / "scheduler")
    rng = np.random.default_rng(number)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    # Of the base each image has a negative prompt of its own.
    text, null = draw(IMAGES, 5, TEXT_WIDTH), draw(IMAGES if number == 1 else 1, 5, TEXT_WIDTH)
    low = np.tanh(draw(IMAGES, LOW, LOW, 3))
    noise = draw(STEPS + 2, IMAGES, SIZE, SIZE, 3)  # the last one is the condition's

    # diffusers draws the start, the condition, then the steps.
    order = [0, *([STEPS + 1] if number == 2 else []), *range(STEPS, 0, -1)]
    drawn = iter(order)
    take = lambda *_, **__: to_torch(noise[next(drawn)])  # noqa: E731
    module = "pipeline_if" if number == 1 else "pipeline_if_superresolution"
    monkeypatch.setattr(f"{IF}.{module}.randn_tensor", take)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", take)
    options = dict(image=to_torch(low), noise_level=LEVEL) if number == 2 else {}
    expected = pipeline(
        **options,
        height=SIZE,
        width=SIZE,
        num_inference_steps=STEPS,
        guidance_scale=guidance_weight,
        prompt_embeds=torch.from_numpy(text),
        negative_prompt_embeds=torch.from_numpy(np.broadcast_to(null, text.shape).copy()),
        output_type="pt",
    ).images.permute(0, 2, 3, 1)

    stage, variables = make_ours(tmp_path, number, guidance_weight)
    said = "logvar_coeff: 0.0 replaces 'learned', as the scheduler of"
    assert (said in capsys.readouterr().err) == (variance_type == "fixed_small")
    row = lambda step: jnp.asarray(noise)[jnp.where(step == CONDITION_STEP, STEPS + 1, step)]  # noqa: E731
    run = jax.jit(lambda low: stage.run(variables, row, text, null, low)[0])
    found = run(jnp.asarray(low) if number == 2 else None)
    assert relative_error(found, expected) <= 1e-3
    assert expected.abs().mean() > 0.1
