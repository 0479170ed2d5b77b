import numpy as np
import pytest
from transformers import CLIPTokenizer, SiglipTokenizer

from classifiers.clip.tokenizer import load_clip_tokenizer
from launch.errors import InputError
from tests.support.clip_vocabulary import END, write_tokenizer
from tests.support.tiny_pieces import pieces_of_class_names


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_tokens(pad, tmp_path, capsys):
    """Those of transformers; a prompt that is too long is cut, and named."""
    folder = write_tokenizer(tmp_path, 9, pad)
    prompts = ["a  Dog", "", "cat cat dog dog cat cat dog dog", "dog cat dog cat dog cat dog"]
    tokens = load_clip_tokenizer(folder, 9)(prompts)
    theirs = CLIPTokenizer.from_pretrained(folder)
    expected = theirs(prompts, padding="max_length", max_length=9, truncation=True)["input_ids"]
    np.testing.assert_array_equal(tokens, expected)
    assert tokens[1, 2:].tolist() == [END if pad != "!" else 0] * 7 and tokens[3, -1] == END
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"warning: prompt {prompts[2]!r} has 10 tokens, the text encoder takes 9: its end is cut "
        "off ('dog')"
    ]
    assert load_clip_tokenizer(folder, 9)([]).shape == (0, 9)


def test_a_thousand_texts(tmp_path, capsys):
    """Unicode, markup, long and empty ones, whose bytes are all in the vocabulary."""
    fragments = ["dog", "cat", "a  Dog\n", "&amp;", "<b>cat</b>", "\u00e9t\u00e9", "e\u0301"]
    fragments += ["\u732b", "\U0001f431", "don't", "it's", "<|endoftext|>", "\u00a0", "\u200d"]
    fragments += ["12 345", "_x_", "\u00df", "\u0130"]
    rng = np.random.default_rng(0)
    texts = ["", " ", *fragments, "cat " * 200]
    while len(texts) < 1000:
        chosen = rng.choice(fragments, rng.integers(1, 12))
        texts.append(rng.choice(["", " "]).join(map(str, chosen)))
    folder = write_tokenizer(tmp_path, 20)
    tokens = load_clip_tokenizer(folder, 20)(texts)
    theirs = CLIPTokenizer.from_pretrained(folder)
    expected = theirs(texts, padding="max_length", max_length=20, truncation=True)["input_ids"]
    np.testing.assert_array_equal(tokens, expected)
    assert len(np.unique(tokens)) > 40 and (tokens[:, -1] == END).all()
    assert len(capsys.readouterr().err.splitlines()) > 100  # are told that they are cut


def test_folders_without_one(tmp_path):
    with pytest.raises(InputError, match=r" has no tokenizer \(tokenizer\.json or vocab\.json\)"):
        load_clip_tokenizer(tmp_path)
    folder = write_tokenizer(tmp_path / "damaged", 9)
    (folder / "vocab.json").write_text("{")
    with pytest.raises(InputError, match=r"damaged: the tokenizer cannot be read"):
        load_clip_tokenizer(folder)


def test_siglip(tmp_path, capsys):
    """From spiece.model alone: lower case, no punctuation, an end token, no start."""
    (tmp_path / "spiece.model").write_bytes(pieces_of_class_names())
    texts = ["A photo of a Tench!", "", "goldfish, great white shark", "tench " * 20]
    tokenizer = load_clip_tokenizer(tmp_path, 16)
    tokens = tokenizer(texts)
    theirs = SiglipTokenizer.from_pretrained(tmp_path)
    expected = theirs(texts, padding="max_length", max_length=16, truncation=True)["input_ids"]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(tokens[0], tokenizer(["a photo of a tench"])[0])
    end = theirs.eos_token_id
    assert tokens[1, 0] == end and (tokens == end).any(axis=1).all() and tokens[3, -1] == end
    assert "takes 16: its end is cut off" in capsys.readouterr().err
