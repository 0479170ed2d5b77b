"""What test_weights_hub asks of the Hub at HF_ENDPOINT, as one JSON line."""

import json
import sys

import jax
import numpy as np
from huggingface_hub import constants

from imagen_ft import weights
from imagen_ft.weights.__main__ import main
from launch.errors import InputError
from launch.runtime.checkpoints import hub

COMMAND = "weights"


def attempt(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except InputError as error:
        return str(error)


def same(loaded, path):
    model, params = weights.load_unet(path)
    equal = jax.tree.map(np.array_equal, params, loaded[1])
    return loaded[0] == model and all(jax.tree.leaves(equal))


def ask(pipeline, folder):
    result = {}
    loaded = weights.load_unet("owner/if", variant="fp16")
    result["same"] = same(loaded, f"{pipeline}/unet-fp16")
    result["revision"] = same(weights.load_unet("owner/if@v2", variant="fp16"), f"{pipeline}/v2")
    result["tokenizer"] = sorted(
        path.name for path in weights.part_folder("owner/if", "tokenizer").iterdir()
    )
    result["digest"] = [weights.digest(path, "tokenizer") for path in ("owner/if", pipeline)]
    main([COMMAND, "--from=deepfloyd:owner/if", f"--to={folder}/imported", "--variant=fp16"])
    result["imported"] = same(weights.load_unet(f"{folder}/imported"), f"{pipeline}/unet-fp16")
    for name in ("owner/gated", "owner/unknown", "owner/if@v9", "owner/broken", "owner/empty"):
        result[name] = attempt(weights.load_unet, name)
    result["variants"] = attempt(weights.load_unet, "owner/if")
    result["pickle"] = attempt(weights.load_t5, "owner/pickle")
    result["alone"] = weights.load_part("vae", "owner/vae")[0].latent_channels
    hub.huggingface_hub.constants.HF_HUB_OFFLINE = True
    result["cached"] = same(weights.load_unet("owner/if", variant="fp16"), f"{pipeline}/unet-fp16")
    result["offline"] = attempt(weights.load_unet, "owner/other")
    constants.HF_HUB_OFFLINE = False
    constants.ENDPOINT = "http://127.0.0.1:9"  # nobody listens there
    result["unreachable"] = attempt(weights.load_unet, "owner/other")
    return result


def with_token():
    return {"gated": attempt(lambda: weights.load_unet("owner/gated", variant="fp16") and "loaded")}


if __name__ == "__main__":
    print(json.dumps(with_token() if len(sys.argv) == 1 else ask(*sys.argv[1:])))
