"""T5 as a text encoder of a cascade: loaded, used and let go."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import imagen_ft.weights as weights
from imagen_ft.text import __main__ as command
from imagen_ft.text.encoders import make_text_encoder
from launch.errors import Diverged, InputError
from tests.imagen_ft.text import tiny_text


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_text.save(folder)
    return folder


@pytest.fixture
def loads(monkeypatch):
    """The parameters of every time that T5 is loaded."""
    every, load = [], weights.load_t5

    def recording(*args):
        model, params = load(*args)
        every.append(params)
        return model, params

    monkeypatch.setattr(weights, "load_t5", recording)
    return every


def make(pipeline, **fields):
    return make_text_encoder(ConfigDict(dict(weights=str(pipeline), max_length=9, **fields)))


@pytest.mark.parametrize("resident", [False, True])
def test_t5_is_there_while_it_runs(pipeline, loads, resident):
    encoder = make(pipeline, resident=resident, dtype="float32")
    assert encoder.shape == (9, tiny_text.D_MODEL) and not loads
    assert encoder.embed([]).shape == (0, *encoder.shape) and not loads
    prompts = ["a cat", "A cat ", "two dogs"]
    states, null = encoder.embed(prompts, ["two dogs", "blurry"]), encoder.null()
    np.testing.assert_array_equal(states[3], states[2])
    states = states[:3]
    assert states.shape == (3, *encoder.shape) and states.dtype == np.float32
    np.testing.assert_array_equal(states[0], states[1])
    assert (states[0] != states[2]).any() and (null[0] != states[0]).any()
    np.testing.assert_array_equal(encoder.embed(["two dogs"])[0], states[2])
    assert len(loads) == 1  # the empty prompt has gone with the first ones
    encoder.embed([], ["blurry"])
    assert len(loads) == 1
    encoder.embed(["another"])
    assert len(loads) == (1 if resident else 2)
    assert {leaf.is_deleted() for leaf in jax.tree.leaves(loads)} == {not resident}


@pytest.mark.slow
def test_prompts_are_cleaned_unless_they_are_not_to_be(pipeline):
    states = make(pipeline, dtype="float32").embed(["(a) cat", "a cat"])
    np.testing.assert_array_equal(states[0], states[1])
    plain = make(pipeline, dtype="float32", clean_caption=False)
    states = plain.embed(["(a) cat", "a cat"])
    assert (states[0] != states[1]).any()
    assert plain.digest != make(pipeline, dtype="float32").digest


def test_states_that_are_not_finite(pipeline):
    """As those of float16 can be."""
    encoder = make(pipeline, dtype="float16", resident=True)
    encoder.embed(["a cat"])
    embedding = encoder._loaded[0].params["shared"]["embedding"]
    tokens, _ = encoder.source.tokenizer(["another", "dogs"])
    own = max({*tokens[1].tolist()} - {*tokens[0].tolist()})
    encoder._loaded[0].params["shared"]["embedding"] = embedding.at[own].set(np.inf)
    with pytest.raises(Diverged, match="NaN or infinity for the prompt 'dogs' in float16"):
        encoder.embed(["another", "dogs"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_its_states_are_those_of_a_cache(pipeline, tmp_path, dtype):
    argv = ["--max_length=9", f"--dtype={dtype}", f"--to={tmp_path / 'cache'}"]
    (tmp_path / "prompts.txt").write_text("a cat\n")
    argv += [f"--prompts={tmp_path / 'prompts.txt'}", f"--weights={pipeline}"]
    assert command.run(["text", *argv]) == 0
    cached = make_text_encoder(ConfigDict(dict(cache=str(tmp_path / "cache"))))
    encoder = make(pipeline, dtype=dtype)
    assert encoder.digest == cached.digest
    for ours, theirs in (
        (encoder.embed(["a cat"]), cached.embed(["a cat"])),
        (encoder.null(), cached.null()),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-2 if dtype == "float16" else 1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(dtype="int8"), "config.text.dtype must be one of bfloat16, float16, float32"),
        (dict(null="none"), "config.text.null must be empty or zeros"),
        (
            dict(template="a photo"),
            "config.text.template must have one {}, for the prompt, got a photo",
        ),
    ],
)
def test_fields_that_are_refused(pipeline, fields, message):
    with pytest.raises(InputError, match=message):
        make(pipeline, **fields)
