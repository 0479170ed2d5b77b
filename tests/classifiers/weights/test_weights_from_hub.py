"""Repositories of the Hub, from a server on this machine that answers as the Hub does."""

import threading

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from classifiers.clip.run import ClipRun
from classifiers.weights.__main__ import run
from launch.runtime.run import Run
from tests.parity.transformers_models import MODELS
from tests.support import tiny_clips
from tests.support.clip_vocabulary import write_tokenizer
from tests.support.fake_hub import FakeHub, files
from tests.support.tiny_clips import LENGTH


@pytest.fixture
def hub(tmp_path, monkeypatch):
    source = tiny_clips.save(tiny_clips.clip(), tmp_path / "clip")
    content = files(source)
    words = files(write_tokenizer(tmp_path / "words", LENGTH))
    alone = {name: data for name, data in content.items() if name not in words}
    server = FakeHub(
        {
            "owner/clip": {
                "main": content | {"pytorch_model.bin": b"pickle", "onnx/config.json": b"{}"}
            },
            "owner/alone": {"main": alone},
            "owner/pickle": {"main": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}},
        }
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_repositories(hub, tmp_path, capsys):
    """As their files in a folder: the same run, and out again byte for byte."""
    argv = ["weights", "--from=transformers:owner/clip", f"--to={tmp_path / 'run'}"]
    assert run(argv) == 0
    argv = ["weights", f"--from=transformers:{tmp_path / 'clip'}", f"--to={tmp_path / 'same'}"]
    assert run(argv) == 0
    loaded, expected = ClipRun.open(tmp_path / "run"), ClipRun.open(tmp_path / "same")
    assert loaded.digest == expected.digest
    assert loaded.tokenizer(["cat"]).tolist() == expected.tokenizer(["cat"]).tolist()
    imported = Run.open(tmp_path / "run").config.imported
    assert imported["from"] == "owner/clip" and len(imported["commit"]) == 40
    downloaded = {name.removeprefix("owner/clip/") for name in hub.downloads}
    assert downloaded == set(files(tmp_path / "clip"))
    argv = ["weights", f"--from={tmp_path / 'run'}", f"--to=transformers:{tmp_path / 'out'}"]
    assert run(argv) == 0
    assert files(tmp_path / "out") == files(tmp_path / "clip")


def test_a_tokenizer_of_another_repository(hub, tmp_path):
    argv = ["weights", "--from=transformers:owner/alone", f"--to={tmp_path / 'run'}"]
    assert run([*argv, "--tokenizer=owner/clip"]) == 0
    assert ClipRun.open(tmp_path / "run").tokenizer(["cat"]).shape == (1, LENGTH)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/unknown", "no such repository that you may read"),
        ("owner/pickle", "pytorch_model.bin is a pickle"),
        ("owner/clip.safetensors", "no such file or folder"),
        ("gs://owner/clip", "must be on this machine, or owner/name of the Hub"),
    ],
)
def test_wrong_repositories(name, said, hub, tmp_path, capsys):
    target = tmp_path / "run"
    assert run(["weights", f"--from=transformers:{name}", f"--to={target}"]) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line and "Fetching" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and name in lines[0], err
    assert said in lines[0]
    assert not target.exists()


def test_no_weights_are_downloaded_for_a_target_that_is_used(hub, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/file").touch()
    assert run(["weights", "--from=transformers:owner/clip", f"--to={tmp_path / 'run'}"]) == 2
    assert f"{tmp_path / 'run'}" in capsys.readouterr().err
    assert hub.downloads == ["owner/clip/config.json"]


def test_a_classifier(hub, tmp_path):
    """At a revision, in several files with an index."""
    kind, config = MODELS["ViT"]
    kind(config).save_pretrained(tmp_path / "vit", max_shard_size="2kB")
    content = files(tmp_path / "vit")
    assert "model.safetensors.index.json" in content
    hub.repositories["owner/vit"] = {"main": {}, "v2": content}
    flags = ["--pixels=plain", f"--to={tmp_path / 'run'}"]
    assert run(["weights", "--from=transformers:owner/vit@v2", *flags]) == 0
    argv = ["weights", f"--from={tmp_path / 'run'}", f"--to=transformers:{tmp_path / 'out'}"]
    assert run(argv) == 0
    written = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    parts = map(safetensors.numpy.load_file, (tmp_path / "vit").glob("*.safetensors"))
    expected = {name: tensor for part in parts for name, tensor in part.items()}
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
