"""Repositories of the Hub, from a server on this machine that answers as the Hub does."""

import json
import os
import subprocess
import sys
import threading

import pytest

from tests.imagen_ft.weights.tiny_weights import tensors, write_part, write_pipeline
from tests.support import ROOT
from tests.support.fake_hub import TOKEN, FakeHub, files

CLIENT = "tests.imagen_ft.weights.weights_hub_client"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The server, and a function that lets the client ask it."""
    folder = tmp_path_factory.mktemp("hub")
    pipeline = write_pipeline(folder / "pipeline", variant="fp16", files=2)
    write_part(pipeline / "unet", "unet", variant="bf16")
    content = files(pipeline) | {"unet/README.md": b"", "unet/pytorch_model.bin": b"pickle"}
    write_part(pipeline / "unet-fp16", "unet")
    arrays = {name: -value for name, value in tensors("unet").items()}
    write_part(pipeline / "v2", "unet", arrays=arrays)
    second = write_part(folder / "second/unet", "unet", variant="fp16", arrays=arrays).parent
    pickle = {
        "text_encoder/pytorch_model.bin": b"",
        "text_encoder/config.json": b'{"model_type":1}',
    }
    server = FakeHub(
        {
            "owner/if": {"main": content, "v2": files(second)},
            "owner/gated": {"main": content},
            "owner/empty": {"main": {"README.md": b""}},
            "owner/pickle": {"main": pickle},
            "owner/vae": {"main": {**files(write_part(folder / "vae", "vae")), "vae.ckpt": b""}},
        }
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", CLIENT, *arguments],
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(folder / "home"),
                **environment,
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    yield server, ask, pipeline, folder
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_repositories(hub):
    server, ask, pipeline, folder = hub
    answer = ask(str(pipeline), str(folder))
    assert answer["same"] and answer["revision"] and answer["imported"] and answer["cached"]
    assert answer["tokenizer"] == ["spiece.model", "tokenizer_config.json"]
    assert answer["digest"][0] == answer["digest"][1]
    # Of the one variant that was asked for (v2 has one file), and once.
    unet = [name for name in server.downloads if "/unet/" in name and name.startswith("owner/if/")]
    assert sorted(unet) == [
        "owner/if/unet/config.json",
        "owner/if/unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "owner/if/unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        "owner/if/unet/diffusion_pytorch_model.fp16.safetensors",
        "owner/if/unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    ]
    # An auto-encoder in a repository of its own; what is beside its files stays there.
    assert answer["alone"] == 3
    assert sorted(name for name in server.downloads if name.startswith("owner/vae/")) == [
        "owner/vae/config.json",
        "owner/vae/diffusion_pytorch_model.safetensors",
    ]
    said = {
        "owner/gated": f"is gated; accept its licence at http://127.0.0.1:{server.server_port}/owner",
        "owner/unknown": "no such repository that you may read",
        "owner/if@v9": "has no such revision",
        "owner/broken": "answered 500",
        "owner/empty": "has no unet",
        "variants": "weights without a variant, only bf16 and fp16; choose one of these",
        "pickle": "pytorch_model.bin is a pickle",
        "offline": "no network",
        "unreachable": "no network",
    }
    for name, words in said.items():
        assert words in answer[name] and "\n" not in answer[name], (name, answer[name])


@pytest.mark.slow
def test_a_token_opens_a_gated_repository(hub):
    _, ask, _, _ = hub
    assert ask(HF_TOKEN=TOKEN) == {"gated": "loaded"}
