"""What is wrong with weights is said in one line, and nothing is written."""

import fcntl
import json
import re
import shutil
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest

from imagen_ft import weights
from imagen_ft.weights import loading
from imagen_ft.weights.__main__ import main, run
from imagen_ft.weights.importing import import_weights
from imagen_ft.weights.scheduler_config import scheduler_settings
from launch.errors import InputError
from launch.files import read_object
from launch.runtime.checkpoints import checkpoint
from launch.runtime.run import Run
from tests.imagen_ft.weights.tiny_weights import (
    CONFIGS,
    SCHEDULER,
    tensors,
    write_json,
    write_part,
    write_pipeline,
)

UNET_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("weights") / "pipeline")


@pytest.fixture(scope="module")
def imported(pipeline):
    main(["weights", f"--from=deepfloyd:{pipeline}", f"--to={pipeline.parent}/imported"])
    return pipeline.parent / "imported"


def assert_fails(path, said, part="unet", **arguments):
    """Loading and importing say the same one line; importing leaves nothing behind."""
    load = weights.load_unet if part == "unet" else weights.load_t5
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError, match=said) as error:
        load(path, **arguments)
    assert "\n" not in str(error.value)
    command = ["weights", f"--from=deepfloyd:{path}", f"--to={path.parent}/to", f"--part={part}"]
    with pytest.raises(InputError, match=said):
        main([*command, *(f"--{name}={value}" for name, value in arguments.items())])
    assert sorted(path.parent.iterdir()) == before


def test_every_form_of_the_files(tmp_path):
    """One file or several, of a variant or not, all hold the same; the variant asked for counts."""
    expected = write_part(tmp_path / "one", "unet")
    for variant, files in ((None, 3), ("fp16", 1), ("bf16", 3)):
        folder = tmp_path / f"{variant}{files}"
        write_part(folder, "unet", variant, files)
        other = {name: -value for name, value in tensors("unet").items()}
        write_part(folder, "unet", "other", 1, arrays=other)
        model, params = weights.load_unet(folder, variant=variant)
        expected_model, expected_params = weights.load_unet(expected)
        assert model == expected_model
        jax.tree.map(np.testing.assert_array_equal, params, expected_params)


def test_types(tmp_path):
    arrays = tensors("text_encoder", "bfloat16")
    arrays["shared.weight"] = arrays["shared.weight"].astype(np.float16)
    write_part(tmp_path, "text_encoder", arrays=arrays)
    for dtype, of_most, of_one in (
        (None, "float32", "float32"),
        ("stored", "bfloat16", "float16"),
        ("float16", "float16", "float16"),
    ):
        params = weights.load_t5(tmp_path, dtype)[1]
        assert params["final_layer_norm"]["weight"].dtype == of_most
        assert params["shared"]["embedding"].dtype == of_one


@pytest.mark.parametrize("names", [("embed",), ("shared", "embed")], ids=["second name", "both"])
def test_the_tied_embedding_of_t5(tmp_path, names):
    arrays = tensors("text_encoder")
    matrix = arrays.pop("shared.weight")
    called = {"shared": "shared.weight", "embed": "encoder.embed_tokens.weight"}
    arrays |= {called[name]: matrix for name in names}
    write_part(tmp_path / "saved/text_encoder", "text_encoder", arrays=arrays)
    params = weights.load_t5(tmp_path / "saved")[1]
    np.testing.assert_array_equal(params["shared"]["embedding"], matrix)
    main(["weights", f"--from=deepfloyd:{tmp_path}/saved", f"--to={tmp_path}/imported"])
    main(["weights", f"--from={tmp_path}/imported", f"--to=deepfloyd:{tmp_path}/exported"])
    name = "text_encoder/model.safetensors"
    assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()

    if len(names) == 2:
        arrays[called["embed"]] = matrix + 1
        write_part(tmp_path / "saved/text_encoder", "text_encoder", arrays=arrays)
        assert_fails(
            tmp_path / "saved", "embed_tokens.weight and shared.weight .* differ", "text_encoder"
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            dict(conv_out=None),
            r"the tensor conv_out\.weight of the model of its config\.json is missing",
        ),
        (dict(extra=np.zeros(3, np.float32)), r"no tensor extra\.weight \(1 too many\)"),
        (
            dict(conv_out=np.zeros((3, 32, 3, 3), np.float32)),
            r"conv_out\.weight must have .*got \(3, 32, 3, 3\)",
        ),
        (
            dict(conv_out=np.zeros((6, 32, 3, 3), np.int32)),
            r"conv_out\.weight must be one of F64, F32, F16, BF16, got I32",
        ),
    ],
    ids=["missing", "extra", "shape", "type"],
)
def test_tensors_that_do_not_fit(tmp_path, change, said):
    arrays = tensors("unet")
    for name, value in change.items():
        arrays.pop(f"{name}.weight", None)
        if value is not None:
            arrays[f"{name}.weight"] = value
    assert_fails(write_part(tmp_path / "unet", "unet", arrays=arrays), said)


