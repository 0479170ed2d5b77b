"""The tokenizer of a run: its files, from where they are into the run directory."""

import tempfile
from pathlib import Path

from etils import epath

from classifiers.clip import byte_tokenizer
from classifiers.clip.tokenizer import (
    TOKENIZER,
    TOKENIZER_FILES,
    ClipTokenizer,
    load_clip_tokenizer,
)
from classifiers.models.clip_text import ClipTextEncoder
from launch.errors import InputError
from launch.files import temporary_folder, write_atomic


def read_files(named: str, max_length: int) -> dict[str, bytes]:
    """The files of a tokenizer by name: of a folder, of an import of weights, or of 'bytes'.

    Raises:
        InputError: the folder holds none.
    """
    if named == byte_tokenizer.NAME:
        return byte_tokenizer.files(max_length)
    if not named:
        raise InputError(
            f"config.tokenizer must be the folder of a tokenizer, or {byte_tokenizer.NAME!r}, got "
            "''"
        )
    folder = Path(named).expanduser()
    inner = folder / TOKENIZER  # of an import of weights, or of a run
    folder = inner if inner.is_dir() else folder
    paths = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not paths:
        raise InputError(
            f"config.tokenizer={named} has none of {', '.join(TOKENIZER_FILES)}; use the folder of "
            f"a tokenizer, or {byte_tokenizer.NAME!r}"
        )
    return {path.name: path.read_bytes() for path in paths}


def open_tokenizer(contents: dict[str, bytes], text: ClipTextEncoder) -> ClipTokenizer:
    """The tokenizer of these files, for the tower `text`.

    Raises:
        InputError: they are damaged, or of another tower.
    """
    # transformers reads a local folder only, and the run directory may be in a bucket.
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        for name, data in contents.items():
            (Path(folder) / name).write_bytes(data)
        tokenizer = load_clip_tokenizer(Path(folder), text.max_length)
    if not tokenizer.fits(text):
        raise InputError(
            f"config.clip.text must have vocab_size at least {tokenizer.size} and end_token "
            f"{tokenizer.pieces.eos_token_id}, as in config.tokenizer, got {text.vocab_size} and "
            f"{text.end_token}; set them"
        )
    return tokenizer


def keep(contents: dict[str, bytes], workdir: epath.Path) -> None:
    """Writes the files into a run directory, where `ClipRun` looks for them."""
    (workdir / TOKENIZER).mkdir(exist_ok=True)
    for name, data in contents.items():
        write_atomic(workdir / TOKENIZER / name, data)
