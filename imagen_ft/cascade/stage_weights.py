"""The weights of one stage: a run's, adapters merged into others, or public ones."""

import contextlib
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from imagen_ft import weights
from imagen_ft.diffusion.denoiser import Denoiser
from launch.errors import InputError
from launch.files import json_digest
from launch.runtime.devices.mesh import state_shardings, with_shardings
from launch.runtime.ema import MAIN
from launch.runtime.layers.lora import Lora, make_lora
from launch.runtime.run import STAGE, Run
from launch.runtime.types import Variables

# Before a path or a repository's name: these are weights from elsewhere, of whichever kind.
PUBLIC = ("deepfloyd:", "diffusers:")


def public_path(path: str) -> str:
    """The path without the prefix that says it holds weights from elsewhere."""
    return path.partition(":")[2] if path.startswith(PUBLIC) else path


def open_run(path: str) -> Run | None:
    """A run of imagen_ft.finetune; None where the path holds weights from elsewhere.

    'deepfloyd:' or 'diffusers:' before a path or a repository's name says that it does.

    Raises:
        InputError: there is nothing at the path.
    """
    if not path:
        raise InputError("run must be a run or weights, got ''; set it in the config")
    if path.startswith(PUBLIC):
        return None
    # Imports and single networks of diffusers have a config.json as well: its fields tell.
    folder = epath.Path(path)
    if folder.exists() and not (folder / "config.json").exists():
        return None
    run = Run.open(folder)
    return run if run.kind == STAGE else None


def variables_of(
    run: Run,
    denoiser: Denoiser,
    text_shape: tuple[int, int],
    mesh: Mesh | None = None,
    ema: str = MAIN,
    best: bool = False,
) -> Variables:
    """The variables that a stage of a finished run is sampled with.

    Adapters (`config.lora`) are merged into their base. For `ema` and `best` see `Run.variables`.

    Raises:
        InputError: see `Run.variables`; or the weights that a run adapts are gone or have changed.
    """
    abstract = _placed(denoiser.shapes(text_shape), mesh)
    if not run.config.get("lora"):
        return run.variables(abstract, ema, best)
    # A run of adapters holds these alone; its base is where the run found it.
    lora = make_lora(run.config.lora, abstract["params"])
    adapters = _placed({"params": lora.shapes(abstract["params"])}, mesh)
    trained = run.variables(adapters, ema, best)["params"]
    params = _base(run, denoiser, text_shape, mesh, jnp.dtype(lora.base_dtype))
    return _merged(lora, params, trained, mesh)


def with_adapters(
    path: epath.PathLike, denoiser: Denoiser, variables: Variables, mesh: Mesh | None = None
) -> Variables:
    """Merges a safetensors file of adapters into a stage's variables, which are donated."""
    lora, adapters = weights.read_lora(path, denoiser.model, variables["params"])
    return _merged(lora, variables["params"], adapters, mesh)


def _merged(lora: Lora, params: Any, adapters: Any, mesh: Mesh | None) -> Variables:
    shardings = None if mesh is None else state_shardings(mesh, params)
    # Donated: at billions of parameters there is no room for them twice.
    merge = jax.jit(lora.merged, out_shardings=shardings, donate_argnums=0)
    return {"params": merge(params, adapters)}


def check_adapters(field: str, path: str) -> None:
    """Raises InputError if a file of adapters is missing; an empty path names none."""
    if path and not os.path.isfile(path):
        advice = "name a run of adapters as run" if os.path.isdir(path) else "there is none"
        raise InputError(f"{field} must be a local file of adapters, got {path!r}; {advice}")


def digest_of(run: Run, ema: str = MAIN, best: bool = False) -> str:
    """Checksum of the values of `variables_of`; with adapters, of these and their base."""
    own = run.digest(ema, best)
    return json_digest([own, run.inputs["init_from"]]) if run.config.get("lora") else own


def _placed(shapes: Any, mesh: Mesh | None) -> Any:
    return shapes if mesh is None else with_shardings(mesh, shapes)


