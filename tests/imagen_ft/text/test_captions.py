"""Cleaning against that of diffusers' pipeline, on texts as they are found on the web."""

import json
import random
import types
import warnings
from pathlib import Path

from diffusers import IFPipeline

from imagen_ft.text import captions
from input_pipeline import class_names

FRAGMENTS = json.loads(Path(__file__).with_name("awkward.json").read_text())


def awkward(count):
    """So many texts, put together from their marks."""
    rng, joins = random.Random(0), ("", " ", " ", ", ", "-", "_", ".", "'")
    for number in range(count):
        pieces = [rng.choice(FRAGMENTS) for _ in range(rng.randrange(1, 9))]
        if number % 5 == 0:
            pieces.append("".join(chr(rng.randrange(1, 0x3200)) for _ in range(3)))
        yield "".join(piece + rng.choice(joins) for piece in pieces)


def in_diffusers(texts):
    this = types.SimpleNamespace(bad_punct_regex=IFPipeline.bad_punct_regex)
    this._clean_caption = lambda text: IFPipeline._clean_caption(this, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return IFPipeline._text_preprocessing(this, texts, clean_caption=True)


def test_captions_are_cleaned_as_in_diffusers():
    texts = ["", "  ", *FRAGMENTS, *awkward(1000)]
    expected = in_diffusers(texts)
    cleaned = [captions.clean_caption(text) for text in texts]
    wrong = [row for row in zip(texts, cleaned, expected, strict=True) if row[1] != row[2]]
    assert not wrong, wrong[0]
    assert sum(text.lower().strip() != row for text, row in zip(texts, cleaned, strict=True)) > 900


def test_class_names_of_imagenet():
    names = class_names.load("imagenet")
    cleaned = {name: captions.clean_caption(name) for name in names}
    assert [cleaned[name] for name in names] == in_diffusers(list(names))
    changed = {name for name in names if cleaned[name] != name.lower()}
    assert len(changed) == 11
    assert cleaned["kite (bird of prey)"] == "kite bird of prey"
    assert len(set(cleaned.values())) == len(set(names))


def test_a_prompt_of_which_nothing_is_left_is_said(capsys):
    prompts = ["\u732b", "a cat", "", " "]
    assert captions.prompt_keys(prompts, "{}", captions.CLEANED) == ["", "a cat", "", ""]
    said = capsys.readouterr().err
    assert said == "warning: cleaning leaves nothing of the prompt '\u732b'\n"
    assert captions.prompt_keys(prompts, "{}", captions.PLAIN)[0] == "\u732b"
    assert not capsys.readouterr().err
