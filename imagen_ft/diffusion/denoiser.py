"""A network with the conventions that it is trained and sampled with."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, PyTree

from imagen_ft.diffusion.forward_process import Image, add_noise
from imagen_ft.diffusion.schedule import Schedule
from imagen_ft.models.autoencoder import Autoencoder, decode_one_by_one
from imagen_ft.models.latent_unet import Added
from launch.runtime.limits import building
from launch.runtime.types import Array, Variables

UPSAMPLING = ("bilinear", "bilinear_corners", "nearest")


@runtime_checkable
class Network(Protocol):
    """What a denoiser asks of a model; `UNet`, `EfficientUNet` and `LatentUNet` have it.

    Attributes:
        dtype: of the computation.
    """

    dtype: Any

    def init(self, key: Any, /, *args: Any) -> Any:
        """Variables, from a key, x, t, text, and the noise level or `Added`."""

    def apply(self, variables: Any, /, *args: Any, method: str | None = None) -> Any:
        """Calls the network, or its methods `context` and `denoise`."""


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One stage's network with the conventions that it is trained and sampled with.

    Attributes:
        model: the network.
        schedule: of the noise, of images and of low-resolution conditions alike.
        size: of what the network sees, in pixels: images, or latents.
        low_size: of the low-resolution images it starts from; 0 for a base model.
        channels: of what the network sees.
        upsampling: how these are brought to size, one of `UPSAMPLING`.
        learned_variance: whether the network has channels for it behind those of `prediction`.
        prediction: what the network's first `channels` outputs are, one of
            `forward_process.PREDICTIONS`.
        autoencoder: makes images of latents, which the network then sees; None: it sees images.
        pooled_width: of the pooled text that the network is told besides (`Added`), which comes as
            one more row behind the states, filled up with zeros; 0: there is none.
        sizes: of `Added`; () is an original and an image of `image_size`, without a crop.
    """

    model: Network
    schedule: Schedule
    size: int
    low_size: int
    channels: int
    upsampling: str = "bilinear"
    learned_variance: bool = False
    prediction: str = "eps"
    autoencoder: Autoencoder | None = None
    pooled_width: int = 0
    sizes: tuple[int, ...] = ()

    @property
    def image_size(self) -> int:
        """Of the images that are drawn, in pixels."""
        return self.size * (self.autoencoder.factor if self.autoencoder else 1)

    @property
    def image_channels(self) -> int:
        """Of the images that are drawn."""
        return self.autoencoder.out_channels if self.autoencoder else self.channels

    def init(self, key: Key[Array, ""], text: Float[Array, "n d"]) -> dict[str, Any]:
        """New variables.

        Args:
            key: randomness.
            text: states of any prompt, for their shape.

        Returns:
            Those of the network alone; the auto-encoder's are in no run of ours.
        """
        channels = self.channels * (2 if self.low_size else 1)
        x = jnp.zeros((1, self.size, self.size, channels))
        level = jnp.zeros((1,)) if self.low_size else None
        return self.model.init(key, x, jnp.zeros((1,)), *self._told(text[None], level))

    def shapes(self, text_shape: tuple[int, int]) -> dict[str, Any]:
        """Shapes of the variables; nothing is made.

        Raises:
            InputError: the network's fields do not fit together.
        """
        with building("stage.unet"):
            text = jax.ShapeDtypeStruct(text_shape, jnp.float32)
            return jax.eval_shape(self.init, jax.random.key(0), text)

    def autoencoder_shapes(self) -> dict[str, Any]:
        """Shapes of the auto-encoder's variables, of which there has to be one.

        Raises:
            InputError: its fields do not fit together.
        """
        assert self.autoencoder is not None, "the network sees images"
        side = self.autoencoder.factor
        with building("stage.autoencoder"):
            image = jax.ShapeDtypeStruct((1, side, side, self.image_channels), jnp.float32)
            return jax.eval_shape(self.autoencoder.init, jax.random.key(0), image)

    def encode(
        self, variables: Variables, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b size size z"], Float[Array, "b size size z"] | None]:
        """Mean and log-variance of the latents of images, or the images where there are none.

        Args:
            variables: of the auto-encoder.
            images: in [-1, 1].
        """
        if self.autoencoder is None:
            return images, None
        return self.autoencoder.apply(variables, images, method="encode")  # type: ignore[return-value]

    def decode(
        self, variables: Variables, x0: Float[Array, "b size size z"]
    ) -> Float[Array, "b h w c"]:
        """Images, about in [-1, 1], of what the network sees; one by one where those are latents.

        Args:
            variables: of the auto-encoder.
            x0: without noise.
        """
        return decode_one_by_one(self.autoencoder, variables, x0) if self.autoencoder else x0

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
        return self.model.apply(variables, *self._told(text, level), method="context")

    def _told(
        self, text: Float[Array, "b n d"], level: Float[Array, " b"] | None
    ) -> tuple[Array, Any]:
        """The text's states, and what the network takes behind them."""
        if not self.pooled_width:
            return text, level
        side = self.image_size
        sizes = jnp.asarray(self.sizes or (side, side, 0, 0, side, side), jnp.float32)
        pooled = text[:, -1, : self.pooled_width]
        return text[:, :-1], Added(pooled, jnp.broadcast_to(sizes, (len(text), len(sizes))))

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
