"""A network with the conventions that it is trained and sampled with."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, PyTree

from imagen_ft.diffusion.forward_process import Image, add_noise
from imagen_ft.diffusion.schedule import Schedule
from launch.runtime.limits import building
from launch.runtime.types import Array, Variables

UPSAMPLING = ("bilinear", "bilinear_corners", "nearest")


@runtime_checkable
class Network(Protocol):
    """What a denoiser asks of a model; `UNet` and `EfficientUNet` have it.

    Attributes:
        dtype: of the computation.
    """

    dtype: Any

    def init(self, key: Any, /, *args: Any) -> Any:
        """Variables, from a key, x, t, text and noise level."""

    def apply(self, variables: Any, /, *args: Any, method: str | None = None) -> Any:
        """Calls the network, or its methods `context` and `denoise`."""


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One stage's network with the conventions that it is trained and sampled with.

    Attributes:
        model: the network.
        schedule: of the noise, of images and of low-resolution conditions alike.
        size: of the images, in pixels.
        low_size: of the low-resolution images it starts from; 0 for a base model.
        channels: of the images.
        upsampling: how these are brought to size, one of `UPSAMPLING`.
        learned_variance: whether the network has channels for it behind those of `prediction`.
        prediction: what the network's first `channels` outputs are, one of
            `forward_process.PREDICTIONS`.
    """

    model: Network
    schedule: Schedule
    size: int
    low_size: int
    channels: int
    upsampling: str = "bilinear"
    learned_variance: bool = False
    prediction: str = "eps"

    def init(self, key: Key[Array, ""], text: Float[Array, "n d"]) -> dict[str, Any]:
        """New variables.

        Args:
            key: randomness.
            text: states of any prompt, for their shape.
        """
        channels = self.channels * (2 if self.low_size else 1)
        x = jnp.zeros((1, self.size, self.size, channels))
        level = jnp.zeros((1,)) if self.low_size else None
        return self.model.init(key, x, jnp.zeros((1,)), text[None], level)

    def shapes(self, text_shape: tuple[int, int]) -> dict[str, Any]:
        """Shapes of the variables; nothing is made.

        Raises:
            InputError: the network's fields do not fit together.
        """
        with building("stage.unet"):
            text = jax.ShapeDtypeStruct(text_shape, jnp.float32)
            return jax.eval_shape(self.init, jax.random.key(0), text)

    def condition(
        self,
        low: Float[Array, "b low_size low_size c"],
        noise: Float[Array, "b size size c"],
        level: Float[Array, " b"],
    ) -> Float[Array, "b size size c"]:
        """Upsamples low-resolution images and noises them to a level.

        Noise-conditioning augmentation (Ho et al. 2021; Imagen, section 2.4).

        Args:
            low: low-resolution images in [-1, 1].
            noise: standard normal, of the shape of the result.
            level: in [0, 1]; 0 adds nothing.
        """
        upsampled = upsample(low, self.size, self.upsampling)
        noised = add_noise(upsampled, noise, self.schedule.logsnr(level))
        return jnp.where(level[:, None, None, None] > 0, noised, upsampled)

    def context(
        self,
        variables: Variables,
        text: Float[Array, "b n d"],
        level: Float[Array, " b"] | None = None,
    ) -> PyTree:
        """What the network needs of the prompts, the same at every time.

        Args:
            variables: of the model.
            text: states of the prompts.
            level: what the condition was noised to, for super-resolution.
        """
        level = None if level is None else self.schedule.model_time(level)
        return self.model.apply(variables, text, level, method="context")

    def predict(
        self,
        variables: Variables,
        x_t: Image,
        t: Float[Array, " b"],
        context: PyTree,
        condition: Image | None = None,
    ) -> Float[Array, "b h w out"]:
        """The network's output: `prediction` and, where it is learned, the variance behind it.

        Args:
            variables: of the model.
            x_t: noisy images.
            t: time in [0, 1].
            context: result of `context`.
            condition: result of `condition`, for super-resolution.
        """
        x = x_t if condition is None else jnp.concatenate([x_t, condition], axis=-1)
        time = self.schedule.model_time(t)
        return self.model.apply(variables, x, time, context, method="denoise")


def upsample(
    images: Float[Array, "b h w c"], size: int, method: str
) -> Float[Array, "b size size c"]:
    """Brings square images to a larger size.

    Args:
        images: to be upsampled.
        size: in pixels.
        method: 'bilinear' between the centres of pixels, 'bilinear_corners' between the outer
            pixels' own (align_corners of PyTorch, DeepFloyd IF), or 'nearest'.
    """
    if method != "bilinear_corners":
        shape = (images.shape[0], size, size, images.shape[-1])
        return jax.image.resize(images, shape, method, antialias=False)
    low = images.shape[1]
    position = np.arange(size) * ((low - 1) / max(size - 1, 1))
    weights = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(low))).astype(np.float32)
    return jnp.einsum("yh,xw,bhwc->byxc", weights, weights, images, precision="highest")
