"""How the HTTP API says no: problem details (RFC 9457) with the numbers of errors.ErrorCode.

The status is the number wherever it is one that HTTP has; numbers of the application's own (1000 to
3999) come as 422.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.responses import Response

from imserver.errors import ErrorCode, ImError, describe

MEDIA_TYPE: Final = "application/problem+json"

#: What of an error's text is told: some of it is what the client sent.
DETAIL_MAX: Final = 500


class Problem(msgspec.Struct):
    """`code` is stable, `title` its name, `detail` for people. `retry_after_ms` is 0 for no
    advice."""

    title: str
    status: int
    code: int
    detail: str
    retry_after_ms: int = 0


def status_of(code: int) -> int:
    return code if 400 <= code < 600 else ErrorCode.BAD_BODY


def problem_of(error: ImError) -> Problem:
    title = describe(error.code).replace("_", " ") or "refused by the application"
    detail = error.message[:DETAIL_MAX]
    return Problem(title, status_of(error.code), error.code, detail, error.retry_after_ms)


def problem(error: ImError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that a request gets instead of its result."""
    told = dict(headers or {})
    if error.code == ErrorCode.UNAUTHORIZED:
        told["www-authenticate"] = 'Bearer realm="imserver"'
    if error.retry_after_ms:
        told["retry-after"] = str(-(-error.retry_after_ms // 1000))
    body = msgspec.json.encode(problem_of(error))
    return Response(body, status_of(error.code), told, MEDIA_TYPE)
