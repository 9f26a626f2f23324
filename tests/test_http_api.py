"""The HTTP API of a running server: what it does, and every way it says no."""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack
from typing import Any
from urllib.parse import quote

import pytest
from harness import Peer, RunningServer, dev_config
from site_of import Site

from imserver import http_route
from imserver.model import Message
from imserver.protocol import FrameType, decode_message, encode_message
from imserver.timeline import DeadLetter


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("api") / "data"
    running = RunningServer(dev_config(http="127.0.0.1:0", data_dir=str(data)))
    yield running
    running.stop()


@pytest.fixture
def running(shared: RunningServer) -> Iterator[RunningServer]:
    yield shared
    shared.forget_peers()


@pytest.fixture
def site(running: RunningServer) -> Site:
    return Site(running)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def next_message(peer: Peer) -> Message:
    """Whatever a login is subscribed to by itself is passed over."""
    while frame := peer.receive():
        type, flags, request, rest = frame
        if type == FrameType.MESSAGE:
            return decode_message(pack(">IBBH", len(rest) + 4, type, flags, request) + rest)
    pytest.fail("the connection ended")


# Publishing


def test_one_message_reaches_a_subscriber(running: RunningServer, site: Site) -> None:
    bob = running.user("bob")
    bob.subscribe("room:one")
    message = {"topic": "room:one", "body": {"text": "hi"}, "tag": "t", "id": 7}
    assert site.post("/v1/publish", message).json == {"results": [{"receipt": None, "error": None}]}
    told = next_message(bob)
    assert (told.topic, told.sender, told.tag, told.id) == ("room:one", "$server", "t", 7)
    assert json.loads(told.body) == {"text": "hi"}


def test_a_durable_message_has_its_place(site: Site) -> None:
    message = {"topic": "room:kept", "body": "hi", "durable": True, "id": 5, "sender": "ann"}
    (result,) = site.post("/v1/publish", message).json["results"]
    assert result["receipt"]["seq"] == 1
    assert result["receipt"]["id"] == 5
    (said,) = site.get("/v1/topics/room:kept/history").json["messages"]
    assert said == {
        "topic": "room:kept",
        "seq": 1,
        "time_ms": result["receipt"]["time_ms"],
        "sender": "ann",
        "id": 5,
        "tag": "",
        "body": "hi",
    }


def test_many_messages_keep_their_order_and_each_has_its_outcome(site: Site) -> None:
    many: list[Any] = [
        {"topic": f"room:many-{n % 3}", "body": n, "durable": True} for n in range(300)
    ]
    many.insert(10, {"topic": "", "body": 0})
    many.insert(20, {"topic": "room:x", "body": 0, "sender": "not a name"})
    many.insert(30, {"topic": "unknown:x", "body": 0, "durable": True})
    results = site.post("/v1/publish", many).json["results"]
    assert len(results) == 303
    for at, code in ((10, 422), (20, 422), (30, 507)):
        assert results[at]["receipt"] is None
        assert results[at]["error"]["code"] == code
    assert sum(result["error"] is None for result in results) == 300
    for n in range(3):
        page = site.get(f"/v1/topics/room:many-{n}/history?after=0&limit=256").json
        assert [one["body"] for one in page["messages"]] == list(range(n, 300, 3))


def test_direct_messages_of_one_request_keep_their_order_too(site: Site) -> None:
    many = [{"topic": "dm:kim:lee", "body": n, "durable": True} for n in range(20)]
    results = site.post("/v1/publish", many).json["results"]
    assert [result["receipt"]["seq"] for result in results] == list(range(1, 21))


