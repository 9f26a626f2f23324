"""What topics, tags and identifiers look like.

They come from clients and end up in logs, files and other clients' screens, so they are judged
before anything else looks at them: by their bytes, never by what they mean.

Not here: what a topic's prefix stands for, and who may use it (routing).
"""

import re

from imserver.errors import ErrorCode, ImError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode category Cc
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_NOT_IN_TAGS = re.compile(r"[\x00-\x20\x7f-\x9f|*]")


def check_topic(topic: bytes | str) -> str:
    """A topic name, or ImError 422: UTF-8, 1..255 bytes, no control characters."""
    text = _text(topic, "a topic", 1, 255)
    if _CONTROL.search(text):
        raise ImError(ErrorCode.BAD_BODY, "a topic has no control characters")
    return text


def check_identifier(identifier: str) -> str:
    """The name of a user or a device, or ImError 422: [A-Za-z0-9_.@-], 1..64 of them."""
    if not _IDENTIFIER.fullmatch(identifier):
        raise ImError(ErrorCode.BAD_BODY, "users and devices are [A-Za-z0-9_.@-]{1,64}")
    return identifier


def check_tag(tag: bytes | str) -> str:
    """The tag of a message, or ImError 422: UTF-8, 0..64 bytes, no control characters, no
    spaces, no "|" and no "*". 403 for a tag that begins with "$": those are the server's."""
    text = _text(tag, "a tag", 0, 64)
    if _NOT_IN_TAGS.search(text):
        raise ImError(ErrorCode.BAD_BODY, 'a tag has no control characters, spaces, "|" or "*"')
    if text.startswith("$"):
        raise ImError(ErrorCode.FORBIDDEN, 'tags that begin with "$" are the server\'s')
    return text


def check_tags(expression: str) -> str:
    """A tag expression without its spaces, or ImError 422.

    "*" for every message, or up to 16 tags joined by "||", of at most 1024 bytes in all. Tags
    that begin with "$" may be asked for, only not sent.
    """
    tags = [tag.strip(" ") for tag in _text(expression, "tags", 1, 1024).split("||")]
    if tags == ["*"]:
        return "*"
    if len(tags) > 16:
        raise ImError(ErrorCode.BAD_BODY, "at most 16 tags in one expression")
    for tag in tags:
        if _NOT_IN_TAGS.search(_text(tag, "a tag in tags", 1, 64)):
            raise ImError(ErrorCode.BAD_BODY, 'tags are "*" or tags joined by "||"')
    return "||".join(tags)


def _text(raw: bytes | str, what: str, least: int, most: int) -> str:
    """`raw` as text, if it is UTF-8 and that many bytes long."""
    try:
        text, data = (raw.decode(), raw) if isinstance(raw, bytes) else (raw, raw.encode())
    except UnicodeError as error:
        raise ImError(ErrorCode.BAD_BODY, f"{what} is UTF-8") from error
    if not least <= len(data) <= most:
        raise ImError(ErrorCode.BAD_BODY, f"{what} is {least} to {most} bytes long")
    return text
