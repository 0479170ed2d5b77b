"""A pipeline folder as the published ones are: a random T5 and a SentencePiece model, both tiny."""

from transformers import T5Config, T5EncoderModel
from transformers.utils import logging

from tests.parity.torch_weights import randomize
from tests.support.tiny_pieces import PIECES, pieces_of_class_names

logging.disable_progress_bar()

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
