"""Prepares texts for the tokenizer: plainly, or cleaned as DeepFloyd IF's captions were.

IF was trained on captions from the web, with web debris removed, and its pipelines clean prompts in
the same way before T5 sees them (diffusers' `clean_caption=True`). The steps and their order are
theirs; as there, Beautiful Soup removes markup and ftfy repairs broken encodings.
"""

import html
import re
import unicodedata
import urllib.parse
import warnings
from collections.abc import Sequence

from launch.cli import say
from launch.errors import InputError

PLAIN = "lower-case, no white space around"
CLEANED = "caption cleaning of DeepFloyd IF"
# These strings identify caches on disk. CLIP's tokenizers lower the case themselves.
AS_IT_IS = "as it is"
KINDS = (PLAIN, CLEANED, AS_IT_IS)

_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_LETTER, _SIGN = "[a-zA-Z]", "[xх×]"  # noqa: RUF001 - one of these is Cyrillic
# All dashes of Unicode's basic plane except the newest, which IF leaves alone.
_DASHES = "".join(
    c for c in map(chr, range(0x10000)) if unicodedata.category(c) == "Pd" and c != "\u2e5d"
)

Rules = tuple[tuple[re.Pattern[str], str], ...]


def preprocess(text: str, kind: str) -> str:
    """The text that is tokenised; `kind` is one of `KINDS`."""
    if kind == CLEANED:
        return clean_caption(text)
    return text if kind == AS_IT_IS else text.lower().strip()


def prompt_keys(prompts: Sequence[str], template: str, kind: str) -> list[str]:
    """A cache's keys: prompts put into the template in place of `{}`, then preprocessed.

    Warns if cleaning leaves nothing of a prompt.
    """
    # Not `format`: a prompt or template may hold other braces.
    keys = [preprocess(template.replace("{}", prompt), kind) for prompt in prompts]
    lost = [prompt for prompt, key in zip(prompts, keys, strict=True) if prompt.strip() and not key]
    if lost:
        more = f" (and of {len(lost) - 1} more)" if len(lost) > 1 else ""
        say(f"warning: cleaning leaves nothing of the prompt {lost[0]!r}{more}")
    return keys


def check_template(field: str, template: str) -> None:
    """Raises `InputError` unless the template has exactly one `{}`, for the prompt."""
    if template.count("{}") != 1:
        raise InputError(f"{field} must have one {{}}, for the prompt, got {template}")


def text_keys(
    prompts: Sequence[str], nulls: Sequence[str], template: str, kind: str, null_text: str
) -> list[str | None]:
    """Keys of `prompts`, then of `nulls`, which stand for no text and get no template.

    The key of an empty null is None, for states of zeros, if `null_text` is 'zeros'.
    """
    no_text = None if null_text == "zeros" else ""
    keys = prompt_keys(nulls, "{}", kind)
    return [*prompt_keys(prompts, template, kind), *(key or no_text for key in keys)]


def clean_caption(text: str) -> str:
    """Cleans a prompt as DeepFloyd IF does; ideographs are removed."""
    # Twice, as IF's pipelines do: removing one thing can uncover another.
    return _clean(_clean(text))


def _clean(text: str) -> str:
    # Imported here, as bs4 below: slow to import, and needed only to clean prompts.
    import ftfy

    # 1. Addresses, and "<person>", which the next step would remove as a tag.
    text = urllib.parse.unquote_plus(text).strip().lower()
    text = _apply(_ADDRESSES, text)
    text = _apply(_MARKS, _without_markup(text))
    # 2. More than three hyphens or underscores: they stand for spaces.
    if sum(map(text.count, "-_")) > 3:
        text = text.replace("-", " ").replace("_", " ")
    # 3. Encodings. Unescaped twice, for the likes of "&amp;lt;".
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(_WORDS, text).strip()


def _without_markup(text: str) -> str:
    import bs4

    with warnings.catch_warnings():
        # It warns about texts that look like a file name or an address; prompts may.
        warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
        return bs4.BeautifulSoup(text, "html.parser").text


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_ADDRESSES = _rules(
    ("<person>", "person"),
    # The start of an address, or all of one with a common ending.
    *((rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", "") for scheme in ("https?", "www")),
)
_MARKS = _rules(
    (r"@\w+", ""),  # user names
    ("[\u31c0-\u9fff]+", ""),  # CJK, from strokes to ideographs
    (f"[{re.escape(_DASHES)}]+", "-"),
    ("[`´«»“”¨]", '"'),  # noqa: RUF001
    ("[‘’]", "'"),  # noqa: RUF001
    ("&quot;?|&amp", ""),
    (r"(?:\d{1,3}\.){3}\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),
    (r"#(?:\d{1,3}|\d{5,})\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE}", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_WORDS = _rules(
    # Model and part numbers.
    (rf"\b{_LETTER}{{1,3}}\d{{3,15}}\b", ""),
    (rf"\b{_LETTER}+\d+{_LETTER}+\b", ""),
    (rf"\b\d+{_LETTER}+\d+\b", ""),
    # Words of web shops.
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (rf"\b\d*{_LETTER}+\d+{_LETTER}+\d+[a-zA-Z\d]*\b", " "),
    (rf"\b\d+\.?\d*{_SIGN}\d+\.?\d*\b", ""),  # sizes
    # White space, and debris at the ends.
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
