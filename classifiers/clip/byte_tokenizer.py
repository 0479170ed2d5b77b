"""A tokenizer like CLIP's that needs no download: every byte is a token."""

import json

from classifiers.clip.tokenizer import TOKENIZER_FILES

NAME = "bytes"
_START, _END = "<|startoftext|>", "<|endoftext|>"
# Tokens: every byte, every byte at the end of a word, start and end.
VOCAB_SIZE, END_TOKEN = 514, 513


def files(max_length: int) -> dict[str, bytes]:
    """Its files by name, as transformers reads them; `max_length` includes padding."""
    # GPT-2's letters for bytes: printable bytes are themselves, the others the letters from 256.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + n) for n in range(len(others)))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), _START, _END]
    settings = dict(
        tokenizer_class="CLIPTokenizer",
        model_max_length=max_length,
        bos_token=_START,
        eos_token=_END,
        unk_token=_END,
        pad_token=_END,
    )
    # Without merges every byte stays a token of its own.
    contents = {
        "vocab.json": json.dumps({token: number for number, token in enumerate(vocabulary)}),
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps(settings),
    }
    assert set(contents) <= set(TOKENIZER_FILES)
    return {name: text.encode() for name, text in contents.items()}
