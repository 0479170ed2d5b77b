"""The Efficient U-Net against a plain one in PyTorch: no public weights are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict, unflatten_dict

from imagen_ft.models.presets import make
from tests.parity.torch_weights import relative_error
from tests.support.close import assert_same_up_to_rounding

HEIGHT, WIDTH, TOKENS, TEXT_WIDTH = 8, 12, 5, 16
# What JAX calls a part that the backward pass computes again.
CHECKPOINT = jax.make_jaxpr(jax.checkpoint(lambda x: x))(0.0).eqns[0].primitive.name
model = functools.partial(make, "tiny_imagen_sr")
# As the 256 -> 1024 stage, and with two residual blocks where the other one has one.
cross_attending_model = functools.partial(
    model, self_attention=(False, False), layers_per_block=(1, 2)
)


def inputs(batch=2, width=WIDTH):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    x, text = draw(batch, HEIGHT, width, 6), draw(batch, TOKENS, TEXT_WIDTH)
    return x, jnp.array([17.0, 803.0])[:batch], text, jnp.array([250.0, 3.0])[:batch]


@functools.cache
def variables():
    return jax.jit(model().init)(jax.random.key(0), *inputs())


def random_variables(model):
    """Random values for every parameter, also those that start as zeros or ones."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if len(leaf.shape) == 1:
            return rng.normal(path[-1].key == "scale", 0.2, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) * leaf[..., 0].size ** -0.5).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs())
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    return jax.tree_util.tree_map_with_path(draw, zeros)


apply = jax.jit(lambda model, *args: model.apply(*args), static_argnums=0)


@functools.cache
def output_and_gradient(model):
    cotangent = np.random.default_rng(1).normal(size=(2, HEIGHT, WIDTH, 3)).astype(np.float32)

    @jax.jit
    def run(variables):
        output, back = jax.vjp(lambda v: model.apply(v, *inputs()), variables)
        return output, back(jnp.asarray(cotangent))[0]["params"]

    output, gradient = run(variables())
    return output, flatten_dict(gradient, sep=".")


