"""Texts as models can read them: valid Unicode, and no longer than what is read.

This room knows no token and no file, and starts without torch.
"""

from __future__ import annotations

import re
from itertools import islice

__all__ = ["beginning", "repaired"]

_UNSAFE = re.compile("[\ud800-\udfff\x00]")
_CHARACTERS_PER_TOKEN = 50  # of a word so long that it is cut; no tokenizer here averages more


def repaired(text: str) -> str:
    """Return the same text if it is valid Unicode without NUL, else a repaired one."""
    if (text.isascii() and "\0" not in text) or _UNSAFE.search(text) is None:
        return text
    # UTF-16 joins two surrogates that belong together; a lone one becomes U+FFFD.
    units = text.replace("\0", "").encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace")


def beginning(text: str, tokens: int) -> str:
    """Leave out what is cut off anyway after so many tokens: every word is one at least."""
    longest = tokens * _CHARACTERS_PER_TOKEN
    if len(text) <= longest:
        return text
    words_and_blanks = islice(re.finditer(r"\S+|\s+", text), 2 * tokens)
    return "".join(piece[0][:longest] for piece in words_and_blanks)