@pytest.mark.parametrize("number", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_that_are_not_finite(tmp_path, number, dtype):
    arrays = tensors("unet", dtype)
    arrays["conv_out.weight"][5, 31, 2, 2] = number
    said = rf"{UNET_FILE}: the tensor conv_out\.weight has NaN or infinity"
    assert_fails(write_part(tmp_path / "unet", "unet", arrays=arrays), said)


UNIMPLEMENTED = dict(
    _class_name="UNet2DModel",
    act_fn="silu",
    addition_embed_type="text_image",
    addition_time_embed_dim=256,
    attention_head_dim=[16, 0],
    addition_embed_type_num_heads=0,
    attention_type="gated",
    block_out_channels=[48],
    center_input_sample=True,
    class_embed_type="projection",
    class_embeddings_concat=True,
    conv_in_kernel=1,
    conv_out_kernel=1,
    cross_attention_dim=[32, 64],
    cross_attention_norm="layer_norm",
    down_block_types=["CrossAttnDownBlock2D"],
    downsample_padding=0,
    dropout=0.1,
    dual_cross_attention=True,
    encoder_hid_dim=None,
    encoder_hid_dim_type="image_proj",
    flip_sin_to_cos=False,
    freq_shift=1,
    layers_per_block=[1, 2],
    mid_block_only_cross_attention=True,
    mid_block_scale_factor=0,
    mid_block_type="UNetMidBlock2DCrossAttn",
    norm_eps=1e-6,
    norm_num_groups=None,
    num_attention_heads=4,
    num_class_embeds=10,
    only_cross_attention=True,
    projection_class_embeddings_input_dim=8,
    resnet_out_scale_factor=0,
    resnet_time_scale_shift="default",
    reverse_transformer_layers_per_block=[[1]],
    time_cond_proj_dim=8,
    time_embedding_act_fn="silu",
    time_embedding_type="fourier",
    timestep_post_act="silu",
    transformer_layers_per_block=2,
    up_block_types=["ResnetUpsampleBlock2D"],
    use_linear_projection=True,
    a_field_of_the_future="new",
)


@pytest.mark.parametrize("field", UNIMPLEMENTED)
def test_unets_that_are_not_implemented(field):
    changed = {**CONFIGS["unet"], field: UNIMPLEMENTED[field]}
    # Widths are found out by the network, or by the levels that lists are for.
    named = {"block_out_channels": "(its fields do not fit|down_block_types)"}
    with pytest.raises(InputError, match=rf"^x/config.json: {named.get(field, field)}") as error:
        loading.PARTS["unet"].build(changed, "x/config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "field",
    [
        "_class_name",
        "act_fn",
        "addition_embed_type",
        "block_out_channels",
        "cross_attention_norm",
        "down_block_types",
        "encoder_hid_dim",
        "mid_block_type",
        "resnet_time_scale_shift",
        "up_block_types",
    ],
)
def test_unets_whose_config_lacks_a_field(field):
    """The library's own default counts, which is another network."""
    lacking = {name: value for name, value in CONFIGS["unet"].items() if name != field}
    with pytest.raises(InputError, match=f"config.json: {field}"):
        loading.PARTS["unet"].build(lacking, "config.json")


def test_fields_that_change_nothing():
    neutral = dict(_diffusers_version="0.42.1", upcast_attention=True, sample_size=64, new=None)
    levels = len(CONFIGS["unet"]["block_out_channels"])
    neutral |= dict(only_cross_attention=[False], attention_head_dim=[16] * levels, dropout=0)
    build = loading.PARTS["unet"].build
    assert build({**CONFIGS["unet"], **neutral}, "")[0] == build(CONFIGS["unet"], "")[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "umt5"),
        ("feed_forward_proj", "relu"),
        ("dense_act_fn", "silu"),
        ("is_decoder", True),
        ("layer_norm_epsilon", 1e-5),
        ("quantization_config", {"bits": 8}),
        ("d_ff", "many"),
    ],
)
def test_t5s_that_are_not_implemented(tmp_path, field, value):
    folder = write_part(tmp_path / "t5", "text_encoder")
    write_json(folder / "config.json", {**CONFIGS["text_encoder"], field: value})
    assert_fails(
        folder, f"config.json: {field} must be .*got {re.escape(repr(value))}", "text_encoder"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction_type", "v_prediction"),
        ("beta_schedule", "linear"),
        ("variance_type", "learned"),
        ("trained_betas", [0.1]),
        ("rescale_betas_zero_snr", True),
        ("timestep_spacing", "karras"),
        ("steps_offset", 1),
        ("_class_name", "EulerDiscreteScheduler"),
    ],
)
def test_schedulers_that_are_not_ifs(field, value):
    with pytest.raises(InputError, match=f"x.json: {field} must be"):
        scheduler_settings({**SCHEDULER, field: value}, "x.json")