class Reference:
    """The network, written down once more: PyTorch, one image after the other, all by name."""

    def __init__(self, variables):
        flat = flatten_dict(variables["params"], sep=".")
        self.weights = {name: torch.from_numpy(np.array(leaf)) for name, leaf in flat.items()}

    def __call__(self, x, t, text, level):
        images = [
            self.image(*(torch.from_numpy(np.array(a)) for a in row))
            for row in zip(x, t, text, level, strict=True)
        ]
        return torch.stack(images).numpy()

    def image(self, x, t, text, level):
        text = self.dense("text_projection", text)
        embedding = self.mlp("time_embedding", t) + self.mlp("noise_level_embedding", level)
        embedding = F.silu(embedding + self.pooled("text_embedding", text))
        h0 = self.conv("conv_in", x.permute(2, 0, 1)[None])
        h1 = self.resnets("down_0", self.halved("down_0.conv", h0), embedding)
        h = self.resnets("down_1", self.halved("down_1.conv", h1), embedding)
        h = self.attention("down_1.attention", h, text)
        h = self.attention("up_1.attention", self.resnets("up_1", h, embedding), text)
        h = (self.doubled("up_1.conv", h) + h1) / 2**0.5
        h = self.resnets("up_0", h, embedding)
        h = (self.doubled("up_0.conv", h) + h0) / 2**0.5
        h = self.conv("conv_out", F.silu(self.group_norm("norm_out", h)))
        return h[0].permute(1, 2, 0)

    def mlp(self, name, t):
        angles = t * 10_000.0 ** (-torch.arange(4) / 4)
        sinusoid = torch.cat([angles.cos(), angles.sin()])
        return self.dense(f"{name}.linear_2", F.gelu(self.dense(f"{name}.linear_1", sinusoid)))

    def pooled(self, name, text):
        text = self.layer_norm(f"{name}.norm1", text)
        token = text.mean(0, keepdim=True) + self.weights[f"{name}.pool.positional_embedding"]
        tokens = torch.cat([token, text])
        pool = lambda letter, x: self.dense(f"{name}.pool.{letter}_proj", x)  # noqa: E731
        out = self.attend(pool("q", token), pool("k", tokens), pool("v", tokens))
        return self.layer_norm(f"{name}.norm2", self.dense(f"{name}.proj", out))[0]

    def resnets(self, name, x, embedding):
        for layer in range(2):
            if f"{name}.resnets_{layer}.conv1.kernel" in self.weights:
                x = self.resnet(f"{name}.resnets_{layer}", x, embedding)
        return x

    def resnet(self, name, x, embedding):
        h = self.conv(f"{name}.conv1", F.silu(self.group_norm(f"{name}.norm1", x)))
        scale, shift = self.dense(f"{name}.modulation", embedding)[:, None, None].chunk(2)
        h = self.group_norm(f"{name}.norm2", h) * (1 + scale) + shift
        h = self.conv(f"{name}.conv2", F.silu(h))
        return (
            (self.conv(f"{name}.conv_shortcut", x) if x.shape[1] != h.shape[1] else x) + h
        ) / 2**0.5

    def attention(self, name, x, text):
        pixels = lambda h: h.flatten(2)[0].T  # noqa: E731
        image = lambda h: h.T.reshape(x.shape)  # noqa: E731
        project = lambda kind, h: h @ self.weights[f"{name}.{kind}.kernel"]  # noqa: E731
        h = pixels(self.group_norm(f"{name}.norm", x))
        text = self.layer_norm(f"{name}.text_norm", text)
        sources = [("text_", text)]
        if to_itself := f"{name}.key.kernel" in self.weights:
            sources.append(("", h))
        key, value = (
            torch.cat([project(prefix + kind, source) for prefix, source in sources])
            for kind in ("key", "value")
        )
        h = self.attend(project("query", h), key, value)
        x = (x + image(self.dense(f"{name}.out", h))) / 2**0.5
        if not to_itself:
            return x
        h = pixels(self.group_norm(f"{name}.feed_forward_norm", x))
        h = F.silu(self.dense(f"{name}.feed_forward_in", h))
        return (x + image(self.dense(f"{name}.feed_forward_out", h))) / 2**0.5

    def attend(self, query, key, value):
        heads = [a.unflatten(1, (2, -1)).transpose(0, 1) for a in (query, key, value)]
        return F.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)

    def halved(self, name, x):
        return self.conv(name, F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)

    def doubled(self, name, x):
        return self.conv(name, F.interpolate(x, scale_factor=2))

    def conv(self, name, x, **how):
        kernel, bias = self.weights[f"{name}.kernel"], self.weights[f"{name}.bias"]
        how = how or dict(padding=kernel.shape[0] // 2)
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, **how)

    def dense(self, name, x):
        return x @ self.weights[f"{name}.kernel"] + self.weights[f"{name}.bias"]

    def group_norm(self, name, x):
        return F.group_norm(x, 4, self.weights[f"{name}.scale"], self.weights[f"{name}.bias"])

    def layer_norm(self, name, x):
        scale, bias = self.weights[f"{name}.scale"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], scale, bias)


def test_output():
    weights = random_variables(model())
    output = apply(model(), weights, *inputs())
    assert output.dtype == jnp.float32
    assert relative_error(output, Reference(weights)(*inputs())) < 1e-5


@pytest.mark.slow
def test_every_parameter_gets_a_gradient():
    gradient = dict(output_and_gradient(model())[1])
    # A softmax does not see what all its keys share.
    assert np.abs(gradient.pop("text_embedding.pool.k_proj.bias")).max() < 1e-5
    assert not [name for name, leaf in gradient.items() if not np.abs(leaf).max() > 1e-2]


