"""Passwords in URLs: removed from settings when these are read, and added again when a connection is made."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from slmrec.errors import ConfigError

PASSWORD_VARIABLE = "SLMREC_ENGINE_PASSWORD"
"""The environment variable with the password of the engine."""
_MAX_PASSWORD_BYTES = 4096
_URL = re.compile(r"([A-Za-z][\w+.:-]*://)(.*)", re.DOTALL)
_WITHOUT_USER = re.compile(r"/.*|(?:\[[^\]]*\]|[^/?#@:;]*)(?::\d*)?(?:/[^@?#;]*)?(?:[?#;].*)?", re.DOTALL)
_SECRET = r"pass(?!file)|pwd|secret|token|credential|private|signature|api_?key|access_?key"
_PARAMETER = re.compile(rf"([?&;])(?:[\w.-]*(?:{_SECRET})[\w.-]*|sig)=[^&;#]*", re.IGNORECASE)
_USER_IN_TEXT = re.compile(
    r"([A-Za-z][\w+.-]*://[^\s:/?#@'\"]*):(?!\d*(?:[/?#][^\s@]*)?(?:[\s'\",;)]|$))(?:.*@|[^\s'\"]*)"
)
_SETTING_IN_TEXT = re.compile(rf"((?:{_SECRET}|password)=)[^\s&;]+", re.IGNORECASE)
_originals: dict[str, str] = {}
"""URLs with secrets by their form without; they are kept in the memory of this process and nowhere else."""


def without_secrets(value: Any) -> Any:
    """Return settings with the passwords of URLs removed; `with_password` finds them again in the same process.

    The password of the user and parameters such as `password` and `token` are removed. All other values stay as they
    are.

    Args:
        value: a setting, or lists and dictionaries of settings.

    Example:
        >>> without_secrets({"engine": "postgres://ann:pw@host/shop?sslmode=require"})
        {'engine': 'postgres://ann@host/shop?sslmode=require'}
    """
    if isinstance(value, dict):
        return {key: without_secrets(below) for key, below in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(map(without_secrets, value))
    if not isinstance(value, str) or not (match := _URL.fullmatch(value)):
        return value
    scheme, user, rest = match[1], *_split_user(match[2])
    rest = _PARAMETER.sub(r"\1", rest)
    rest = re.sub(r"[?&;]+(?=[?&;#]|$)", "", re.sub(r"(?<=[?])[&;]+", "", rest))
    clean = scheme + user.removesuffix("@").partition(":")[0] + "@" * user.endswith("@") + rest
    if clean != value:
        _originals[clean] = value
    return clean


def _split_user(text: str) -> tuple[str, str]:
    """Split what follows `://` into user and password, with their `@`, and the rest."""
    match = re.match(r"[^/?#]*@", text)
    if match is None and not _WITHOUT_USER.fullmatch(text):  # the password has / ? or #, or the host is missing
        match = re.match(r".*@", text, re.DOTALL) or re.match(r"[^/?#]*", text)
    end = match.end() if match else 0
    return text[:end], text[end:]


def with_password(url: str, file: str | None) -> str:
    """Return the URL of a connection with its password.

    The password comes from the URL as it was given to this process, from a file, or from the environment variable
    `SLMREC_ENGINE_PASSWORD`. Where none of them has one, the driver uses its own sources, such as `~/.pgpass`.

    Args:
        url: a URL from `without_secrets`.
        file: a file whose first line is the password.

    Raises:
        ConfigError: the URL has no user for the password, or a password that is not percent-encoded; or the file
            cannot be read.
    """
    original = _originals.get(url, url)
    rest = original.partition("://")[2]
    user = _split_user(rest)[0]
    if re.search(r"[/?#]", user) or (user and not user.endswith("@")):
        raise ConfigError(
            f"prepare.engine is {url!r} with a password that is not percent-encoded, or without a host; write it as "
            "SCHEME://USER:PASSWORD@HOST/DATABASE with %40 for @, %2F for /, %3F for ? and %23 for #, or leave the "
            f"password out and set {PASSWORD_VARIABLE}"
        )
    has_password = bool(user.partition(":")[2].removesuffix("@"))
    if file is None:
        password = os.environ.get(PASSWORD_VARIABLE)
        if has_password or not password or not user:
            return original
    elif has_password or not user:
        problem = "which has a password" if has_password else "which names no user"
        raise ConfigError(
            f"prepare.engine_password_file is {file!r}, but prepare.engine is {url!r}, {problem}; give the password "
            "once, for a URL such as postgres://USER@HOST/DATABASE"
        )
    else:
        password = _read_password(Path(file))
    return original.replace(user, f"{user.partition(':')[0].removesuffix('@')}:{quote(password, safe='')}@", 1)


def _read_password(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            password = stream.read(_MAX_PASSWORD_BYTES).decode().partition("\n")[0].strip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ConfigError(f"prepare.engine_password_file is {str(file)!r}: {reason}") from None
    if not password:
        raise ConfigError(f"prepare.engine_password_file is {str(file)!r}: its first line is empty")
    return password


def with_secrets(url: str) -> str:
    """Return a URL from `without_secrets` as it was given to this process."""
    return _originals.get(url, url)


def without_url(text: str, url: str) -> str:
    """Return a driver's message with the secrets of the URL of its connection replaced by `***`."""
    clean = without_secrets(url)
    secrets = {part for part in re.split(r"[:@=&;?#/]", url) if part and part not in clean}
    for secret in sorted(secrets | set(map(unquote, secrets)), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text.replace(url, clean)


def redacted(text: str) -> str:
    """Replace passwords in a message by `***`: those of URLs, and values of settings such as `password=...`.

    Example:
        >>> redacted("override 'prepare.engin=postgres://ann:pw@host/shop'")
        "override 'prepare.engin=postgres://ann:***@host/shop'"
    """
    text = _USER_IN_TEXT.sub(lambda match: f"{match[1]}:***{'@' * match[0].endswith('@')}", text)
    return _SETTING_IN_TEXT.sub(r"\1***", text)