def test_the_settings_of_a_scheduler(tmp_path, pipeline):
    path = pipeline / "scheduler/scheduler_config.json"
    settings = scheduler_settings(read_object(path), path)
    assert settings == scheduler_settings(SCHEDULER, "")
    assert settings["num_train_timesteps"] == 1000 and settings["clip_sample"] is True
    assert settings["sample_max_value"] == 1.5 and settings["prediction_type"] == "epsilon"
    copy = shutil.copytree(pipeline, tmp_path / "pipeline")
    write_json(copy / "scheduler/scheduler_config.json", {**SCHEDULER, "prediction_type": "sample"})
    with pytest.raises(
        InputError, match=r"scheduler_config\.json: prediction_type must be .*got 'sample'"
    ):
        main(["weights", f"--from=deepfloyd:{copy}", f"--to={tmp_path}/imported"])
    assert not (tmp_path / "imported").exists()


def test_a_path_that_checkpoints_cannot_have(pipeline, tmp_path):
    with pytest.raises(InputError, match=r"under a path with '\*'"):
        main(["weights", f"--from=deepfloyd:{pipeline}", f"--to={tmp_path}/to*"])
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_missing_files(tmp_path):
    folder = write_part(tmp_path / "unet", "unet")
    file = folder / UNET_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert_fails(folder, f"{UNET_FILE} is not a complete safetensors file")
    file.write_bytes(whole[:100])
    assert_fails(folder, f"{UNET_FILE} is not a complete safetensors file")
    file.write_bytes(struct.pack("<Q", 2**60) + whole[8:])
    assert_fails(folder, f"{UNET_FILE} is not a complete safetensors file")
    file.rename(folder / "diffusion_pytorch_model.bin")
    assert_fails(folder, "diffusion_pytorch_model.bin is a pickle")
    (folder / "diffusion_pytorch_model.bin").unlink()
    assert_fails(folder, f"has no weights .*{UNET_FILE}")
    (folder / "config.json").unlink()
    assert_fails(folder, "has no unet")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        weights.load_unet(f"{tmp_path}/nowhere")


def test_damaged_indices(tmp_path):
    folder = write_part(tmp_path / "unet", "unet", files=2)
    index = folder / f"{UNET_FILE}.index.json"
    table = json.loads(index.read_text())
    second = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (folder / second).rename(folder / "elsewhere")
    assert_fails(folder, f"index.json lists the file {second}, which is missing")
    (folder / "elsewhere").rename(folder / second)
    del table["weight_map"]["conv_in.bias"]
    write_json(index, table)
    assert_fails(folder, r"disagree about the tensor conv_in\.bias")
    write_json(index, {})
    assert_fails(folder, "has no weight_map")
    write_json(index, {"weight_map": {"conv_in.bias": f"../unet/{second}"}})
    assert_fails(folder, "lists the file .*, which is missing")


def test_variants_that_are_not_there(tmp_path):
    folder = write_part(tmp_path / "unet", "unet", "fp16")
    write_part(folder, "unet", "bf16", files=2)
    assert_fails(folder, "weights without a variant, only bf16 and fp16; choose one of these")
    assert_fails(folder, "has no variant int8, only bf16 and fp16", variant="int8")