@pytest.mark.parametrize("codec", ["json", "msgpack", "protobuf", "bytes"])
def test_a_body_is_in_the_codec_that_was_asked_for(
    running: RunningServer, site: Site, codec: str
) -> None:
    bob = running.user("bob")
    bob.subscribe("room:codec")
    value = base64.b64encode(b"\x00\xff").decode() if codec == "bytes" else {"a": [1, None]}
    message = {"topic": "room:codec", "body": value, "codec": codec}
    assert site.post("/v1/publish", message).status == 200
    assert next_message(bob).value() == (b"\x00\xff" if codec == "bytes" else {"a": [1, None]})


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"topic": "room:a"}, 422),
        ({"body": 1}, 422),
        ({"topic": "room:a", "body": 1, "extra": 1}, 422),
        ({"topic": "", "body": 1}, 422),
        ({"topic": "a\n", "body": 1}, 422),
        ({"topic": "x" * 256, "body": 1}, 422),
        ({"topic": "room:a", "body": 1, "tag": "a b"}, 422),
        ({"topic": "room:a", "body": 1, "codec": "xml"}, 422),
        ({"topic": "room:a", "body": "?", "codec": "bytes"}, 422),
        ({"topic": "room:a", "body": 1, "codec": "bytes"}, 422),
        ({"topic": "room:a", "body": 2**60, "codec": "protobuf"}, 422),
        ({"topic": "room:a", "body": 1, "id": -1}, 422),
        ({"topic": "room:a", "body": 1, "id": 2**64}, 422),
        ({"topic": "room:a", "body": 1, "id": 1.5}, 422),
        ({"topic": "room:a", "body": "x" * 65_536}, 413),
        ({"topic": "nowhere:a", "body": 1, "durable": True}, 507),
        ({"topic": "$broadcast", "body": 1, "durable": True}, 507),
        ([], 422),
        ([1], 422),
        ([{"topic": "room:a", "body": 1}] * 1_001, 422),
        ("text", 422),
        (None, 422),
        (1, 422),
    ],
)
def test_a_message_that_cannot_be_is_refused(site: Site, message: Any, code: int) -> None:
    body = json.dumps(message).encode()
    answer = site.post("/v1/publish", body, **{"content-type": "application/json"})
    assert answer.problem == (code, code)


# Bodies


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xff", b'{"topic":"a","body":1}}', b"[" * 100_000, b'{"a":' * 100_000,
     b'{"topic":"room:a","body":NaN}', b'{"topic":"room:a","body":1e999}', b'{"topic":"\\ud800","body":1}'],
)  # fmt: skip
def test_a_body_that_is_no_json_is_refused(site: Site, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert site.ask("POST", "/v1/publish", body, headers).problem == (422, 422)


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "text/plain; application/json", "application/jsonp", "application/json5", "json"],
)  # fmt: skip
def test_what_a_form_can_send_changes_nothing(site: Site, kind: str) -> None:
    for path in ("/v1/publish", "/v1/drain", "/v1/dead/purge", "/v1/users/ann/disconnect"):
        answer = site.ask("POST", path, b"{}", {"content-type": kind})
        assert answer.problem == (415, 415)
    assert site.get("/readyz").status == 200


def test_the_content_type_may_name_its_charset(site: Site) -> None:
    kind = {"content-type": "Application/JSON; charset=utf-8"}
    assert site.ask("POST", "/v1/publish", {"topic": "room:a", "body": 1}, kind).status == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_read(site: Site) -> None:
    head = b"POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    size = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % 2**40
    assert b"HTTP/1.1 413 " in site.raw(head + size)
    large = json.dumps({"topic": "room:a", "body": "x" * http_route.BODY_MAX}).encode()
    answer = site.ask("POST", "/v1/publish", large, {"content-type": "application/json"})
    assert answer.problem == (413, 413)


def test_a_body_that_does_not_come_is_not_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_route, "BODY_S", 0.1)
    head = b"POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with site.open() as peer:
        peer.sendall(head + b"Content-Length: 10\r\n\r\n{")
        assert b"HTTP/1.1 408 " in peer.recv(65536)


