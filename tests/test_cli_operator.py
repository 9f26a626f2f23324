"""`imserver topic`, `dlq` and `why`: over a stopped store, and through the process that has it.

Everything that is asked runs twice, and has to say the same: with the store closed, and while
another process has it open (operator_child).
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from harness import Run

from imserver.control import SOCKET
from imserver.model import CODEC_JSON
from imserver.protocol import encode_message
from imserver.timeline import Cursor, DeadLetter
from imserver.timeline_sqlite import SqliteTimeline

TESTS = Path(__file__).parent


class Child:
    """The process that has the store."""

    def __init__(self, data: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "operator_child.py"), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five messages in room:a, three dead letters of it, cursors, a group with two members."""

    async def fill() -> None:
        store = await SqliteTimeline.open(tmp_path / "data")
        for number in range(1, 6):
            body = json.dumps({"n": number}).encode()
            frame = encode_message(
                "room:a", "bob", body, codec=CODEC_JSON, id=100 + number, tag="t"
            )
            await store.append(frame, "desk")
        await store.append(encode_message("dm:ann:joe", "joe", b"hi \x1b[2J"))
        letters = [
            letter(1, "ann", "phone"),
            letter(2, "ann", "phone", reason="nack"),
            letter(4, "joe", "tab"),
        ]
        cursors = [Cursor("ann", "phone", "room:a", 2), Cursor("ann", "desk", "room:a", 5)]
        await store.put_dead(letters, [*cursors, Cursor("joe", "tab", "room:a", 4)])
        await store.take_dead([2])
        await store.join("group:g", ["ann", "bob"])
        await store.append(encode_message("group:g", "ann", b"one"))
        await store.append(encode_message("group:g", "ann", b"two"))
        await store.mark_read("bob", "group:g", 1)
        await store.close()

    asyncio.run(fill())
    return tmp_path / "data"


def letter(seq: int, user: str, device: str, reason: str = "attempts") -> DeadLetter:
    frame = encode_message("room:a", "bob", b'{"n":1}', codec=CODEC_JSON, seq=seq, id=100 + seq)
    return DeadLetter(user, device, "room:a", seq, reason, 8, 1_700_000_000_123, frame)


@pytest.fixture(params=["stopped", "running"])
def child(request: pytest.FixtureRequest, data: Path) -> Iterator[Child | None]:
    if request.param == "stopped":
        yield None
        return
    child = Child(data)
    yield child
    if child.process.poll() is None:
        child.stop()


@pytest.fixture
def run(run: Run, data: Path, child: Child | None) -> Run:
    return lambda *arguments: run(*arguments, "--data", str(data))


def good(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in good(result).splitlines()]


# Topics


def test_topics_are_listed_read_and_trimmed_whoever_has_the_store(run: Run) -> None:
    assert good(run("topic", "list")) == "1 1 dm:ann:joe\n1 2 group:g\n1 5 room:a\n"
    assert good(run("topic", "history", "room:a", "--count", "2")) == (
        "4 bob: {'n': 4}\n5 bob: {'n': 5}\n"
    )
    after = lines(run("topic", "history", "room:a", "--after", "3", "--json"))
    assert [message["seq"] for message in after] == [4, 5]
    assert after[0]["body"] == {"n": 4}
    assert "\x1b" not in good(run("topic", "history", "dm:ann:joe"))
    trimmed = run("topic", "trim", "room:a", "--before", "3")
    assert trimmed.stderr == "* 2 messages forgotten; 3 to 5 are kept\n"
    refused = run("topic", "trim", "room:none", "--keep", "1")
    assert refused.exit_code == 1
    assert refused.stderr == "Error: there is no topic room:none\n"


def test_members_are_printed_with_what_they_have_read(run: Run) -> None:
    result = run("topic", "members", "group:g")
    assert good(result) == (
        "user  since  read  unread\n"
        "ann   0      0     2\n"
        "bob   0      1     1\n"
    )  # fmt: skip
    assert result.stderr == "* 2 members\n"
    told = lines(run("topic", "members", "group:g", "--json"))
    assert told[1] == {"topic": "group:g", "user": "bob", "since_seq": 0, "read": 1, "unread": 1}
    nobody = run("topic", "members", "room:a")
    assert (good(nobody), nobody.stderr) == ("", "* 0 members\n")


