"""The tables of numbers: sound in themselves, and the same in the code and in the docs."""

import pickle
import re
from pathlib import Path

import pytest

from imserver.errors import (
    Action,
    CloseCode,
    Closed,
    ErrorCode,
    ImError,
    action,
    describe,
    may_retry,
)

DOCS = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text()


def rows(kind: str) -> dict[int, tuple[str, ...]]:
    """The rows of a table in the docs, by the number that its anchor repeats."""
    pattern = rf'^\| <a id="{kind}-(\d+)"></a>(\d+) \| (.*) \|$'
    found = re.findall(pattern, DOCS, re.MULTILINE)
    assert all(anchor == number for anchor, number, _ in found)
    assert len({number for _, number, _ in found}) == len(found), "a number appears twice"
    return {int(number): tuple(rest.split(" | ")) for _, number, rest in found}


def test_the_error_table_in_the_docs_is_the_one_in_the_code():
    expected = {
        int(row): (row.name.lower(), row.fault, "yes" if row.retry else "no", row.meaning)
        for row in ErrorCode
    }
    assert expected == rows("error")


def test_the_close_table_in_the_docs_is_the_one_in_the_code():
    expected = {
        int(row): (row.name.lower(), row.fault, row.action.value, row.meaning) for row in CloseCode
    }
    assert expected == rows("close")


def test_every_link_to_a_code_leads_to_a_row():
    linked = set(re.findall(r"\]\(#((?:error|close)-\d+)\)", DOCS))
    anchors = set(re.findall(r'<a id="([a-z]+-\d+)">', DOCS))
    assert linked
    assert linked <= anchors


def test_errors_and_close_codes_keep_to_their_ranges():
    assert all(400 <= row < 1000 for row in ErrorCode)
    assert all(4000 <= row < 4400 for row in CloseCode)


def test_no_two_rows_share_a_number():
    # Two names for one number would silently become an alias.
    assert len(ErrorCode) == len(ErrorCode.__members__)
    assert len(CloseCode) == len(CloseCode.__members__)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (4000, Action.STOP),
        (4099, Action.STOP),
        (4100, Action.BACK_OFF),
        (4199, Action.BACK_OFF),
        (4200, Action.RECONNECT),
        (4299, Action.RECONNECT),
        (4300, Action.MOVE),
        (4399, Action.MOVE),
        (0, Action.BACK_OFF),
        (1006, Action.BACK_OFF),
        (3999, Action.BACK_OFF),
        (4400, Action.BACK_OFF),
        (4999, Action.BACK_OFF),
    ],
)
def test_the_range_of_a_close_code_decides(code: int, expected: Action):
    assert expected is action(code)
    assert expected is Closed(code).action


def test_an_error_explains_itself():
    assert str(ImError(403)) == "403 forbidden: this user may not do this here"
    assert str(ImError(ErrorCode.FORBIDDEN, "not here")) == "403 forbidden: not here"
    assert str(ImError(1234, "too late")) == "1234: too late"
    assert str(Closed(4201, "upgrade")) == "4201 restart: upgrade"
    assert str(Closed(0)) == "0: the connection was lost"


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImError(429, "slower", 250, id=7, topic="room:1")))
    assert (error.code, error.message, error.retry_after_ms) == (429, "slower", 250)
    assert (error.id, error.topic) == (7, "room:1")


def test_numbers_outside_the_tables_have_no_name_and_no_retry():
    assert describe(4001) == "unauthorized"
    assert describe(999) == describe(4098) == describe(1234) == ""
    assert may_retry(503)
    assert not may_retry(403)
    assert not may_retry(1234)