@pytest.mark.slow
def test_remat_changes_nothing_but_memory():
    output, gradient = output_and_gradient(model())
    output_remat, gradient_remat = output_and_gradient(model(remat=True))
    assert_same_up_to_rounding(output_remat, output)
    assert gradient_remat.keys() == gradient.keys()
    for name, leaf in gradient.items():
        np.testing.assert_allclose(gradient_remat[name], leaf, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "count"), [(False, 0), (True, 6), ((False, True), 4)])
def test_remat_by_block(remat, count):
    """One residual block a level each way, and at the lower level an attention each way."""
    jaxpr = jax.make_jaxpr(lambda v: model(remat=remat).apply(v, *inputs()))(variables())
    assert sum(equation.primitive.name == CHECKPOINT for equation in jaxpr.eqns) == count


def test_context_is_computed_once():
    x, t, text, level = inputs()
    context = jax.jit(functools.partial(model().apply, method="context"))(variables(), text, level)
    # What depends on the text or the noise level only is not needed any more.
    once = {"text_projection", "text_embedding", "noise_level_embedding"}
    once |= {"text_norm", "text_key", "text_value"}
    leaves = flatten_dict(variables()["params"])
    rest = {path: leaf for path, leaf in leaves.items() if not once & set(path)}
    assert once <= {name for path in leaves for name in path}
    rest = {"params": unflatten_dict(rest)}
    denoise = jax.jit(functools.partial(model().apply, rest, method="denoise"))
    for time in (t, t[::-1]):
        expected = apply(model(), variables(), x, time, text, level)
        assert_same_up_to_rounding(denoise(x, time, context), expected)


@pytest.mark.slow
def test_bfloat16_is_close():
    half = model(dtype=jnp.bfloat16)
    output = apply(half, variables(), *inputs())
    assert output.dtype == jnp.float32
    assert relative_error(output, output_and_gradient(model())[0]) < 0.03
    jaxpr = jax.make_jaxpr(lambda v: half.apply(v, *inputs()))(variables())

    def types(name):
        equations = [equation for equation in jaxpr.eqns if equation.primitive.name == name]
        return {str(variable.aval.dtype) for equation in equations for variable in equation.invars}

    assert types("conv_general_dilated") == types("dot_general") == {"bfloat16"}
    # Of the statistics of every norm.
    assert types("rsqrt") == {"float32"}


@pytest.mark.parametrize("number", range(4), ids=["x", "t", "text", "noise level"])
def test_every_input_matters(number):
    changed = list(inputs())
    changed[number] = changed[number][::-1]
    output = apply(model(), variables(), *changed)
    assert np.abs(output - output_and_gradient(model())[0]).max() > 1e-2


@pytest.mark.slow
def test_errors():
    x, t, text, level = inputs()
    for cut in (x[:, 2:], x[:, :, 2:]):
        with pytest.raises(ValueError, match=r"must be a multiple of 4 px"):
            model().apply(variables(), cut, t, text, level)
    with pytest.raises(ValueError, match="noise_level=True"):
        model().apply(variables(), x, t, text)


@pytest.mark.slow
def test_a_shift_by_the_total_stride_shifts_the_output():
    """And by no other: convolutions with strides see the world in steps."""
    # The farthest that a pixel is seen, and then twice: borders and patch must not meet.
    seen, middle = 52, 112
    stage, weights = cross_attending_model(), random_variables(cross_attending_model())
    noise, *rest = inputs(batch=1, width=2 * middle + 24)
    patch = noise[:, :, :4]

    def around_patch(shift):
        x = jnp.full(noise.shape, 0.7).at[:, :, middle + shift : middle + shift + 4].set(patch)
        output = apply(stage, weights, x, *rest)
        return np.asarray(output)[:, :, middle + shift - seen : middle + shift + 4 + seen]

    expected = around_patch(0)
    for shift in (4, 16):
        assert relative_error(around_patch(shift), expected) < 1e-5
    for shift in (1, 2, 6):
        assert relative_error(around_patch(shift), expected) > 1e-2
    # The same network without self-attention, while it is compiled for this size.
    output = apply(stage, weights, noise, *rest)
    assert relative_error(output, Reference(weights)(noise, *rest)) < 1e-5
