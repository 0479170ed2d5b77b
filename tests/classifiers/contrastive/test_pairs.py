"""What a batch of pairs holds: captions, sentences about classes, one image of each caption."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from classifiers.clip import byte_tokenizer
from classifiers.contrastive import pairs, words
from classifiers.models.clip_text import ClipTextEncoder
from input_pipeline.sources.digits import DIGIT_NAMES
from input_pipeline.synthetic.writer import SyntheticWriter
from launch.errors import InputError
from launch.runtime.devices.mesh import make_mesh
from tests.support.synthetic_set import write_shard

TEXT = dict(width=8, mlp_width=8, num_layers=1, num_heads=1, vocab_size=514, end_token=513)
LENGTH = 20


@pytest.fixture(scope="module")
def tokenizer():
    return words.open_tokenizer(words.read_files("bytes", LENGTH), tower())


def tower(**changes):
    return ClipTextEncoder(**{**TEXT, "max_length": LENGTH, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sets of 20 images of one level each, 50 and 200; image n has the prompt 'n'."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, level in (("a", 50), ("b", 200)):
        counts = [2] * 10
        writer = SyntheticWriter(folder / name, name, DIGIT_NAMES, (8, 8, 1), counts, 1, 20, {})
        images = np.full((20, 8, 8, 1), level, np.uint8)
        write_shard(writer, 0, images, [chr(97 + n) for n in writer.plan.indices(0)])
        writer.finish()
    return folder


def config_of(folder, **changes):
    source = dict(name="synthetic", caption="prompt")
    sources = {name: dict(source, path=f"{folder}/{name}") for name in ("a", "b")}
    own = dict(
        train_sources=sources, batch_size=10, seed=0, augment={}, evaluation={}, draw="union"
    )
    return ConfigDict({**own, **changes})


def batches(config, tokenizer, count):
    opened, whole = pairs.open_pairs(config)
    mesh = make_mesh({"data": -1})
    reader = pairs.make_reader(config, opened, whole, tokenizer, (8, 8, 1), mesh)
    return list(reader(0, count))


def texts(tokenizer, tokens):
    return [tokenizer.pieces.decode(row, skip_special_tokens=True).strip() for row in tokens]


def test_every_image_has_its_caption(folder, tokenizer):
    read = batches(config_of(folder), tokenizer, 4)
    assert all(batch["tokens"].shape == (10, LENGTH) for batch in read)
    levels = np.concatenate([batch["image"][:, 0, 0, 0] for batch in read])
    captions = [text for batch in read for text in texts(tokenizer, batch["tokens"])]
    # An epoch: each image of both sets once.
    assert sorted(zip(captions, levels.tolist(), strict=True)) == sorted(
        (chr(97 + n), level) for n in range(20) for level in (50, 200)
    )


def test_one_image_of_each_caption(folder, tokenizer):
    read = batches(config_of(folder, draw="one_of_each"), tokenizer, 12)
    drawn = {}
    for start in range(0, 12, 2):
        epoch = read[start : start + 2]
        captions = [text for batch in epoch for text in texts(tokenizer, batch["tokens"])]
        assert sorted(captions) == sorted(chr(97 + n) for n in range(20))
        levels = np.concatenate([batch["image"][:, 0, 0, 0] for batch in epoch]).tolist()
        for caption, level in zip(captions, levels, strict=True):
            drawn.setdefault(caption, []).append(level)
    # In six epochs nearly every caption is seen with both, half of the time each.
    assert sum(len(set(levels)) == 2 for levels in drawn.values()) >= 16
    assert 0.35 < np.mean([level == 50 for levels in drawn.values() for level in levels]) < 0.65


def test_classes_are_named_in_sentences(tokenizer):
    sources = dict(real=dict(name="digits", split="validation"))
    config = config_of("", train_sources=sources, templates=("a {}", "the {}"))
    (batch, *_) = batches(config, tokenizer, 10)
    found = {text for text in texts(tokenizer, batch["tokens"])}
    assert found <= {f"{word} {name}" for word in ("a", "the") for name in DIGIT_NAMES}
    assert {text.split()[0] for text in found} == {"a", "the"}


def test_bytes_are_tokens(tokenizer):
    rows = tokenizer(["Ab é", "x" * 50], warn=False)
    vocabulary = {v: k for k, v in tokenizer.pieces.get_vocab().items()}
    assert len(vocabulary) == byte_tokenizer.VOCAB_SIZE
    pieces = [vocabulary[token] for token in rows[0]]
    assert pieces[:5] == ["<|startoftext|>", "a", "b</w>", "Ã", "©</w>"]
    assert rows[0, 5] == byte_tokenizer.END_TOKEN and rows[1, -1] == byte_tokenizer.END_TOKEN


def test_wrong_input(folder, tokenizer, tmp_path):
    def refused(said, **changes):
        with pytest.raises(InputError, match=said):
            batches(config_of(folder, **changes), tokenizer, 1)

    refused("config.draw must be one of union, one_of_each, got 'all'", draw="all")
    only = dict(real=dict(name="digits", split="validation"))
    refused(
        "at least two with draw='one_of_each', got real", draw="one_of_each", train_sources=only
    )
    others = {**config_of(folder).train_sources.to_dict(), **only}
    refused("must have an image for each of the 20 of a", draw="one_of_each", train_sources=others)
    same = config_of(folder).train_sources.to_dict()
    same["b"]["caption"] = "class_name"
    refused(
        "must have the caption 'a', as in a, got 'zero'", draw="one_of_each", train_sources=same
    )
    refused("draw='one_of_each' each source is", draw="one_of_each", synthetic_weight=0.5)
    refused("templates must hold {} once each", templates=("digit",))
    same["b"]["caption"] = "title"
    refused("caption must be one of prompt, class_name, got 'title'", train_sources=same)
    with pytest.raises(InputError, match=r"config\.tokenizer must be the folder"):
        words.read_files("", LENGTH)
    with pytest.raises(InputError, match="has none of"):
        words.read_files(str(tmp_path), LENGTH)
    contents = words.read_files("bytes", LENGTH)
    for changes in (dict(vocab_size=400), dict(end_token=5)):
        with pytest.raises(InputError, match=r"config\.clip\.text must have vocab_size at least"):
            words.open_tokenizer(contents, tower(**changes))
