"""`imserver store` and `imserver topic`, over stores that were just written."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from harness import Run

from imserver.model import CODEC_JSON
from imserver.protocol import encode_message
from imserver.timeline_sqlite import SqliteTimeline


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A store with 300 messages in room:a and one in room:b."""

    async def fill() -> None:
        store = await SqliteTimeline.open(tmp_path / "data")
        for number in range(300):
            await store.append(encode_message("room:a", "ann", b"%d" % number, id=number))
        body = json.dumps({"text": "hé\x1b[2J"}).encode()
        await store.append(encode_message("room:b", "bob", body, tag="t", codec=CODEC_JSON))
        await store.close()

    asyncio.run(fill())
    return tmp_path / "data"


def flip_in(data: Path, text: bytes) -> None:
    content = bytearray((data / "store.db").read_bytes())
    content[content.index(text)] ^= 4
    (data / "store.db").write_bytes(content)


def test_a_store_that_is_whole_is_said_to_be(run: Run, data: Path) -> None:
    result = run("store", "check", "--data", str(data))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("301 messages in 2 topics, 301 blobs, ")
    assert result.stderr == "* whole\n"


def test_damage_is_listed_and_the_exit_code_1(run: Run, data: Path) -> None:
    flip_in(data, b"room:bbob" if b"room:bbob" in (data / "store.db").read_bytes() else b"bob{")
    result = run("store", "check", "--data", str(data))
    assert result.exit_code == 1, result.output
    assert "blob 301" in result.stdout
    assert "nothing was changed" in result.stderr


def test_topics_and_their_messages_are_printed(run: Run, data: Path) -> None:
    assert run("topic", "list", "--data", str(data)).stdout == "1 300 room:a\n1 1 room:b\n"
    listed = run("topic", "list", "--json", "--data", str(data)).stdout.splitlines()
    assert json.loads(listed[1]) == {"topic": "room:b", "first": 1, "head": 1}
    last = run("topic", "history", "room:a", "--count", "3", "--data", str(data))
    assert last.stdout == "298 ann: 297\n299 ann: 298\n300 ann: 299\n"
    first = run("topic", "history", "room:a", "--after", "0", "--count", "290", "--data", str(data))
    assert len(first.stdout.splitlines()) == 290
    assert run("topic", "history", "room:none", "--data", str(data)).stdout == ""


def test_messages_as_json_and_without_control_characters(run: Run, data: Path) -> None:
    line = json.loads(run("topic", "history", "room:b", "--json", "--data", str(data)).stdout)
    assert line.pop("time_ms") > 1_700_000_000_000
    assert line == {
        "topic": "room:b", "seq": 1, "sender": "bob", "id": 0, "tag": "t",
        "body": {"text": "hé\x1b[2J"},
    }  # fmt: skip
    assert "\x1b" not in run("topic", "history", "room:b", "--data", str(data)).stdout


def test_what_cannot_be_read_is_named_between_the_others(run: Run, data: Path) -> None:
    content = (data / "store.db").read_bytes()
    assert content.count(b"room:aann250") == 1
    flip_in(data, b"room:aann250")
    result = run(
        "topic", "history", "room:a", "--after", "249", "--count", "3", "--data", str(data)
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "250 ann: 249\n252 ann: 251\n253 ann: 252\n"
    assert "room:a 251 to 251 cannot be read: damaged" in result.stderr


def test_trimming_forgets_and_compacting_gives_the_space_back(run: Run, data: Path) -> None:
    trimmed = run("topic", "trim", "room:a", "--before", "100", "--data", str(data))
    assert trimmed.stderr == "* 99 messages forgotten; 100 to 300 are kept\n"
    trimmed = run("topic", "trim", "room:a", "--keep", "2", "--data", str(data))
    assert trimmed.stderr == "* 199 messages forgotten; 299 to 300 are kept\n"
    before = (data / "store.db").stat().st_size
    result = run("store", "compact", "--data", str(data))
    assert result.exit_code == 0, result.output
    after = (data / "store.db").stat().st_size
    assert after < before
    assert result.stderr == f"* {before:,} bytes are {after:,} now\n"
    assert run("store", "check", "--data", str(data)).exit_code == 0
    history = run("topic", "history", "room:a", "--after", "0", "--data", str(data))
    assert history.stdout == "299 ann: 298\n300 ann: 299\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["store", "check"],
        ["store", "compact"],
        ["topic", "list"],
        ["topic", "history", "room:a"],
        ["topic", "trim", "room:a", "--keep", "1"],
    ],
)
def test_nothing_runs_beside_a_server_or_without_a_store(
    run: Run, data: Path, tmp_path: Path, arguments: list[str]
) -> None:
    async def meanwhile() -> Result:
        store = await SqliteTimeline.open(data)
        result = await asyncio.to_thread(run, *arguments, "--data", str(data))
        await store.close()
        return result

    result = asyncio.run(meanwhile())
    assert result.exit_code == 1, result.output
    assert f"is in use by process {os.getpid()}" in result.stderr
    result = run(*arguments, env={"IMSERVER_DATA_DIR": str(tmp_path / "nothing")})
    assert result.exit_code == 1, result.output
    assert f"there is no store in {tmp_path / 'nothing'}" in result.stderr
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "arguments",
    [["topic", "trim", "room:a"], ["topic", "trim", "room:a", "--before", "2", "--keep", "1"],
     ["topic", "trim", "room:a", "--keep", "0"], ["topic", "history"], ["store", "mend"]],
)  # fmt: skip
def test_wrong_use_is_2(run: Run, data: Path, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
    assert run("topic", "trim", "room:none", "--keep", "1", "--data", str(data)).exit_code == 1
