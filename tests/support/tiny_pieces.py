"""A tiny model of SentencePiece."""

import io

import sentencepiece

from input_pipeline import class_names

PIECES = 300


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
