"""A training step of DeepFloyd IF's U-Net against diffusers in PyTorch: same weights, one process.

python -m tests.benchmarks.training                      # 62M parameters at 64 px, as IF's stage I
python -m tests.benchmarks.training --quick              # 28M at 32 px
python -m tests.benchmarks.training --preset=if_i_m --dtype=bfloat16 --batch=16,64    # on a GPU

Both add the same noise to the same images, take the mean squared error of eps, clip the gradient's
norm, take a step of Adam and update a moving average of the weights. --dtype is that of the
network's arithmetic; parameters, Adam and the average are float32. On a GPU the peer is compiled.
"""

import contextlib
import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict

from imagen_ft.diffusion.denoiser import Denoiser
from imagen_ft.diffusion.losses import DiffusionLoss
from imagen_ft.diffusion.schedule import SquaredCos, alpha_sigma
from imagen_ft.training.image_losses import image_losses
from launch.runtime.devices.mesh import make_mesh
from launch.runtime.ema import make_decays
from launch.runtime.images import to_float
from launch.runtime.state import TrainState, create_state
from launch.runtime.training.optimizers import make_optimizer
from launch.runtime.training.train_step import make_step
from tests.benchmarks.harness import Result, arguments, compare, matrix_peak, report, synchronize
from tests.benchmarks.unet import Pair
from tests.parity.torch_weights import relative_error

RATE, CLIP, DECAY = 1e-4, 1.0, 0.999
OPTIMIZER = dict(
    name="adam",
    learning_rate=RATE,
    schedule="constant",
    warmup_steps=0,
    weight_decay=0.0,
    clip_norm=CLIP,
)


class Ours:
    """The project's own step on fixed images, times and noise."""

    def __init__(self, pair: Pair, batch: int):
        rng = np.random.default_rng(0)
        shape = (batch, pair.size, pair.size, 3)
        _, t, self.text = pair.inputs(batch)
        self.batch = dict(
            image=rng.integers(0, 256, shape).astype(np.uint8),
            t=((np.round(t) + 1) / 1000).astype(np.float32),
            eps=rng.normal(size=shape).astype(np.float32),
        )
        denoiser = Denoiser(pair.model, SquaredCos(), pair.size, 0, 3)
        self.schedule = denoiser.schedule
        tx, decays = (
            make_optimizer(ConfigDict(OPTIMIZER), 1),
            make_decays(ConfigDict(dict(main=dict(decay=DECAY, schedule="constant")))),
        )

        def update(state: TrainState, batch: dict, text: Any) -> tuple[TrainState, dict]:
            def loss_of(params: Any) -> Any:
                losses = image_losses(denoiser, DiffusionLoss(), {"params": params}, batch, text)
                return losses["loss"].mean()

            loss, grads = jax.value_and_grad(loss_of)(state.variables["params"])
            state, norms = state.update(grads, tx, decays)
            return state, {"loss": loss, **norms}

        mesh = make_mesh({"data": -1})
        start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), pair.variables)
        create = functools.partial(create_state, lambda v: v, (start,), tx, decays)
        self.state = create(mesh)
        step = make_step(update, mesh, jax.eval_shape(lambda: create(mesh)), (self.text,))
        placed = jax.device_put(self.batch)
        self.program = step.lower(self.state, placed).compile()
        self.placed = placed, jnp.asarray(self.text)

    def step(self) -> dict[str, Any]:
        """One update."""
        self.state, metrics = self.program(self.state, *self.placed)
        return jax.block_until_ready(metrics)


class Theirs:
    """The same in PyTorch."""

    def __init__(self, pair: Pair, ours: Ours, dtype: str):
        network = pair.theirs.float().requires_grad_()
        self.network, self.average = network, copy.deepcopy(network).requires_grad_(False)
        self.call = torch.compile(network) if pair.device == "cuda" else network
        fused = dict(fused=True) if pair.device == "cuda" else {}
        self.optimizer = torch.optim.Adam(network.parameters(), lr=RATE, **fused)
        put = lambda a: torch.from_numpy(np.array(a)).to(pair.device)  # noqa: E731
        nchw = lambda a: put(np.array(a).transpose(0, 3, 1, 2).copy())  # noqa: E731
        logsnr = ours.schedule.logsnr(jnp.asarray(ours.batch["t"]))
        alpha, sigma = (put(a)[:, None, None, None] for a in alpha_sigma(logsnr))
        self.eps = nchw(ours.batch["eps"])
        self.x0, self.alpha, self.sigma = nchw(to_float(ours.batch["image"])), alpha, sigma
        self.t, self.text = put(np.round(ours.batch["t"] * 1000 - 1)), put(ours.text)
        self.autocast = contextlib.nullcontext
        if dtype != "float32":
            self.autocast = functools.partial(
                torch.autocast, pair.device, dtype=getattr(torch, dtype)
            )

    def step(self) -> dict[str, float]:
        """One update."""
        x_t = self.alpha * self.x0 + self.sigma * self.eps
        with self.autocast():
            output = self.call(x_t, self.t, self.text).sample
        loss = torch.nn.functional.mse_loss(output[:, :3].float(), self.eps)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        pairs = list(self.average.parameters()), list(self.network.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(*pairs, 1 - DECAY)
        return synchronize({"loss": loss.detach(), "gradient_norm": norm})


def training_step(args: Any, batch: int) -> Result:
    """Compares the first step of both, then times more of them."""
    pair = Pair(args)
    ours = Ours(pair, batch)
    theirs = Theirs(pair, ours, args.dtype)
    first, second = ours.step(), theirs.step()
    error = max(
        abs(float(first[name]) - float(value)) / float(value) for name, value in second.items()
    )
    # Adam's first steps have the same size for any gradient; the average shows the weights too.
    kernel = ours.state.ema["main"]["params"]["conv_in"]["kernel"]
    theirs_kernel = theirs.average.conv_in.weight.detach().permute(2, 3, 1, 0).cpu()
    error = max(error, relative_error(kernel, theirs_kernel))
    return compare(
        f"training step, batch {batch}",
        ours.step,
        theirs.step,
        error=error,
        work=batch,
        unit="images/s",
        flops=ours.program.cost_analysis()["flops"],
        repeats=5 if args.quick else 9,
    )


def main() -> None:
    """Runs the cases."""
    args = arguments(__doc__, preset="", batch="1")
    torch.set_num_threads(args.threads)
    report([training_step(args, batch) for batch in args.batch], matrix_peak(args.dtype))


if __name__ == "__main__":
    main()
