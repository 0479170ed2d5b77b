import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_ft.text.encoders import check_prompts, make_text_encoder
from imagen_ft.text.tokenizer import PAD, VOCABULARY, tokenize
from launch.errors import InputError

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def encoder(max_length=6):
    model = dict(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return make_text_encoder(ConfigDict(dict(max_length=max_length, seed=0, model=model)))


def test_tokens_are_bytes_an_end_and_padding():
    tokens, mask = tokenize(["ab", "", "é"], 4)
    assert tokens.tolist() == [[100, 101, 1, PAD], [1, PAD, PAD, PAD], [0xC3 + 3, 0xA9 + 3, 1, PAD]]
    assert mask.tolist() == [[True] * 3 + [False], [True] + [False] * 3, [True] * 3 + [False]]
    assert tokens.max() < VOCABULARY


def test_a_prompt_may_fill_its_tokens_and_no_more():
    assert tokenize(["seven"], 6)[1].all()
    with pytest.raises(
        InputError, match=r"'sevens' must have at most text.max_length=6 tokens, got 7"
    ):
        tokenize(["one", "sevens"], 6)


@pytest.mark.slow
def test_distinct_prompts_have_distinct_states():
    states, null = encoder().embed(NAMES), encoder().null()
    assert states.shape == (10, 6, 16) and null.shape == (1, 6, 16)
    everything = np.concatenate([states, null]).reshape(11, -1)
    distance = np.linalg.norm(everything[:, None] - everything[None], axis=-1)
    scale = np.linalg.norm(everything, axis=-1).mean()
    assert distance[~np.eye(11, dtype=bool)].min() > 0.1 * scale


def test_states_depend_on_the_prompt_alone():
    states = encoder().embed(NAMES)
    # Twenty prompts are more than one batch of the encoder.
    np.testing.assert_allclose(encoder().embed(2 * NAMES), np.tile(states, (2, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(encoder().embed(NAMES[7:8]), states[7:8], atol=1e-5)


@pytest.mark.slow
def test_padding_changes_no_state():
    longer = encoder(max_length=9).embed(["seven"])
    np.testing.assert_allclose(longer[:, :6], encoder().embed(["seven"]), atol=1e-5)


def test_shapes_without_weights():
    assert encoder().shape == (6, 16)
    shapes = jax.tree.leaves(encoder().parameters())
    assert sum(leaf.size for leaf in shapes) > VOCABULARY * 16


def test_class_names():
    check_prompts(["nine", "zero", "nine"], NAMES)
    with pytest.raises(
        InputError, match=r"prompt 2: 'ten' is not a class of this model; use one of zero, one"
    ):
        check_prompts(["nine", "ten"], NAMES)
    with pytest.raises(
        InputError, match=r"^prompt 2 must be a string that UTF-8 can encode, got '.udcff'"
    ):
        check_prompts(["nine", "\udcff"], ())
    with pytest.raises(InputError, match=r"class 19, \.\.\.$"):
        check_prompts(["ten"], [f"class {n}" for n in range(30)])