def test_an_import_is_a_finished_run(pipeline, imported):
    for part, load in (("unet", weights.load_unet), ("text_encoder", weights.load_t5)):
        expected_model, expected_params = load(pipeline)
        for path in (imported, imported / part):  # as a whole, and the run alone
            model, params = load(path)
            assert model == expected_model
            jax.tree.map(np.testing.assert_array_equal, params, expected_params)
        run = Run.open(imported / part)
        variables = run.variables(run.shapes())
        jax.tree.map(np.testing.assert_array_equal, variables, {"params": expected_params})
        # A text cache made with either belongs to both.
        assert weights.digest(imported, part) == weights.digest(pipeline, part)
    with pytest.raises(InputError, match="was imported from weights without a variant, not fp16"):
        weights.load_unet(imported, variant="fp16")
    with pytest.raises(InputError, match="has no text_encoder"):
        weights.load_t5(imported / "unet")


@pytest.mark.parametrize("damage", ["config", "folder"])
def test_a_part_that_should_be_there_is_not_left_out(pipeline, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy)
    if damage == "config":
        (copy / "unet/config.json").unlink()
    else:
        shutil.rmtree(copy / "unet")
        (copy / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(InputError, match=r"has no unet; .*--part=text_encoder leaves it out"):
        import_weights(str(copy), tmp_path / "import")
    assert not (tmp_path / "import").exists()
    assert import_weights(str(copy), tmp_path / "import", ["text_encoder"])


@pytest.mark.parametrize(
    "name", ["unet/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"]
)
def test_a_file_that_is_no_object(pipeline, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(pipeline, copy)
    (copy / name).write_text("[]")
    with pytest.raises(InputError, match=f"{name} must be a JSON object"):
        import_weights(str(copy), tmp_path / "import")
    assert not (tmp_path / "import").exists()


def test_folders_of_parts(pipeline, imported, monkeypatch, tmp_path):
    for part in ("tokenizer", "scheduler"):
        assert weights.part_folder(pipeline, part) == pipeline / part
        assert weights.part_folder(pipeline / part, part) == pipeline / part
        assert weights.part_folder(imported, part) == imported / "source" / part
    assert weights.part_folder(imported, "unet") == imported / "source/unet"
    with pytest.raises(InputError, match="has no tokenizer"):
        weights.part_folder(pipeline / "unet", "tokenizer")
    # Of an import in an object store the copies are copied once.
    monkeypatch.setattr("imagen_ft.weights.part_files.is_local", lambda path: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy = weights.part_folder(imported, "tokenizer")
    assert copy.is_relative_to(tmp_path) and weights.part_folder(imported, "tokenizer") == copy
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == {
        p.name: p.read_bytes() for p in (pipeline / "tokenizer").iterdir()
    }


def test_digests(pipeline, tmp_path):
    copy = shutil.copytree(pipeline, tmp_path / "copy")
    changed = {
        "unet": f"unet/{UNET_FILE}",
        "text_encoder": "text_encoder/config.json",
        "tokenizer": "tokenizer/spiece.model",
        "scheduler": "scheduler/scheduler_config.json",
    }
    for part, name in changed.items():
        before = weights.digest(copy, part)
        assert before == weights.digest(pipeline, part) == weights.digest(copy / part, part)
        (copy / name).write_bytes((copy / name).read_bytes()[:-1] + b" ")
        assert weights.digest(copy, part) != before


def test_an_import_again(pipeline, imported, tmp_path, capsys):
    command = ["weights", f"--from=deepfloyd:{pipeline}", f"--to={imported}"]
    stamp = (imported / "weights.json").stat().st_mtime_ns
    main(command)
    assert "already has this import" in capsys.readouterr().out
    assert (imported / "weights.json").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match=r"must be an empty folder, got .*imported"):
        main([*command, "--part=unet"])
    (tmp_path / "other").write_text("")
    with pytest.raises(InputError, match="must be an empty folder"):
        main([*command[:2], f"--to={tmp_path}"])
    with pytest.raises(InputError, match=r"must be a folder, got the file .*other"):
        main([*command[:2], f"--to={tmp_path}/other"])
    with pytest.raises(InputError, match="is a run or an import already"):
        main(["weights", f"--from=deepfloyd:{imported}", f"--to={tmp_path}/again"])


KILLED = """
import os, sys
from imagen_ft.weights.__main__ import main
from launch.runtime.checkpoints import checkpoint
save = checkpoint.save_inference
checkpoint.save_inference = lambda *args: (save(*args), os.kill(os.getpid(), 9))
main(sys.argv)
"""


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True], ids=["file system", "object store"])
def test_an_interrupted_import_is_made_anew(pipeline, tmp_path, monkeypatch, remote):
    command = ["weights", f"--from=deepfloyd:{pipeline}", f"--to={tmp_path}/imported"]
    if remote:
        monkeypatch.setattr("launch.runtime.atomic_folder.can_rename", lambda path: False)
        with monkeypatch.context() as patch:
            patch.setattr("launch.runtime.atomic_folder._empty", lambda folder: None)
            patch.setattr(checkpoint, "_content_digest", lambda tree: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                main(command)
    else:
        killed = subprocess.run([sys.executable, "-c", KILLED, *command[1:]], capture_output=True)
        assert killed.returncode == -9, killed.stderr
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["imported"] if remote else [".imported.unfinished"])
    with pytest.raises(InputError, match="imported"):
        weights.load_unet(tmp_path / "imported")
    main(command)
    assert [path.name for path in tmp_path.iterdir()] == ["imported"]
    assert not list((tmp_path / "imported").glob(".*"))
    weights.load_t5(tmp_path / "imported")


