"""CLIP's text encoders as those of a cascade, against transformers and diffusers."""

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from imagen_ft.text import __main__ as command
from imagen_ft.text.cache import TextCache
from imagen_ft.text.encoders import make_text_encoder
from launch.errors import InputError
from tests.parity.latent_models import LENGTH, POOLED, TEXT, save_pipeline
from tests.parity.torch_weights import relative_error

PROMPTS = ["a  Dog", "cat cat dog"]
LONG = "cat cat dog dog cat cat dog dog"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    for kind in ("sd15", "sdxl"):
        save_pipeline(folder / kind, kind, "epsilon")
    return folder


def make(folder, **fields):
    return make_text_encoder(ConfigDict(dict(weights=str(folder), dtype="float32", **fields)))


def theirs(folder, prompts):
    """Last and penultimate states of the first encoder; penultimate and pooled of the second."""
    found = []
    for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        if (folder / f"tokenizer{suffix}").exists():
            tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
            tokens = tokenizer(
                prompts, padding="max_length", max_length=LENGTH, truncation=True
            ).input_ids
            model = kind.from_pretrained(folder / f"text_encoder{suffix}")
            with torch.no_grad():
                found.append(model(torch.tensor(tokens), output_hidden_states=True))
    return found


def test_one_encoder(pipelines, capsys):
    encoder = make(pipelines / "sd15")
    assert encoder.shape == (LENGTH, TEXT)
    prompts = [*PROMPTS, LONG]
    states = encoder.embed(prompts, ["", "dog dog"])
    (expected,) = theirs(pipelines / "sd15", [*prompts, "", "dog dog"])
    assert relative_error(states, expected.last_hidden_state) <= 1e-5
    encoder.embed(prompts)
    said = capsys.readouterr().err.splitlines()
    # Once, though asked for twice.
    assert [line for line in said if line.startswith("warning")] == [
        f"warning: prompt {LONG!r} has 10 tokens, the text encoder takes {LENGTH}: its end is cut "
        "off ('dog')"
    ]


def test_two_encoders(pipelines, capsys):
    """States side by side, the pooled text in a row of its own; no text is zeros."""
    encoder = make(pipelines / "sdxl", null="zeros")
    assert encoder.shape == (LENGTH + 1, 2 * TEXT)
    states = encoder.embed([*PROMPTS, LONG], ["", "dog dog"])
    first, second = theirs(pipelines / "sdxl", [*PROMPTS, LONG, "dog dog"])
    expected = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    assert relative_error(states[[0, 1, 2, 4], :-1], expected) <= 1e-5
    pooled = states[[0, 1, 2, 4], -1]
    assert relative_error(pooled[:, :POOLED], second.text_embeds) <= 1e-5
    assert not pooled[:, POOLED:].any() and not states[3].any()
    assert capsys.readouterr().err.count("warning: prompt") == 1


def test_a_cache(pipelines, tmp_path, capsys):
    """What the encoder itself gives, by prompts as they are; another tokenizer is another one."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    folder = pipelines / "sdxl"
    argv = ["text", f"--prompts={tmp_path / 'prompts.txt'}", "--dtype=float32"]
    argv += [f"--to={tmp_path / 'cache'}"]
    assert command.run([*argv, f"--weights={folder}"]) == 0
    cached = make_text_encoder(ConfigDict(dict(cache=str(tmp_path / "cache"))))
    encoder = make(folder)
    assert cached.digest == encoder.digest
    np.testing.assert_allclose(cached.embed(PROMPTS, [""]), encoder.embed(PROMPTS, [""]), atol=1e-5)
    assert "a  Dog" in TextCache(tmp_path / "cache")
    copy = tmp_path / "other"
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != "tokenizer_2":
            (copy / path.name).symlink_to(path)
    (copy / "tokenizer_2").mkdir()
    for path in (folder / "tokenizer_2").iterdir():
        (copy / "tokenizer_2" / path.name).write_bytes(path.read_bytes())
    merges = copy / "tokenizer_2" / "merges.txt"
    merges.write_text(merges.read_text() + "\n")
    assert make(copy).digest != encoder.digest
    capsys.readouterr()
    assert command.run([*argv, f"--weights={copy}"]) == 2
    said = capsys.readouterr().err
    assert "tokenizer was" in said and said.count("\n") == 1


def test_other_encoders_are_refused(pipelines, tmp_path):
    (tmp_path / "tokenizer").symlink_to(pipelines / "sd15" / "tokenizer")
    with pytest.raises(InputError, match="has no text_encoder"):
        make(tmp_path)
    with pytest.raises(InputError, match="max_length"):
        make(pipelines / "sd15", max_length=0)
