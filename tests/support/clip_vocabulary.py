"""A tiny vocabulary like CLIP's: bytes, four pieces, start and end."""

import json

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTES = list(bytes_to_unicode().values())
_MERGES = ("d o", "do g</w>", "c a", "ca t</w>")
VOCABULARY = [
    *_BYTES,
    *(f"{byte}</w>" for byte in _BYTES),
    *("".join(merge.split()) for merge in _MERGES),
    "<|startoftext|>",
    "<|endoftext|>",
]
END = len(VOCABULARY) - 1


def write_tokenizer(folder, max_length, pad="<|endoftext|>"):
    """The files of Stable Diffusion's repositories; its second version pads with '!'."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = dict(
        tokenizer_class="CLIPTokenizer",
        model_max_length=max_length,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token=pad,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.json").write_text(json.dumps({v: n for n, v in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES]) + "\n")
    return folder