def test_an_answer_that_takes_too_long_is_not_waited_for(
    running: RunningServer, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*given: Any, **named: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(http_route, "ANSWER_S", 0.1)
    monkeypatch.setattr(running.server, "publish", hang)
    assert site.post("/v1/publish", {"topic": "room:a", "body": 1}).problem == (408, 408)


def test_what_fails_is_told_as_500_and_nothing_else(
    running: RunningServer, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*given: Any, **named: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(running.server, "publish", fail)
    answer = site.post("/v1/publish", {"topic": "room:a", "body": 1})
    assert answer.problem == (500, 500)
    assert b"secret" not in answer.body


# Parameters, methods, addresses


@pytest.mark.parametrize(
    "path",
    ["/v1/sessions?limit=0", "/v1/sessions?limit=1001", "/v1/sessions?limit=x", "/v1/sessions?limit=",
     "/v1/sessions?limit=1&limit=2", "/v1/sessions?unknown=1", "/v1/sessions?after=zz",
     "/v1/version?x", "/v1/topics/room:a/history?after=1&before=2", "/v1/topics/room:a/history?after=-1",
     "/v1/topics/room:a/history?limit=257", "/v1/topics/a%09b/history", "/v1/topics//history",
     "/v1/dead?taken=maybe", "/v1/dead?after=9223372036854775808", "/v1/users/a%20b/presence"],
)  # fmt: skip
def test_a_parameter_that_cannot_be_is_refused(site: Site, path: str) -> None:
    assert site.get(path).problem == (422, 422)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/publish", {"POST"}),
        ("PUT", "/v1/publish", {"POST"}),
        ("DELETE", "/v1/sessions", {"GET", "HEAD"}),
        ("OPTIONS", "/v1/drain", {"POST"}),
        ("POST", "/metrics", {"GET", "HEAD"}),
    ],
)
def test_another_method_is_refused(site: Site, method: str, path: str, allowed: set[str]) -> None:
    answer = site.ask(method, path, {})
    assert answer.problem == (405, 405)
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v2/version",
        "/v1/version/",
        "/v1/dead/x",
        "/v1/dead/" + "9" * 5_000,
        "/v1/dead/-1",
    ],
)
def test_there_is_nothing_elsewhere(site: Site, path: str) -> None:
    assert site.get(path).problem == (404, 404)


# Topics


def test_history_is_read_in_both_directions(site: Site) -> None:
    messages = [{"topic": "room:h", "body": n, "durable": True} for n in range(1, 8)]
    site.post("/v1/publish", messages)

    def page(query: str) -> tuple[list[int], int | None, int | None]:
        told = site.get(f"/v1/topics/room:h/history?limit=3{query}").json
        return [one["seq"] for one in told["messages"]], told["after"], told["before"]

    assert page("") == ([5, 6, 7], None, 5)
    assert page("&before=5") == ([2, 3, 4], None, 2)
    assert page("&before=2") == ([1], None, None)
    assert page("&after=0") == ([1, 2, 3], 3, None)
    assert page("&after=3") == ([4, 5, 6], 6, None)
    assert page("&after=7") == ([], None, None)
    nothing = site.get("/v1/topics/room:never/history").json
    assert nothing == {"messages": [], "gaps": [], "after": None, "before": None}


def test_topics_come_in_pages_and_may_have_any_name(site: Site) -> None:
    names = ["room:p/a", "room:p b", "room:p%", "room:päm", "room:p/history", "room:p/members"]
    site.post("/v1/publish", [{"topic": name, "body": 1, "durable": True} for name in names])
    found, after = [], ""
    while after is not None:
        page = site.ask("GET", f"/v1/topics?limit=2&after={quoted(after)}").json
        found += [topic["topic"] for topic in page["topics"]]
        after = page["after"]
    assert set(names) <= set(found)
    assert found == sorted(found, key=str.encode)
    for name in names:
        assert site.get(f"/v1/topics/{quoted(name)}/history").json["messages"][0]["topic"] == name


def quoted(name: str) -> str:
    return quote(name, safe="")


