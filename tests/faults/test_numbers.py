"""Numbers that nothing can be done with: one line that names the field, before a run is begun."""

import dataclasses
import typing

import pytest

import classifiers.models.presets
import classifiers.train
import imagen_ft.finetune
import imagen_ft.generate
import imagen_ft.models.presets
import imagen_ft.sample
from launch.errors import InputError
from launch.runtime.limits import make_module
from tests.support import ROOT, commands

DIGITS = ROOT / "configs" / "digits"
FINETUNE = imagen_ft.finetune.main, f"{DIGITS / 'pretrain_base4.py'}:runlocal"
TRAIN = classifiers.train.main, f"{DIGITS / 'classifier.py'}:arm=real,runlocal"
GENERATE = imagen_ft.generate.main, f"{DIGITS / 'generate.py'}:runlocal"
SAMPLE = imagen_ft.sample.main, f"{DIGITS / 'sample.py'}:runlocal"
BASE4 = "stages.base4"
# What is overridden, and what is said of it, by command.
NUMBERS = {
    FINETUNE: [
        ("keep_checkpoints=0", "config.keep_checkpoints must be at least 1, got 0"),
        (f"optimizer.warmup_steps={10**13}", "optimizer.warmup_steps must be at most"),
        (f"seed={2**64}", "config.seed must be at most 4294967295, got 18446744073709551616"),
        ("stage.size=0", "stage.size must be at least 1, got 0"),
        ("stage.low_size=-1", "stage.low_size must be at least 0, got -1"),
        ("stage.channels=-1", "stage.channels must be at least 1, got -1"),
        ("stage.unet.num_groups=0", "stage.unet.num_groups must be at least 1, got 0"),
        ("stage.unet.num_groups=5", "stage.unet: its fields do not fit together"),
        ("stage.unet.pooling_heads=3", "stage.unet: its fields do not fit together"),
        ("stage.unet.attention_head_dim=0", "unet.attention_head_dim must be at least 1, got 0"),
        (
            "stage.unet.cross_attention_dim=-4",
            "unet.cross_attention_dim must be at least 1, got -4",
        ),
        ("stage.unet.layers_per_block=0", "stage.unet.layers_per_block must be at least 1, got 0"),
        (
            f"stage.unet.layers_per_block={10**6}",
            "layers_per_block must be at most 1000, got 1000000",
        ),
        (
            "stage.unet.block_out_channels=()",
            "block_out_channels must hold at least one value, got ()",
        ),
        (f"stage.unet.block_out_channels=({10**9},)", "block_out_channels must be at most"),
        (
            "stage.unet.dtype=int32",
            "stage.unet.dtype must be a type such as float32 or bfloat16, got int32",
        ),
        (
            "stage.unet.dtype=float33",
            "stage.unet.dtype must be a type such as float32 or bfloat16, got float33",
        ),
        (
            "stage.unet.dtype=float64",
            "stage.unet.dtype must be a type such as float32 or bfloat16, got float64",
        ),
        ("text.max_length=0", "text.max_length must be at least 1, got 0"),
        (f"text.max_length={10**9}", "text.max_length must be at most"),
        (f"text.seed={2**64}", "text.seed must be at most"),
        ("text.model.d_model=0", "text.model.d_model must be at least 1, got 0"),
        ("text.model.num_layers=0", "text.model.num_layers must be at least 1, got 0"),
        (
            f"text.model.num_layers={10**6}",
            "text.model.num_layers must be at most 1000, got 1000000",
        ),
    ],
    TRAIN: [
        ("model.width=0", "model.width must be at least 1, got 0"),
        (f"model.width={10**9}", "model.width must be at most 131072, got 1000000000"),
        ("model.stage_sizes=(0,1)", "model.stage_sizes must be at least 1, got 0"),
        ("model.momentum=nan", "model.momentum must be a finite number of at least 0, got nan"),
        ("model.momentum=1.5", "model.momentum must be in [0, 1), got 1.5"),
        ("model.dtype=int8", "model.dtype must be a type such as float32 or bfloat16, got int8"),
        ("keep_checkpoints=0", "config.keep_checkpoints must be at least 1, got 0"),
        (
            f"augment={{'size':{10**9}}}",
            "size must be a whole number from 1 to 65536, got 1000000000",
        ),
    ],
    GENERATE: [
        (f"seed={2**64}", "config.seed must be at most"),
        ("copies=-1", "config.copies must be at least 1, got -1"),
        ("images_per_shard=-1", "config.images_per_shard must be at least 0, got -1"),
        (f"batch_size={10**13}", "config.batch_size must be at most"),
        (f"{BASE4}.sampler.num_steps={10**11}", "sampler.num_steps must be at most"),
        (f"{BASE4}.stage.unet.layers_per_block=0", "layers_per_block must be at least 1, got 0"),
    ],
    SAMPLE: [
        ("seed=-1", "config.seed must be at least 0, got -1"),
        (f"images_per_prompt={10**12}", "config.images_per_prompt must be at most"),
    ],
}
CASES = [(*command, *case) for command, cases in NUMBERS.items() for case in cases]


@pytest.mark.parametrize(
    ("task", "config", "override", "said"), CASES, ids=[f"{c[0].__module__}-{c[2]}" for c in CASES]
)
def test_numbers_that_cannot_work(tmp_path, capsys, task, config, override, said):
    run = tmp_path / "run"
    assert commands.run(task, config, run, f"--config.{override}") == 2
    out, err = capsys.readouterr()
    assert out == "" and not run.exists()
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    ("command", "override"),
    [(FINETUNE, "keep_checkpoints=0"), (TRAIN, "keep_checkpoints=0"), (GENERATE, "copies=-1")],
    ids=["finetune", "train", "generate"],
)
def test_a_dry_run_sees_them_too(tmp_path, capsys, command, override):
    assert commands.run(*command, None, f"--config.{override}", "--dry_run") == 2
    assert "must be at least 1, got" in capsys.readouterr().err


PRESETS = {**imagen_ft.models.presets.PRESETS, **classifiers.models.presets.PRESETS}
NO_VALUES = ({}, -1, float("nan"), ("a",), [[1]])


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_of_every_network(name):
    kind, values = PRESETS[name].module, dict(PRESETS[name].fields)
    if "num_classes" in kind.__dataclass_fields__:
        values["num_classes"] = 10
    assert make_module(kind, values, "model") == kind(**values)
    fields = [entry for entry in dataclasses.fields(kind) if entry.name not in ("parent", "name")]
    for entry in fields:
        if entry.type is typing.Any:
            continue  # A dtype, which `module_fields` looks at.
        numbers = {int, float} & {entry.type, *typing.get_args(entry.type)}
        wrong = [*NO_VALUES, True if numbers else 1, *(() if "None" in str(entry.type) else [None])]
        for value in wrong:
            with pytest.raises(InputError) as error:
                make_module(kind, {**values, entry.name: value}, "model")
            said = str(error.value)
            assert said.startswith(f"model.{entry.name} must ") and ", got " in said
            assert "\n" not in said