# Dead letters


def test_dead_letters_are_listed_with_their_reasons(run: Run) -> None:
    result = run("dlq", "list")
    assert good(result) == (
        "id  topic   seq  device     reason    attempts  when                         state\n"
        "1   room:a  1    ann/phone  attempts  8         2023-11-14 22:13:20.123 UTC  dead\n"
        "3   room:a  4    joe/tab    attempts  8         2023-11-14 22:13:20.123 UTC  dead\n"
    )
    assert result.stderr == "* in the whole store: 2 attempts\n", "of what is listed"
    result = run("dlq", "list", "--taken")
    assert good(result).splitlines()[2].endswith("under way")
    assert result.stderr == "* in the whole store: 2 attempts, 1 nack\n"
    assert [one["id"] for one in lines(run("dlq", "list", "--json", "--user", "joe"))] == [3]
    assert good(run("dlq", "list", "--topic", "room:none")) == ""


def test_a_letter_is_shown_with_its_message(run: Run) -> None:
    shown = good(run("dlq", "show", "3")).splitlines()
    assert shown[3] == "device    joe/tab"
    assert shown[-3:] == ["sender    bob/104", "tag       ", "body      {'n': 1}"]
    (told,) = lines(run("dlq", "show", "3", "--json"))
    assert (told["seq"], told["message"]["body"]) == (4, {"n": 1})
    missing = run("dlq", "show", "99")
    assert missing.exit_code == 1
    assert missing.stderr == "Error: there is no dead letter 99\n"


def test_letters_are_sent_once_more_by_number_topic_and_all(
    run: Run, child: Child | None, data: Path
) -> None:
    assert run("dlq", "redrive", "1").stderr == "* 1 sent once more\n"
    again = run("dlq", "redrive", "1", "3", "99")
    assert again.exit_code == 1
    assert "* 1 sent once more\n" in again.stderr
    assert "the others are no dead letters, or are being delivered once more" in again.stderr
    assert run("dlq", "redrive", "--all").stderr == "* 0 sent once more\n"
    assert len(lines(run("dlq", "list", "--taken", "--json"))) == 3
    if child:
        assert [child.line(), child.line()] == ["redrive 1", "redrive 3"], "by the server"


def test_letters_are_deleted_but_none_that_is_under_way(run: Run) -> None:
    under_way = run("dlq", "purge", "2")
    assert under_way.exit_code == 1
    assert "* 0 deleted\n" in under_way.stderr
    assert run("dlq", "purge", "--topic", "room:a", "--user", "joe").stderr == "* 1 deleted\n"
    assert run("dlq", "purge", "--all").stderr == "* 1 deleted\n"
    assert [one["id"] for one in lines(run("dlq", "list", "--taken", "--json"))] == [2]


def test_more_letters_than_a_page_are_all_done(run: Run, data: Path, child: Child | None) -> None:
    if child:
        child.stop()

    async def more() -> None:
        store = await SqliteTimeline.open(data)
        await store.put_dead([letter(seq, f"u{seq}", "phone") for seq in range(1, 251)])
        await store.close()

    asyncio.run(more())
    later = Child(data) if child else None
    assert len(lines(run("dlq", "list", "--json"))) == 252
    assert run("dlq", "redrive", *map(str, range(4, 154))).stderr == "* 150 sent once more\n"
    assert run("dlq", "purge", "--all").stderr == "* 102 deleted\n"
    if later:
        later.stop()


# Why


def test_why_tells_device_by_device(run: Run, child: Child | None) -> None:
    result = run("why", "room:a", "4")
    assert "passed: the cursor is past it, and nothing tells why" in result.stderr
    told = good(result).splitlines()
    assert told[0].startswith("room:a 4 of bob/104 was committed at 20")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in told[1:]}
    assert rows["ann/desk"] == "no 5 passed", "and for what, nobody knows who is not here"
    assert rows["joe/tab"] == "no 4 dead letter 3: attempts, after 8 attempts"
    if child:
        assert rows["ann/phone"] == "yes 2 sent, not acknowledged, again in 4 s"
        assert rows["eve/tab"] == "yes - sent, unasked"
    else:
        assert rows["ann/phone"] == "no 2 waits for the device"
        assert "eve/tab" not in rows