def test_members_join_and_leave_and_their_sessions_follow(
    running: RunningServer, site: Site
) -> None:
    ann = running.user("ann")
    path = "/v1/topics/group:team/members"
    told = site.post(path, {"join": ["ann", "bob"]}).json
    assert [member["user"] for member in told["members"]] == ["ann", "bob"]
    until(lambda: "group:team" in topics_of(site, "ann"))
    present = site.get("/v1/topics/group:team/presence").json
    assert present == {"users": [{"user": "ann", "devices": ["test"]}], "after": None}
    site.post("/v1/publish", {"topic": "group:team", "body": 1, "durable": True})
    assert site.get(f"{path}?limit=1").json == {
        "members": [{"user": "ann", "since_seq": 0, "read": 0, "unread": 1}],
        "after": "ann",
    }
    assert site.get(f"{path}?limit=1&after=ann").json["members"][0]["user"] == "bob"
    told = site.post(path, {"leave": ["ann"]}).json
    assert [member["user"] for member in told["members"]] == ["bob"]
    until(lambda: "group:team" not in topics_of(site, "ann"))
    ann.close()


def topics_of(site: Site, user: str) -> list[str]:
    found = site.get(f"/v1/sessions?search={user}").json["sessions"]
    return [topic for session in found for topic in session["topics"]]


@pytest.mark.parametrize(
    ("topic", "body", "code"),
    [
        ("user:ann", {"join": ["bob"]}, 403),
        ("dm:ann:bob", {"join": ["eve"]}, 403),
        ("$x", {"join": ["bob"]}, 403),
        ("group:a", {"join": ["not a name"]}, 422),
        ("group:a", {"join": "bob"}, 422),
        ("group:a", {"invite": ["bob"]}, 422),
    ],
)
def test_a_membership_that_cannot_be_is_refused(
    site: Site, topic: str, body: Any, code: int
) -> None:
    assert site.post(f"/v1/topics/{topic}/members", body).problem == (code, code)


# Sessions


def test_sessions_are_found_and_come_in_pages(running: RunningServer, site: Site) -> None:
    for user in ("zoe-1", "zoe-2", "zoe-3", "yan"):
        running.user(user, device="desk" if user == "yan" else "phone")
    found, after = [], ""
    while after is not None:
        page = site.get(f"/v1/sessions?search=zoe&limit=2&after={after}").json
        found += [session["user"] for session in page["sessions"]]
        after = page["after"]
    assert sorted(found) == ["zoe-1", "zoe-2", "zoe-3"]
    (yan,) = site.get("/v1/sessions?search=desk").json["sessions"]
    assert (yan["user"], yan["device"], yan["expires_ms"]) == ("yan", "desk", None)
    assert site.get("/v1/sessions?search=nobody").json["sessions"] == []
    assert page["total"] == 4


def test_a_user_is_disconnected_with_the_code_that_was_asked_for(
    running: RunningServer, site: Site
) -> None:
    for body, code in (({}, 4010), ({"code": 4100}, 4100)):
        bob = running.user("bob")
        assert site.get("/v1/users/bob/presence").json == {"user": "bob", "devices": ["test"]}
        assert site.post("/v1/users/bob/disconnect", body).json == {"count": 1}
        assert json.loads(bob.expect(FrameType.GOAWAY))["code"] == code
        assert bob.receive() is None
        until(lambda: site.get("/v1/users/bob/presence").json["devices"] == [])
    assert site.post("/v1/users/bob/disconnect", {}).json == {"count": 0}
    for bad in ({"code": 3999}, {"code": 5000}, {"code": "4010"}):
        assert site.post("/v1/users/bob/disconnect", bad).problem == (422, 422)


# Dead letters


