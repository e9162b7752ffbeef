"""What must not be written down: passwords, tokens and keys, in a command line or in any text.

This room knows no file and no option; it errs on the side of masking too much.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["mask", "redact"]

_MASK = "***"
_ASSIGNMENT = re.compile(r"([\w.-]{1,200})[\"'\])]*\s*[:=]")
_SECRET_KEY = re.compile(  # at the end of a word; `max_tokens` and `tokenizer` are no secrets
    r"(keys?|token|secrets?|pass(word|wd|phrase)?s?|pwd|credentials?|auth(orization)?)"
    r"(?-i:(?![a-z]))",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(  # in any text: user:password@host, known kinds of keys, HTTP headers
    r"(?<=://)[^/\s\"']+(?=@)"
    r"|\b(?:sk-|hf_|gh[oprsu]_|github_pat_|glpat-|xox[abp]-|AKIA|ASIA|AIza|wandb_)[A-Za-z0-9_-]{16,}"
    r"|(?<=\bBearer )[^\s\"'\\]+"
)


def mask(text: str) -> str:
    """Return a text without what looks like a secret wherever it stands."""
    return _SECRET_VALUE.sub(_MASK, text)


def redact(arguments: Sequence[str]) -> list[str]:
    """Return a command line without secrets: from a secret key on, an argument is masked."""
    redacted: list[str] = []
    is_value = False
    for argument in arguments:
        keys = (match for match in _ASSIGNMENT.finditer(argument) if _SECRET_KEY.search(match[1]))
        match = next(keys, None)
        if is_value and not argument.startswith("--"):
            redacted.append(_MASK)
        else:
            redacted.append(argument[: match.end()] + _MASK if match else argument)
        is_value = bool(re.match("-[^=]*$", argument) and _SECRET_KEY.search(argument))
    return redacted
