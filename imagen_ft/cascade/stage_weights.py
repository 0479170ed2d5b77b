"""The weights of one stage: of a run, of adapters on other weights, or public ones."""

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

# Before a path or the name of a repository: weights from elsewhere, of whichever kind.
PUBLIC = ("deepfloyd:", "diffusers:")


def public_path(path: str) -> str:
    """Without what says that it holds weights from elsewhere."""
    return path.partition(":")[2] if path.startswith(PUBLIC) else path


def open_run(path: str) -> Run | None:
    """A run of imagen_ft.finetune; None where the path holds weights from elsewhere.

    'deepfloyd:' or 'diffusers:' before a path or the name of a repository says that it does.

    Raises:
        InputError: there is nothing.
    """
    if not path:
        raise InputError("run must name a run or weights, got ''; set it in the config")
    if path.startswith(PUBLIC):
        return None
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
    """What a stage of a run is sampled with; adapters (`config.lora`) are merged into their base.

    Args:
        run: of imagen_ft.finetune, finished.
        denoiser: whose variables they are.
        text_shape: of one prompt's states.
        mesh: where they are to be; None is one device.
        ema: see `Run.variables`.
        best: see `Run.variables`.

    Raises:
        InputError: as `Run.variables`; or the weights that a run adapts are gone or others now.
    """
    abstract = _placed(denoiser.shapes(text_shape), mesh)
    if not run.config.get("lora"):
        return run.variables(abstract, ema, best)
    lora = make_lora(run.config.lora, abstract["params"])
    adapters = _placed({"params": lora.shapes(abstract["params"])}, mesh)
    trained = run.variables(adapters, ema, best)["params"]
    params = _base(run, denoiser, text_shape, mesh, jnp.dtype(lora.base_dtype))
    return _merged(lora, params, trained, mesh)


def with_adapters(
    path: epath.PathLike, denoiser: Denoiser, variables: Variables, mesh: Mesh | None = None
) -> Variables:
    """Merges the adapters of a file into a stage's variables, which are used up.

    Args:
        path: a safetensors file, see `weights.read_lora`.
        denoiser: of the stage.
        variables: of the stage.
        mesh: where they are; None is one device.

    Raises:
        InputError: there is no such file, or its adapters are of another network.
    """
    lora, adapters = weights.read_lora(path, denoiser.model, variables["params"])
    return _merged(lora, variables["params"], adapters, mesh)


def _merged(lora: Lora, params: Any, adapters: Any, mesh: Mesh | None) -> Variables:
    shardings = None if mesh is None else state_shardings(mesh, params)
    merge = jax.jit(lora.merged, out_shardings=shardings, donate_argnums=0)
    return {"params": merge(params, adapters)}


def check_adapters(field: str, path: str) -> None:
    """Looks whether there is a file of adapters; an empty path names none.

    Raises:
        InputError: there is no such file.
    """
    if path and not os.path.isfile(path):
        advice = "name a run of adapters as run" if os.path.isdir(path) else "there is none"
        raise InputError(f"{field} must be a local file of adapters, got {path!r}; {advice}")


def digest_of(run: Run, ema: str = MAIN, best: bool = False) -> str:
    """Of the values of `variables_of`; of adapters and of what they were trained on.

    Raises:
        InputError: as `Run.digest`.
    """
    own = run.digest(ema, best)
    return json_digest([own, run.inputs["init_from"]]) if run.config.get("lora") else own


def _placed(shapes: Any, mesh: Mesh | None) -> Any:
    return shapes if mesh is None else with_shardings(mesh, shapes)


def _base(
    run: Run, denoiser: Denoiser, text_shape: tuple[int, int], mesh: Mesh | None, dtype: Any
) -> Any:
    """The parameters that a run's adapters were trained on, rounded as they were there."""
    path = _start_of(run)
    start = open_run(path)
    if start is None:
        field = f"config.stage of {run.path}"
        params = load_public(path, denoiser, text_shape, field, mesh, dtype=dtype)["params"]
    else:
        params = variables_of(start, denoiser, text_shape, mesh)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)


def _start_of(run: Run) -> str:
    """Where the weights are that a run adapts: a relative path may begin in a folder around it.

    Raises:
        InputError: they are nowhere, or others now.
    """
    path = run.config.init_from
    if path.startswith(PUBLIC) or epath.Path(path).exists():
        if _digest(path) == run.inputs["init_from"]:
            return path
        raise InputError(
            f"{run.path} has adapters of {path}, whose weights have changed; restore those "
            "that it was trained on"
        )
    for folder in run.path.resolve().parents:
        # What is called so there may be anything.
        with contextlib.suppress(InputError):
            if _digest(os.fspath(folder / path)) == run.inputs["init_from"]:
                return os.fspath(folder / path)
    raise InputError(
        f"{run.path} has adapters of {path}, which is neither here nor in a folder around "
        "the run; copy those weights there"
    )


def _digest(path: str) -> str:
    """Of the weights that training can begin with."""
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
    """Loads the weights of a public U-Net, DeepFloyd IF's or Stable Diffusion's, for a denoiser.

    Args:
        path: an import, a folder in diffusers' layout, or a repository of the Hub; 'deepfloyd:' or
            'diffusers:' before it is passed over.
        denoiser: whose network they have to be.
        text_shape: of one prompt's states.
        field: of the denoiser in the config, for messages.
        mesh: see `weights.load_part`.
        variant: see `weights.load_part`.
        dtype: see `weights.load_part`.

    Raises:
        InputError: they are another network's.
    """
    path = public_path(path)
    if denoiser.autoencoder is None:
        check_public(denoiser.prediction, path, field)
    model, params = weights.load_part("unet", path, dtype, mesh, variant)
    check_same_network(denoiser.model, model, path, field)
    shapes = jax.tree.map(lambda leaf: leaf.shape, denoiser.shapes(text_shape)["params"])
    if jax.tree.map(jnp.shape, params) != shapes:
        raise InputError(
            f"{field}: text states or images of the config must have the width that the "
            f"weights of {path} take"
        )
    return {"params": params}


def check_same_network(network: Any, model: Any, path: str, field: str) -> None:
    """Compares a network with that of some weights, but for how it is computed.

    Args:
        network: of a config.
        model: of the weights.
        path: of these, for messages.
        field: of the network, for messages.

    Raises:
        InputError: they differ; says in what.
    """
    if type(network) is not type(model):
        raise InputError(
            f"{field} must be a {type(model).__name__}, as the weights of {path} are, got a "
            f"{type(network).__name__}; name other weights, or their preset"
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
    """DeepFloyd IF's networks predict eps; see `load_public`.

    Raises:
        InputError: the denoiser is to predict something else.
    """
    if prediction != "eps":
        raise InputError(
            f"{field}: prediction must be 'eps', as for the weights of {path}, got {prediction!r}"
        )
