"""From a pipeline's folder to a cache, by the command; what is wrong with it, in one line."""

import fcntl
import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from diffusers import IFPipeline
from ml_collections import ConfigDict

from imagen_ft.text import __main__, embedder, t5_embedder
from imagen_ft.text.cache import TextCache
from imagen_ft.text.captions import CLEANED, preprocess
from imagen_ft.text.encoders import make_text_encoder
from imagen_ft.text.tokenizer import load_t5_tokenizer
from input_pipeline import class_names
from tests.imagen_ft.text import tiny_text
from tests.parity.torch_weights import relative_error

# None is changed by cleaning but the last two.
NAMES = ["zero", "  One", "two", "Red FOX", "two", "hen (of the woods) mushroom", "<b>(zero)"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_text.save(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(NAMES) + "\n\n")
    return path


@pytest.fixture(scope="module")
def cache(pipeline, tmp_path_factory):
    """Of NAMES, in float32."""
    folder = tmp_path_factory.mktemp("cache")
    path = folder / "prompts.json"
    path.write_text(json.dumps(NAMES))
    assert run(path, pipeline, folder / "cache", "--dtype=float32", "--batch_size=3") == 0
    return folder / "cache"


def run(prompts, weights, to, *argv):
    """The exit code."""
    where = [f"--prompts={prompts}", f"--weights={weights}", f"--to={to}"]
    return __main__.run(["text", *where, *argv])


def cached(pipeline, tmp_path, *names):
    """A cache of these names."""
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert run(tmp_path / "names.txt", pipeline, tmp_path / "names") == 0
    return tmp_path / "names"


def one_line(capsys):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def in_diffusers(pipeline, prompts, dtype=torch.float32, negatives=None, clean=True):
    """The states of prompts and of what stands for no text by DeepFloyd IF's pipeline."""
    this = types.SimpleNamespace(
        tokenizer=transformers.T5Tokenizer.from_pretrained(pipeline / "tokenizer"),
        text_encoder=transformers.T5EncoderModel.from_pretrained(
            pipeline / "text_encoder", dtype=dtype
        ),
        _text_preprocessing=lambda *args, **kw: IFPipeline._text_preprocessing(this, *args, **kw),
        _clean_caption=lambda text: IFPipeline._clean_caption(this, text),
        bad_punct_regex=IFPipeline.bad_punct_regex,
        _execution_device="cpu",
    )
    options = dict(negative_prompt=negatives, clean_caption=clean)
    states = IFPipeline.encode_prompt(this, list(prompts), **options)
    return [states.float() for states in states]


def test_states_are_those_of_diffusers(pipeline, cache):
    encoder = make_text_encoder(ConfigDict(dict(cache=str(cache))))
    assert encoder.shape == (77, tiny_text.D_MODEL)
    flags = [f"--weights={pipeline}", "--dtype=float32", "--max_length=77"]
    assert encoder.cache.flags == flags
    states, null = in_diffusers(pipeline, NAMES)
    ours = encoder.embed(NAMES)
    assert ours.dtype == np.float32
    assert relative_error(ours, states) <= 1e-5
    assert relative_error(encoder.null(), null[:1]) <= 1e-5
    negatives = [*NAMES[1:], " RED #fox"]
    _, theirs = in_diffusers(pipeline, NAMES, negatives=negatives)
    assert relative_error(encoder.embed((), negatives), theirs) <= 1e-5
    np.testing.assert_array_equal(ours[-1], ours[0])
    assert len(TextCache(cache)) == 6  # five prompts, one of them twice, and the empty one


def test_bfloat16(pipeline, prompts, tmp_path):
    assert run(prompts, pipeline, tmp_path / "cache") == 0
    cache = TextCache(tmp_path / "cache")
    assert cache.row_bytes == 77 * tiny_text.D_MODEL * 2
    states, _ = in_diffusers(pipeline, NAMES)
    error = relative_error(cache.read([preprocess(name, CLEANED) for name in NAMES]), states)
    theirs, _ = in_diffusers(pipeline, NAMES, torch.bfloat16)
    assert 1e-4 < error < 1.5 * relative_error(theirs, states)


def test_the_same_command_goes_on(pipeline, cache, prompts, tmp_path, capsys, monkeypatch):
    """Interrupted while it writes its second part; two prompts a part."""
    monkeypatch.setattr(embedder, "PART_BYTES", 2 * TextCache(cache).row_bytes)
    append, to = TextCache.append, tmp_path / "cache"
    argv = (prompts, pipeline, to, "--dtype=float32", "--batch_size=3")

    def append_once(cache, *args):
        if len(cache) > 0:
            (to / ".part-00001.safetensors.0123.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        append(cache, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TextCache, "append", append_once)
        assert run(*argv) == 130
    assert len(TextCache(to)) == 2
    seen = []
    embed = t5_embedder.T5Embedder.embed
    spy = lambda self, prompts, size: seen.extend(prompts) or embed(self, prompts, size)  # noqa: E731
    monkeypatch.setattr(t5_embedder.T5Embedder, "embed", spy)
    assert run(*argv) == 0
    assert seen == ["one", "two", "red fox", "hen of the woods mushroom"]
    files = sorted(path.name for path in to.iterdir())
    assert files == [".lock", "encoder.json", *(f"part-{n:05d}.safetensors" for n in range(3))]
    whole = [preprocess(name, CLEANED) for name in ("", *NAMES)]
    np.testing.assert_allclose(TextCache(to).read(whole), TextCache(cache).read(whole), atol=1e-5)
    # Nothing is left to do, and so nothing is loaded.
    monkeypatch.setattr(t5_embedder.T5Embedder, "__post_init__", None)
    assert run(*argv) == 0
    assert "6 prompts, 0 of them new" in capsys.readouterr().out


def test_a_cache_of_prompts_as_they_are(pipeline, cache, prompts, tmp_path, capsys):
    """Who asks for it gets no cleaning, and the cache is another one that knows it."""
    flags = ["--dtype=float32", "--noclean_caption"]
    assert run(prompts, pipeline, tmp_path / "cache", *flags) == 0
    encoder = make_text_encoder(ConfigDict(dict(cache=str(tmp_path / "cache"))))
    states, _ = in_diffusers(pipeline, NAMES, clean=False)
    assert relative_error(encoder.embed(NAMES), states) <= 1e-5
    assert encoder.cache.flags[-1] == "--noclean_caption"
    assert encoder.digest != TextCache(cache).digest
    capsys.readouterr()
    assert run(prompts, pipeline, cache, *flags) == 2
    said = "(preprocessing was caption cleaning, now it is lower-case, no w); choose another"
    assert said in one_line(capsys)


@pytest.mark.parametrize("change", ["weights", "tokenizer", "dtype", "max_length"])
def test_another_encoder_is_refused(pipeline, cache, prompts, tmp_path, capsys, change):
    other, argv = pipeline, {"dtype": "float32"}
    if change == "weights":
        other = tmp_path / "other"
        tiny_text.save(other, seed=1)
    elif change == "tokenizer":
        other = shutil.copytree(pipeline, tmp_path / "other")
        (other / "tokenizer" / "tokenizer_config.json").write_text('{"extra_ids": 50}')
    else:
        argv[change] = {"dtype": "bfloat16", "max_length": 76}[change]
    before = sorted(cache.iterdir())
    assert run(prompts, other, cache, *(f"--{k}={v}" for k, v in argv.items())) == 2
    assert f"{cache} has the states of another encoder ({change} was " in one_line(capsys)
    assert sorted(cache.iterdir()) == before


def test_a_long_prompt_is_cut_and_told(pipeline, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    long = "Acorn " * 60
    path.write_text(f"short\n{long}\n{long} two\n")
    assert run(path, pipeline, tmp_path / "cache", "--dtype=float32") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "2 prompts are cut off after 77 tokens; first 'acorn acorn" in warnings[0]
    states = make_text_encoder(ConfigDict(dict(cache=str(tmp_path / "cache")))).embed([long])
    assert relative_error(states, in_diffusers(pipeline, [long])[0]) <= 1e-5


def test_tokens_are_those_of_sentencepiece(pipeline):
    """From spiece.model alone, as in the published repositories."""
    folder = pipeline / "tokenizer"
    tokenizer = load_t5_tokenizer(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    texts = [preprocess(name, CLEANED) for name in class_names.load("imagenet")]
    texts += ["", "a  b\tc", "½ ﬁne café 日本"]
    tokens, mask = tokenizer(texts)
    assert tokens.shape == mask.shape == (1003, 77)
    for text, row, used in zip(texts, tokens, mask, strict=True):
        ids = [*model.encode(text), 1]
        assert row[used].tolist() == ids
        assert used[: len(ids)].all() and not row[~used].any()
    assert tokenizer.too_long(texts) == []
    used = int(tokenizer(["red fox"])[1].sum())
    for most, long in ((used, []), (used - 1, ["red fox"])):
        assert load_t5_tokenizer(folder, most).too_long(["", "red fox"]) == long


def test_a_tokenizer_json_gives_the_same_tokens(pipeline, tmp_path):
    transformers.T5Tokenizer.from_pretrained(pipeline / "tokenizer").save_pretrained(tmp_path)
    (tmp_path / "spiece.model").unlink(missing_ok=True)
    assert (tmp_path / "tokenizer.json").exists()
    ours, theirs = load_t5_tokenizer(tmp_path), load_t5_tokenizer(pipeline / "tokenizer")
    texts = ["", "red fox", "½ ﬁne"]
    assert ours(texts)[0].tolist() == theirs(texts)[0].tolist()
    assert ours.digest != theirs.digest


@pytest.mark.parametrize("data", [b"nonsense", b"", None])
def test_a_damaged_tokenizer(pipeline, prompts, tmp_path, capsys, data):
    other = shutil.copytree(pipeline, tmp_path / "other")
    (other / "tokenizer" / "spiece.model").unlink()
    if data is not None:
        (other / "tokenizer" / "spiece.model").write_bytes(data)
    assert run(prompts, other, tmp_path / "cache") == 2
    said = "has no tokenizer" if data is None else "tokenizer: the tokenizer cannot be read ("
    assert said in one_line(capsys)
    assert not (tmp_path / "cache").exists()


def test_a_tokenizer_of_another_encoder(pipeline, prompts, tmp_path, capsys):
    """Ids beyond the embedding would be read as its last row."""
    tiny_text.save(tmp_path / "small", sentinels=10)
    assert run(prompts, tmp_path / "small", tmp_path / "cache") == 2
    assert "at most the text encoder's 310 tokens, got 400" in one_line(capsys)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prompts=none.txt"], "none.txt cannot be read"),
        (["--prompts=/dev/null"], "/dev/null is empty"),
        (["--weights=/dev/null"], "/dev/null"),
        (["--to=/dev/null"], "--to must be a folder, got the file /dev/null"),
        (["--dtype=float8"], "--dtype=float8: value should be one of <bfloat16|float16|float32>"),
        (["--batch_size=0"], "--batch_size must be at least 1, got 0"),
        (["--max_length=1"], "max_length must be at least 2 tokens, got 1"),
        (["--template=a photo"], "--template must have one {}, for the prompt, got a photo"),
        (["--promts=x"], "'promts'. Did you mean: process_id, prompts"),
        (["--weights="], "--weights is missing"),
        (["--max_length=many"], "--max_length=many"),
        (["more"], "'more' is not a flag"),
        (["--class_names=imagenet"], "give either --prompts or --class_names"),
    ],
)
def test_wrong_flags(pipeline, prompts, tmp_path, capsys, argv, said):
    assert run(prompts, pipeline, tmp_path / "cache", *argv) == 2
    assert said in one_line(capsys)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("text", "argv", "said"),
    [
        ("cat\ndog\ncat\n", [], "names.txt:3: 'cat' is already at "),
        ("cat\n\ndog\n", [], "names.txt:2 must be a class name, got a blank line"),
        (
            "cat\ndog\n",
            ["--num_classes=3"],
            "names.txt must have 3 names, one per class, got 2",
        ),
    ],
)
def test_class_names(pipeline, tmp_path, capsys, text, argv, said):
    (tmp_path / "names.txt").write_text(text)
    argv = [f"--class_names={tmp_path / 'names.txt'}", f"--weights={pipeline}", *argv]
    assert __main__.run(["text", *argv, f"--to={tmp_path / 'cache'}"]) == 2
    assert said in one_line(capsys)
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_something_else(pipeline, prompts, tmp_path, capsys):
    (tmp_path / ".notes.tmp").touch()
    (tmp_path / "notes.txt").touch()
    before = sorted(tmp_path.iterdir())
    assert run(prompts, pipeline, tmp_path) == 2
    assert f"--to={tmp_path} has other files in it" in one_line(capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_one_process_at_a_time(pipeline, prompts, tmp_path, capsys):
    shutil.copytree(cached(pipeline, tmp_path, "zero"), tmp_path / "cache")
    with open(tmp_path / "cache" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        capsys.readouterr()
        assert run(prompts, pipeline, tmp_path / "cache") == 2
    assert "in use by another process" in one_line(capsys)
    assert len(TextCache(tmp_path / "cache")) == 2


def test_help():
    command = [sys.executable, "-m", "imagen_ft.text", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "python -m imagen_ft.text --class_names=imagenet" in done.stdout
    assert "CLIP's 1,000 names" in done.stdout