def test_two_imports_at_once(pipeline, tmp_path):
    folder = tmp_path / ".imported.unfinished"
    folder.mkdir()
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="in use by another process"):
            main(["weights", f"--from=deepfloyd:{pipeline}", f"--to={tmp_path}/imported"])


def test_an_export_that_fails_leaves_nothing(imported, tmp_path):
    copy = shutil.copytree(imported, tmp_path / "imported")
    command = ["weights", f"--from={copy}", f"--to=deepfloyd:{tmp_path}/exported"]
    header = copy / f"source/unet/{UNET_FILE}.header"
    header.write_bytes(header.read_bytes().replace(b'"pt"', b'"tf"'))
    with pytest.raises(InputError, match=f"unet/{UNET_FILE} is not what was imported"):
        main(command)
    array = max((copy / "unet").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = array.read_bytes()
    array.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match="is damaged"):
        main(command)
    assert [path.name for path in tmp_path.iterdir()] == ["imported"]
    for source, said in (
        ("nowhere", "no such folder"),
        ("imported/source", "must be an import or a run"),
    ):
        with pytest.raises(InputError, match=said):
            main([command[0], f"--from={tmp_path}/{source}", command[2]])


def test_numbers_too_large_for_half_precision(tmp_path):
    arrays = tensors("unet")
    arrays["conv_in.bias"][0] = 1e5
    write_part(tmp_path / "saved/unet", "unet", arrays=arrays)
    main(["weights", f"--from=deepfloyd:{tmp_path}/saved", f"--to={tmp_path}/imported"])
    command = ["weights", f"--from={tmp_path}/imported", f"--to=deepfloyd:{tmp_path}/exported"]
    with pytest.raises(InputError, match=r"conv_in\.bias of .* does not fit float16"):
        main([*command, "--variant=fp16"])
    main([*command, "--variant=bf16"])
    assert (tmp_path / "exported/unet/diffusion_pytorch_model.bf16.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--from is missing"),
        (["--from=deepfloyd:a"], "--to is missing"),
        (["--from=deepfloyd:", "--to=b"], "--from is missing"),
        (["--from=a", "--to=b"], "must begin with deepfloyd:"),
        (["--from=deepfloyd:a", "--to=deepfloyd:b"], "must begin with deepfloyd:"),
        (
            ["--from=deepfloyd:a", "--to=b", "--part=prior"],
            "--part must be one of unet, text_enc",
        ),
        (["--from=deepfloyd:a", "--to=b", "--dtype=float16"], "--dtype is for exports"),
        (["--from=a", "--to=deepfloyd:b", "--part=unet"], "--part is for imports"),
        (
            ["--from=a", "--to=deepfloyd:gs://b"],
            "--to must be a local folder for safetensors, got gs://b",
        ),
        (["--from=a", "--to=deepfloyd:b", "--dtype=int8"], "command line: .*int8"),
        (["--form=a"], "command line: .*form.*--help"),
        (["a"], "command line: 'a' is not a flag"),
    ],
)
def test_wrong_command_lines(arguments, said):
    with pytest.raises(InputError, match=said):
        main(["weights", *arguments])


def test_the_command(tmp_path, capsys):
    """One line and exit code 2; help and success are 0."""
    command = [sys.executable, "-W", "error", "-m", "imagen_ft.weights"]
    done = subprocess.run(
        [*command, f"--from=deepfloyd:{tmp_path}/no", "--to=b"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert run(["weights", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "\n  --pipeline: " in shown and "--from=deepfloyd:DeepFloyd/IF-I-M-v1.0" in shown
