"""Secrets: what looks like one, and text without them.

Libraries read their own tokens from the environment, so no recipe holds any, and nothing that is printed or written
does. A message may still quote what somebody else said, so the command line takes secrets out of every line.
"""

import os
import re

HIDDEN = "***"
# A token of the Hub (hf_..., with a kind in between for some), and whatever stands for a user in an address.
_TOKEN = re.compile(r"(?:hf_(?:[a-z]{2,12}_)?|api_org_)[A-Za-z0-9]{30,}")
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_NAMES = r"(?:(?:access|auth|hf|hub|bearer|refresh)_?)?token|(?:[a-z]+_)*(?:api_?key|secret(?:_key)?|password|passwd)"
_IN_QUERY = re.compile(rf"(?<=[?&])({_NAMES}|[a-z-]*signature)=[^&\s]+", re.IGNORECASE)
_UNDER_KEY = re.compile(rf"(?<![a-z0-9_])({_NAMES})(\.[^=]*=|['\"]?\s*[:=]\s*)[^\s,}}]+", re.IGNORECASE)
_SECRET_KEY = re.compile(_NAMES)
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_SHORTEST = 8
"""A variable that holds less is no secret, and would be taken out of ordinary words."""


def is_secret_key(key: str) -> bool:
    """Whether a key of that name holds a secret: token, api_key, password, ...; not bos_token or max_tokens."""
    return _SECRET_KEY.fullmatch(key.strip().lower().replace("-", "_")) is not None


def holds_secret(text: str) -> bool:
    """Whether a token, a password in an address, or a secret of this process's environment is in the text."""
    return without_secrets(text) != text


def without_values(text: str) -> str:
    """What somebody typed, with `***` for each secret in it and for what stands under the key of one."""
    return _UNDER_KEY.sub(rf"\1\2{HIDDEN}", without_secrets(text))


def without_secrets(text: str) -> str:
    """The text with `***` for each secret in it."""
    for variable in _VARIABLES:
        value = os.environ.get(variable, "").strip()
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    text = _TOKEN.sub(HIDDEN, text)
    if "://" in text:
        text = _IN_QUERY.sub(rf"\1={HIDDEN}", _IN_ADDRESS.sub(HIDDEN, text))
    return text