def test_why_tells_attempts_and_what_was_set_aside(run: Run, child: Child | None) -> None:
    told = lines(run("why", "room:a", "3", "--json", "--user", "ann"))[0]
    states = {device["device"]: device for device in told["devices"]}
    if child:
        assert (states["phone"]["state"], states["phone"]["attempts"]) == ("sent", 3)
    else:
        assert states["phone"]["state"] == "waiting"
    (told,) = lines(run("why", "room:a", "2", "--json", "--user", "ann"))
    states = {device["device"]: device for device in told["devices"]}
    assert (states["phone"]["state"], states["phone"]["attempts"]) == ("set aside", 0)
    assert states["phone"]["reason"] == "nack"
    assert states["desk"]["state"] == "passed"
    assert "joe" not in {device["user"] for device in told["devices"]}


def test_a_message_is_found_by_its_sender_and_number(run: Run) -> None:
    assert "room:a 3 of bob/103 was committed" in good(run("why", "room:a", "bob/103"))
    missing = run("why", "room:a", "bob/7")
    assert missing.exit_code == 1
    assert "no message 7 of bob from 1 to 5: it was not accepted, or it is older" in missing.stderr
    assert run("why", "room:a", "ann/103").exit_code == 1, "another sender"
    assert run("why", "room:a", f"bob/{2**64}").exit_code == 1


def test_what_was_never_accepted_or_is_gone_is_told_apart(run: Run) -> None:
    beyond = run("why", "room:a", "6")
    assert (beyond.exit_code, beyond.stdout) == (1, "room:a 6 was not accepted: the last is 5\n")
    assert run("why", "room:none", "1").exit_code == 1
    run("topic", "trim", "room:a", "--before", "3")
    gone = good(run("why", "room:a", "2"))
    assert "room:a 2 was committed and is gone by retention: 3 is the first" in gone
    assert "ann/desk" in gone, "who had it is still known"


def test_users_without_a_device_are_named(run: Run) -> None:
    told = good(run("why", "group:g", "1"))
    assert "ann has no device that has ever subscribed\nbob has no device" in told
    assert "ann has no device" in good(run("why", "dm:ann:joe", "1", "--user", "ann"))


def test_what_cannot_be_read_is_said_to_be(run: Run, data: Path, child: Child | None) -> None:
    if child:
        child.stop()
    content = bytearray((data / "store.db").read_bytes())
    assert content.count(b'bob{"n": 3}') == 1
    content[content.index(b'bob{"n": 3}')] ^= 4
    (data / "store.db").write_bytes(content)
    later = Child(data) if child else None
    assert "room:a 3 was committed and cannot be read" in good(run("why", "room:a", "3"))
    assert "room:a 4 of bob/104" in good(run("why", "room:a", "4"))
    if later:
        later.stop()


# Wrong use and no server


@pytest.mark.parametrize(
    "arguments",
    [
        ["dlq", "redrive"],
        ["dlq", "redrive", "1", "--all"],
        ["dlq", "purge", "--topic", "room:a", "--all"],
        ["dlq", "purge", "x"],
        ["dlq", "show"],
        ["why", "room:a"],
        ["why", "room:a", "0"],
        ["why", "room:a", "bob/x"],
        ["why", "room:a", "/7"],
        ["topic", "members"],
    ],
)
def test_wrong_use_is_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("child", ["stopped"], indirect=True)
def test_a_process_that_has_the_store_and_does_not_answer_is_named(run: Run, data: Path) -> None:
    async def meanwhile() -> Result:
        store = await SqliteTimeline.open(data)
        result = await asyncio.to_thread(run, "dlq", "list")
        await store.close()
        return result

    result = asyncio.run(meanwhile())
    assert result.exit_code == 1
    assert f"is in use by process {os.getpid()}" in result.stderr
    assert f"It does not answer: {data / SOCKET}" in result.stderr