def test_a_dead_letter_is_shown_redriven_and_purged(running: RunningServer, site: Site) -> None:
    frame = encode_message("room:d", "ann", b'{"text":"lost"}', codec=1, id=9)
    store = running.server._store
    assert store
    letters = [DeadLetter("eve", "phone", "room:d", n, "nack", 8, 1_000, frame) for n in (1, 2, 3)]
    ids = running.run(lambda: store.put_dead(letters))
    page = site.get("/v1/dead?topic=room:d&user=eve").json
    assert [letter["id"] for letter in page["letters"]] == ids
    assert page["counts"] == {"nack": 3}
    whole = site.get(f"/v1/dead/{ids[0]}").json
    assert (whole["user"], whole["reason"], whole["attempts"]) == ("eve", "nack", 8)
    assert whole["message"]["body"] == {"text": "lost"}
    assert site.post("/v1/dead/redrive", {"ids": [ids[0], 10_000]}).json["count"] == 1
    assert ids[0] not in [one["id"] for one in site.get("/v1/dead?user=eve").json["letters"]]
    assert site.get("/v1/dead?user=eve&taken=true").json["letters"][0]["is_taken"] is True
    assert site.post("/v1/dead/purge", {"topic": "room:d"}).json == {"count": 2, "after": None}
    assert site.get(f"/v1/dead/{ids[1]}").problem == (404, 404)


@pytest.mark.parametrize("verb", ["redrive", "purge"])
@pytest.mark.parametrize(
    "body", [{}, {"ids": None}, {"after": 5}, {"ids": [1], "topic": "a"}, {"ids": [-1]},
             {"ids": list(range(101))}, {"all": True}]
)  # fmt: skip
def test_letters_have_to_be_named(site: Site, verb: str, body: Any) -> None:
    assert site.post(f"/v1/dead/{verb}", body).problem == (422, 422)


# The server


def test_without_a_store_what_it_keeps_is_refused_and_the_rest_works(
    start_server: Callable[..., RunningServer],
) -> None:
    site = Site(start_server(http="127.0.0.1:0"))
    for path in ("/v1/topics", "/v1/topics/a/history", "/v1/topics/a/members", "/v1/dead"):
        assert site.get(path).problem == (507, 507)
    assert site.post("/v1/topics/group:a/members", {"join": ["a"]}).problem == (507, 507)
    assert site.post("/v1/publish", {"topic": "room:a", "body": 1}).status == 200
    assert site.get("/v1/topics/room:a/presence").json == {"users": [], "after": None}
    assert site.get("/v1/stats").json["commits"]["sum_ms"] == 0


def test_the_configuration_in_force_is_shown(running: RunningServer, site: Site) -> None:
    told = site.get("/v1/config").json
    assert told["data_dir"] == running.server.config.data_dir
    assert told["limits"]["calls"] == 64
    assert told["namespaces"][0]["prefix"] == "user"


def test_statistics_are_those_of_the_server(running: RunningServer, site: Site) -> None:
    site.post("/v1/publish", {"topic": "room:s", "body": 1, "durable": True})
    told = site.get("/v1/stats").json
    assert set(told["counts"]) == set(running.stats())
    assert told["unready"] == ""
    assert told["since_ms"] <= told["time_ms"]
    commits = told["commits"]
    assert sum(commits["counts"]) > 0
    assert len(commits["counts"]) == len(commits["bounds_ms"]) + 1


def test_an_operator_drains_it_once_and_it_stops_then(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    running = start_server(http="127.0.0.1:0", data_dir=str(tmp_path / "data"))
    site = Site(running)
    bob = running.user("bob")
    for _ in range(2):
        answer = site.post("/v1/drain", {"timeout_ms": 20_000})
        assert (answer.status, answer.json) == (202, {"status": "leaving"})
    assert json.loads(bob.expect(FrameType.GOAWAY))["code"] == 4201
    assert site.get("/readyz").status == 503
    bob.close()
    running.run(running.server.drained)
    running.stop()
    with pytest.raises(ConnectionRefusedError):
        site.get("/livez")


def test_a_server_stops_while_it_is_asked_and_while_it_is_drained(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(http="127.0.0.1:0")
    site = Site(running)
    running.user("bob")
    with site.open() as idle, site.open() as half:
        half.sendall(b"POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n")
        assert site.post("/v1/drain", {"timeout_ms": 20_000}).status == 202
        running.stop()
        assert idle.recv(1) == b""
