"""States on disk by prompt: what is read is what was written, or its damage is named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from imagen_ft.text.cache import TextCache
from imagen_ft.text.captions import CLEANED
from imagen_ft.text.encoders import make_text_encoder
from launch.errors import InputError

ENCODER = {"weights": "abc", "max_length": 3, "dtype": "bfloat16"}
FLAGS = ["--weights=weights/if", "--dtype=bfloat16"]
PROMPTS = ["", "café", "red fox", "a photo of a red fox"]


def make(folder, dtype="bfloat16"):
    """Two parts of two prompts."""
    folder.mkdir(exist_ok=True)
    cache = TextCache.create(folder, ENCODER | {"dtype": dtype}, (3, 4), FLAGS)
    states = np.random.default_rng(0).normal(size=(4, 3, 4)).astype(jnp.dtype(dtype))
    cache.append(PROMPTS[:2], states[:2])
    cache.append(PROMPTS[2:], states[2:])
    return states.astype(np.float32)


def encoder(folder, **fields):
    return make_text_encoder(ConfigDict(dict(cache=str(folder), **fields)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_states_come_back(tmp_path, dtype):
    states = make(tmp_path, dtype)
    cache = TextCache(tmp_path)
    assert len(cache) == 4 and "red fox" in cache and "fox" not in cache
    rows = cache.read([PROMPTS[i] for i in (3, 1, 0, 1)])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, states[[3, 1, 0, 1]])
    cache.append(["new"], states[:1])
    again = TextCache(tmp_path).read([*PROMPTS, "new"])
    np.testing.assert_array_equal(again, states[[0, 1, 2, 3, 0]])


def test_processes_that_take_turns_write_no_part_twice(tmp_path):
    states = make(tmp_path)
    caches = [TextCache(tmp_path) for _ in range(2)]
    for number, cache in enumerate(caches):
        cache.take_turns(number, len(caches))
    for turn in range(2):
        for number, cache in enumerate(caches):
            cache.append([f"{turn}, {number}"], states[2 * turn + number][None])
    found = TextCache(tmp_path)
    assert len(found) == 8 and len(list(tmp_path.glob("part-*"))) == 6
    names = [f"{turn}, {number}" for turn in range(2) for number in range(2)]
    np.testing.assert_array_equal(found.read(names), states)


def test_it_is_as_large_as_its_states(tmp_path):
    make(tmp_path)
    cache = TextCache(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("part-*"))
    assert 4 * cache.row_bytes == 4 * 3 * 4 * 2 < size < 4 * cache.row_bytes + 2 * 400


def test_a_damaged_row_is_named(tmp_path):
    states = make(tmp_path)
    path = tmp_path / "part-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    cache = TextCache(tmp_path)
    np.testing.assert_array_equal(cache.read(PROMPTS[:3]), states[:3])
    named = r"part-00001\.safetensors: row 1, 'a photo of a red fox' is damaged; remove that file"
    with pytest.raises(InputError, match=named):
        cache.read(PROMPTS)


def test_a_prompt_keeps_to_its_row(tmp_path):
    """Two prompts of a part changed places in its head: the checksums are of prompt and row."""
    states = make(tmp_path)
    path = tmp_path / "part-00000.safetensors"
    head = safetensors.safe_open(path, "np").metadata()
    head["prompts"] = json.dumps(["café", ""])
    path.write_bytes(safetensors.numpy.save({"states": states[:2].astype(jnp.bfloat16)}, head))
    with pytest.raises(InputError, match=r"part-00000\.safetensors: row 1, '' is damaged"):
        TextCache(tmp_path).read([""])


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_file_cut_short_is_named(tmp_path, keep):
    make(tmp_path)
    path = tmp_path / "part-00000.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"part-00000\.safetensors: its (head|length) is damaged"):
        TextCache(tmp_path)


def test_a_part_of_another_cache(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "other", "float32")
    (tmp_path / "one" / "part-00000.safetensors").rename(
        tmp_path / "other" / "part-00007.safetensors"
    )
    with pytest.raises(InputError, match=r"part-00007\.safetensors is of another encoder than"):
        TextCache(tmp_path / "other")


@pytest.mark.parametrize("text", ["{}", "[]", '{"encoder": {"dtype": "real"}, "shape": [3, 4]}'])
def test_a_damaged_encoder_json(tmp_path, text):
    (tmp_path / "encoder.json").write_text(text)
    with pytest.raises(InputError, match=r"encoder\.json is damaged; remove .* and make it again"):
        TextCache(tmp_path)


def test_a_cache_stands_for_the_encoder(tmp_path):
    states = make(tmp_path)
    text = encoder(tmp_path)
    assert text.shape == (3, 4) and text.parameters() == {}
    assert text.digest == TextCache(tmp_path).digest != ""
    hash(text)
    np.testing.assert_array_equal(text.embed([" Red FOX"]), states[2:3])
    np.testing.assert_array_equal(text.null(), states[:1])
    zeros = encoder(tmp_path, null="zeros").null()
    np.testing.assert_array_equal(zeros, np.zeros((1, 3, 4), np.float32))
    templated = encoder(tmp_path, template="A photo of a {}")
    np.testing.assert_array_equal(templated.embed(["red fox"]), states[3:])
    np.testing.assert_array_equal(templated.null(), states[:1])
    # What stands for no text is in no template.
    both = templated.embed(["red fox"], ["Red fox", "", "red fox"])
    np.testing.assert_array_equal(both, states[[3, 2, 0, 2]])
    both = encoder(tmp_path, null="zeros").embed((), ["red fox", ""])
    np.testing.assert_array_equal(both, [states[2], np.zeros_like(states[0])])


@pytest.mark.parametrize(("fields", "row"), [({}, None), ({"preprocessing": CLEANED}, 2)])
def test_a_cache_says_what_became_of_its_prompts(tmp_path, monkeypatch, fields, row):
    monkeypatch.setitem(globals(), "ENCODER", ENCODER | fields)
    states, text = make(tmp_path), encoder(tmp_path)
    if row is None:
        with pytest.raises(InputError, match=r"prompt '\(red fox\)' is not in"):
            text.embed(["(red fox)"])
    else:
        np.testing.assert_array_equal(text.embed(["(red fox)"])[0], states[row])


def test_a_cache_of_unknown_preprocessing(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ENCODER", ENCODER | {"preprocessing": "stemming"})
    make(tmp_path)
    with pytest.raises(
        InputError,
        match=r"preprocessed in one of the ways .*got 'stemming'",
    ):
        encoder(tmp_path)


def test_a_missing_prompt_is_named_with_the_command(tmp_path):
    make(tmp_path)
    command = "python -m imagen_ft.text --prompts=FILE --weights=weights/if --dtype=bfloat16 "
    command += "--noclean_caption --to="
    with pytest.raises(InputError, match=f"prompt 'Owl' is not in .*{command}{tmp_path}$"):
        encoder(tmp_path).embed(["café", "Owl"])
    with pytest.raises(
        InputError, match=r"'hen' is not in .* \(nor are 1 more\).* '--template=my {}'$"
    ):
        encoder(tmp_path, template="my {}").embed(["hen", "café"])
    with pytest.raises(
        InputError, match=rf"'blurry' is not in .*bfloat16 --noclean_caption --to={tmp_path}$"
    ):
        encoder(tmp_path, template="A photo of a {}").embed(["red fox"], ["", "blurry"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"null": "none"}, r"config\.text\.null must be empty or zeros, got none"),
        (
            {"template": "photo"},
            r"config\.text\.template must have one \{\}, for the prompt, got photo",
        ),
        ({"template": "{} {}"}, r"must have one {}"),
    ],
)
def test_wrong_fields(tmp_path, fields, said):
    make(tmp_path)
    with pytest.raises(InputError, match=said):
        encoder(tmp_path, **fields)


def test_no_cache(tmp_path):
    with pytest.raises(InputError, match=r"none is not a text cache; make one with python -m"):
        encoder(tmp_path / "none")


def test_a_cache_without_the_empty_prompt(tmp_path):
    make(tmp_path)
    (tmp_path / "part-00000.safetensors").unlink()
    assert encoder(tmp_path, null="zeros").null().shape == (1, 3, 4)
    with pytest.raises(InputError, match=r"lacks the empty prompt; run python -m"):
        encoder(tmp_path)