def _base(
    run: Run, denoiser: Denoiser, text_shape: tuple[int, int], mesh: Mesh | None, dtype: Any
) -> Any:
    """The parameters that a run's adapters were trained on, rounded as they were in training."""
    path = _start_of(run)
    start = open_run(path)
    if start is None:
        field = f"config.stage of {run.path}"
        params = load_public(path, denoiser, text_shape, field, mesh, dtype=dtype)["params"]
    else:
        params = variables_of(start, denoiser, text_shape, mesh)["params"]
    # Adapters have learned to correct the rounded weights, not the exact ones.
    return jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)


def _start_of(run: Run) -> str:
    """Where the weights are that a run adapts; raises InputError if gone or changed."""
    path = run.config.init_from
    # 1. Where the config says.
    if path.startswith(PUBLIC) or epath.Path(path).exists():
        if _digest(path) == run.inputs["init_from"]:
            return path
        raise InputError(
            f"{run.path} has adapters of {path}, whose weights have changed since; restore the "
            "weights that it was trained on"
        )
    # 2. The run was moved or is read from another folder: a relative path may start in any folder
    # above the run.
    for folder in run.path.resolve().parents:
        # A folder of this name there may be anything.
        with contextlib.suppress(InputError):
            if _digest(os.fspath(folder / path)) == run.inputs["init_from"]:
                return os.fspath(folder / path)
    raise InputError(
        f"{run.path} has adapters of {path}, which is not at that path nor in a folder above the "
        "run; copy those weights there"
    )


def _digest(path: str) -> str:
    """Checksum of the weights that training can start from."""
    start = open_run(path)
    return digest_of(start) if start else weights.digest(public_path(path), "unet")


def load_public(
    path: str,
    denoiser: Denoiser,
    text_shape: tuple[int, int],
    field: str,
    mesh: Mesh | None = None,
    variant: str | None = None,
    dtype: Any = None,
) -> dict[str, Any]:
    """Loads a public U-Net, DeepFloyd IF's or Stable Diffusion's, for a denoiser.

    `path` is an import, a folder in diffusers' layout or a Hub repository, with or without a prefix
    of `PUBLIC`. For `mesh`, `variant` and `dtype` see `weights.load_part`.
    """
    path = public_path(path)
    # 1. What the config alone can get wrong.
    if denoiser.autoencoder is None:
        check_public(denoiser.prediction, path, field)
    # 2. The weights say what network they are.
    model, params = weights.load_part("unet", path, dtype, mesh, variant)
    check_same_network(denoiser.model, model, path, field)
    # 3. Widths that follow from the text and the images are no fields of the network.
    shapes = jax.tree.map(lambda leaf: leaf.shape, denoiser.shapes(text_shape)["params"])
    if jax.tree.map(jnp.shape, params) != shapes:
        raise InputError(
            f"{field}: the config's text states and images must have the widths that the weights "
            f"of {path} take; use their preset"
        )
    return {"params": params}


def check_same_network(network: Any, model: Any, path: str, field: str) -> None:
    """Raises InputError, naming the field, unless networks differ only in how to compute."""
    if type(network) is not type(model):
        raise InputError(
            f"{field} must be a {type(model).__name__}, as the weights of {path} are, got a "
            f"{type(network).__name__}; name other weights, or use their preset"
        )
    ours = dataclasses.replace(network, dtype=model.dtype, remat=model.remat)
    if ours != model:
        names = [f.name for f in dataclasses.fields(model) if f.name not in ("parent", "name")]
        name = next(name for name in names if getattr(ours, name) != getattr(model, name))
        raise InputError(
            f"{field}: {name} must be {getattr(model, name)}, as the weights of {path}, "
            f"got {getattr(ours, name)}"
        )


def check_public(prediction: str, path: str, field: str) -> None:
    """Raises InputError unless a denoiser predicts eps, as DeepFloyd IF's networks do."""
    if prediction != "eps":
        raise InputError(
            f"{field}: prediction must be 'eps', as for the weights of {path}, got {prediction!r}"
        )
