"""A pipeline folder as the published ones are: a random T5 and a SentencePiece model, both tiny."""

import io

import sentencepiece
from transformers import T5Config, T5EncoderModel
from transformers.utils import logging

from input_pipeline import class_names
from tests.parity.torch_weights import randomize

logging.disable_progress_bar()

PIECES = 300
D_MODEL = 16


def save(folder, seed=0, sentinels=100):
    """Writes `text_encoder` and `tokenizer`, which holds no tokenizer.json."""
    config = T5Config(
        vocab_size=PIECES + sentinels,
        d_model=D_MODEL,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    randomize(T5EncoderModel(config), seed).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(pieces_of_class_names())


def pieces_of_class_names():
    """A SentencePiece model with T5's special ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(class_names.load("imagenet")),
        model_writer=model,
        vocab_size=PIECES,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
