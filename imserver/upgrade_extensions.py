"""What a client offers in Sec-WebSocket-Extensions, and the one offer that is taken.

permessage-deflate (RFC 7692) is agreed to in one form, without context on both sides, so that no
connection has a window. An offer that asks for anything else is passed over, and the next is
looked at; a header that is no list of offers is an error (RFC 6455, 9.1).
"""

import re
from typing import Final

#: The answer, whatever else was allowed: no context, and windows as they are without a word.
AGREED: Final = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_GAP: Final = r"[ \t]"
_PARAMETER: Final = re.compile(
    rf'{_GAP}*;{_GAP}*(?P<name>{_TOKEN})({_GAP}*={_GAP}*("(?P<quoted>{_TOKEN})"|(?P<bare>{_TOKEN})))?'
)
_NAME: Final = re.compile(rf"{_GAP}*(?P<name>{_TOKEN})")
_ELEMENT: Final = re.compile(r"[ \t,]*")  # a list may have empty ones
_END: Final = re.compile(r"[ \t]*(,|\Z)")
_KEPT: Final = {
    "server_no_context_takeover",
    "client_no_context_takeover",
    "client_max_window_bits",
}
_WINDOW_BITS: Final = re.compile(r"[89]|1[0-5]")


def offers_deflate(header: str) -> bool:
    """Whether one of the offers is ours to take. ValueError for what is no list of offers."""
    at, is_offered = 0, False
    while (at := _ELEMENT.match(header, at).end()) < len(header):  # type: ignore[union-attr]
        name, parameters, at = _read_offer(header, at)
        is_offered |= name == "permessage-deflate" and _is_acceptable(parameters)
    return is_offered


def _read_offer(header: str, at: int) -> tuple[str, list[tuple[str, str | None]], int]:
    name = _NAME.match(header, at)
    if name is None:
        raise ValueError("an extension has a name")
    parameters, at = [], name.end()
    while found := _PARAMETER.match(header, at):
        parameters.append((found["name"], found["quoted"] or found["bare"]))
        at = found.end()
    end = _END.match(header, at)
    if end is None:
        raise ValueError("parameters of an extension are ; NAME or ; NAME=VALUE")
    return name["name"], parameters, end.end()


def _is_acceptable(parameters: list[tuple[str, str | None]]) -> bool:
    """Only what the answer keeps, each once and with a value where one belongs. A bound on our
    window (server_max_window_bits) would have to be answered, and kept."""
    values = dict(parameters)
    if len(values) < len(parameters) or not values.keys() <= _KEPT:
        return False
    bits = values.pop("client_max_window_bits", None)
    return (bits is None or bool(_WINDOW_BITS.fullmatch(bits))) and set(values.values()) <= {None}
