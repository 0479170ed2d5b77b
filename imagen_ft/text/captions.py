"""How a text is made ready for the tokenizer: plainly, or cleaned as DeepFloyd IF's captions were.

IF was trained on captions from the web, without the marks that these are full of, and its pipelines
clean prompts in the same way before T5 sees them (diffusers' `clean_caption=True`). What is done,
and in which order, is theirs; markup and broken encodings are Beautiful Soup's and ftfy's part, as
there.
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
# CLIP's tokenizers lower the case themselves.
AS_IT_IS = "as it is"
KINDS = (PLAIN, CLEANED, AS_IT_IS)

_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_LETTER, _SIGN = "[a-zA-Z]", "[xх×]"  # noqa: RUF001 - one of these is Cyrillic
# All of the basic plane but the newest, which IF leaves as it is.
_DASHES = "".join(
    c for c in map(chr, range(0x10000)) if unicodedata.category(c) == "Pd" and c != "\u2e5d"
)

Rules = tuple[tuple[re.Pattern[str], str], ...]


def preprocess(text: str, kind: str) -> str:
    """What is tokenised of a text; `kind` is one of `KINDS`."""
    if kind == CLEANED:
        return clean_caption(text)
    return text if kind == AS_IT_IS else text.lower().strip()


def prompt_keys(prompts: Sequence[str], template: str, kind: str) -> list[str]:
    """What a cache knows prompts by: the texts that are tokenised; says where nothing is left.

    Args:
        prompts: to be put into the template.
        template: with `{}` where a prompt goes.
        kind: one of `KINDS`.
    """
    keys = [preprocess(template.replace("{}", prompt), kind) for prompt in prompts]
    lost = [prompt for prompt, key in zip(prompts, keys, strict=True) if prompt.strip() and not key]
    if lost:
        more = f" (and of {len(lost) - 1} more)" if len(lost) > 1 else ""
        say(f"warning: cleaning leaves nothing of the prompt {lost[0]!r}{more}")
    return keys


def check_template(field: str, template: str) -> None:
    """Looks for the `{}` that a prompt takes the place of.

    Raises:
        InputError: there is none, or more than one.
    """
    if template.count("{}") != 1:
        raise InputError(f"{field} must have one {{}}, for the prompt, got {template}")


def text_keys(
    prompts: Sequence[str], nulls: Sequence[str], template: str, kind: str, null_text: str
) -> list[str | None]:
    """The keys of prompts, then of texts that stand for no text, which no template is around.

    Args:
        prompts: see `prompt_keys`.
        nulls: as they are.
        template: see `prompt_keys`.
        kind: see `prompt_keys`.
        null_text: 'zeros' where the empty one of `nulls` has no states, but zeros: None.
    """
    no_text = None if null_text == "zeros" else ""
    keys = prompt_keys(nulls, "{}", kind)
    return [*prompt_keys(prompts, template, kind), *(key or no_text for key in keys)]


def clean_caption(text: str) -> str:
    """What DeepFloyd IF makes of a prompt, cleaned twice; of ideographs nothing is left."""
    return _clean(_clean(text))


def _clean(text: str) -> str:
    # Both take a while to import, and only who has prompts needs them.
    import ftfy

    text = urllib.parse.unquote_plus(text).strip().lower()
    text = _apply(_ADDRESSES, text)
    text = _apply(_MARKS, _without_markup(text))
    if sum(map(text.count, "-_")) > 3:
        text = text.replace("-", " ").replace("_", " ")
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _apply(_WORDS, text).strip()


def _without_markup(text: str) -> str:
    import bs4

    with warnings.catch_warnings():
        # It warns of texts that look like the name of a file: ours are texts.
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
    # The beginning of an address, or the whole of one with a common ending.
    *((rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN})", "") for scheme in ("https?", "www")),
)
_MARKS = _rules(
    (r"@\w+", ""),  # names of users
    ("[\u31c0-\u9fff]+", ""),  # CJK, from strokes to ideographs
    (f"[{re.escape(_DASHES)}]+", "-"),
    ("[`´«»“”¨]", '"'),  # noqa: RUF001
    ("[‘’]", "'"),  # noqa: RUF001
    ("&quot;?|&amp", ""),
    (r"(?:\d{1,3}\.){3}\d{1,3}", " "),  # addresses of computers
    (r"\d:\d\d\s+$", ""),  # numbers of articles
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
    # Numbers of models and of parts.
    (rf"\b{_LETTER}{{1,3}}\d{{3,15}}\b", ""),
    (rf"\b{_LETTER}+\d+{_LETTER}+\b", ""),
    (rf"\b\d+{_LETTER}+\d+\b", ""),
    # Words of shops.
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (rf"\b\d*{_LETTER}+\d+{_LETTER}+\d+[a-zA-Z\d]*\b", " "),
    (rf"\b\d+\.?\d*{_SIGN}\d+\.?\d*\b", ""),  # sizes
    # White space, and what is left at the ends.
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
