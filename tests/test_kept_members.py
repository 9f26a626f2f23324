"""Members, end to end: a real server, its store on a disk, bare sockets."""

import pytest
from harness import JSON
from kept import Start, keep, reader, seqs

from imserver import gateway_tasks
from imserver.config import Limits
from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.protocol import (
    DURABLE,
    FrameType,
    Unsubscribe,
    Unsubscribed,
    encode_frame,
)


def test_a_member_reads_and_writes_from_now_on(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    ann.peer.publish("group:1", "ann", id=1, flags=DURABLE)
    assert ann.expect(FrameType.ERROR).code == ErrorCode.FORBIDDEN
    server.run(lambda: server.server.join("group:1", ["ann", "bob", "eve"]))
    assert keep(ann, "ann", first_id=2, topic="group:1")[0].seq == 1
    assert seqs(bob.take(1)) == [1]
    eve = reader(server, "eve")
    assert keep(eve, "eve", topic="group:1")[0].seq == 2, "judged when it is known who is a member"
    server.run(lambda: server.server.leave("group:1", ["bob"]))
    left = bob.expect(FrameType.UNSUBSCRIBED)
    assert left == Unsubscribed("group:1", ErrorCode.FORBIDDEN)
    keep(ann, "ann", first_id=3, topic="group:1")
    assert seqs(bob.messages) in ([], [2])
    bob.peer.publish("group:1", "bob", id=1)
    assert bob.expect(FrameType.ERROR).code == ErrorCode.FORBIDDEN


def test_a_new_member_can_read_what_was_said_before_and_has_it_not_unread(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    server.run(lambda: server.server.join("group:1", ["ann"]))
    keep(ann, "ann", 3, topic="group:1")
    server.run(lambda: server.server.join("group:1", ["bob"]))
    assert bob.is_still(), "nobody sends it by itself"
    history = bob.call("history", {"topic": "group:1", "after": 0})
    assert [message["seq"] for message in history["messages"]] == [1, 2, 3]
    assert bob.call("unread", {"topics": ["group:1"]})["group:1"]["unread"] == 0
    keep(ann, "ann", first_id=4, topic="group:1")
    assert bob.call("unread", {"topics": ["group:1"]})["group:1"]["unread"] == 1
    bob.take(1)
    bob.subscribe("group:1", after=0)
    assert seqs(bob.take(4)) == [1, 2, 3, 4]


def test_a_member_who_leaves_by_a_call_is_unsubscribed_everywhere(serve: Start) -> None:
    server = serve()
    ann, phone, tab = reader(server, "ann"), reader(server, "bob"), reader(server, "bob", "tab")
    keep(ann, "ann", topic="dm:ann:bob")
    assert seqs(phone.take(1)) == seqs(tab.take(1)) == [1]
    assert phone.call("leave", {"topic": "dm:ann:bob"}) == {"left": True}
    left = Unsubscribed("dm:ann:bob", ErrorCode.FORBIDDEN)
    assert phone.expect(FrameType.UNSUBSCRIBED) == tab.expect(FrameType.UNSUBSCRIBED) == left
    keep(ann, "ann", first_id=2, topic="dm:ann:bob")
    assert phone.is_still()
    assert tab.is_still()
    again = reader(server, "bob", "watch")
    assert again.is_still(), "nor at the next login"
    assert phone.call("leave", {"topic": "dm:ann:bob"}) == {"left": False}


def test_a_member_hears_which_topics_the_connection_has_no_room_for(serve: Start) -> None:
    server = serve(limits=Limits(subscriptions=3))
    for number in range(5):
        server.run(lambda topic=f"group:{number}": server.server.join(topic, ["bob"]))
    bob = reader(server, "bob")
    told = [bob.expect(FrameType.ERROR) for _ in range(3)]
    assert {(one.code, one.id) for one in told} == {(ErrorCode.TOO_MANY_SUBSCRIPTIONS, 0)}
    assert [one.topic for one in told] == ["group:2", "group:3", "group:4"]
    server.run(lambda: server.server.join("group:5", ["bob"]))
    assert bob.expect(FrameType.ERROR).topic == "group:5", "also when it becomes one"
    bob.peer.send(encode_frame(FrameType.UNSUBSCRIBE, Unsubscribe("group:0"), JSON, 3))
    bob.expect(FrameType.UNSUBSCRIBED)
    assert bob.subscribe("group:4", durable=True).durable, "there is room for one that it chooses"
    assert [kind for kind, _ in bob.others] == []


def test_memberships_that_cannot_be_read_are_told(serve: Start) -> None:
    server = serve()
    store = server.server._store
    assert store is not None

    async def stopped(user: str) -> list[str]:
        raise ImError(ErrorCode.NOT_DURABLE, "the store has stopped: EIO")

    store.memberships = stopped  # type: ignore[method-assign]
    error = reader(server, "bob").expect(FrameType.ERROR)
    assert (error.code, error.topic) == (ErrorCode.NOT_DURABLE, "")
    assert error.message.endswith("the store has stopped: EIO")


def test_who_cannot_be_subscribed_by_itself_for_want_of_room_comes_again(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    ann = reader(server, "ann")
    assert ann.is_still()
    monkeypatch.setattr(gateway_tasks, "WAITING_MAX", 0)
    server.run(lambda: server.server.join("group:1", ["ann"]))
    assert ann.expect(FrameType.GOAWAY).code == CloseCode.OVERLOADED
    bob = reader(server, "bob")
    assert bob.expect(FrameType.GOAWAY).code == CloseCode.OVERLOADED


def test_a_first_message_finds_the_other_of_the_two(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    keep(ann, "ann", topic="dm:ann:bob", body=b"hi")
    assert [one.body for one in bob.take(1)] == [b"hi"]
    server = serve()
    bob = reader(server, "bob")
    assert [one.body for one in bob.take(1)] == [b"hi"], "it was not acknowledged"


def test_a_dm_that_the_program_begins_has_its_members(serve: Start) -> None:
    server = serve()
    bob = reader(server, "bob")
    server.run(lambda: server.server.publish("dm:ann:bob", "hello", durable=True))
    assert [one.value() for one in bob.take(1)] == ["hello"]
    with pytest.raises(ImError, match="422"):
        server.run(lambda: server.server.publish("dm:bob:ann", "hello", durable=True))
    with pytest.raises(TypeError):
        server.run(lambda: server.server.join("group:1", "ann"))


def test_who_joins_again_hears_nothing_of_the_time_between(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    server.run(lambda: server.server.join("group:1", ["ann", "bob"]))
    keep(ann, "ann", topic="group:1")
    assert seqs(bob.take(1)) == [1]
    bob.ack(1, "group:1")
    bob.peer.ping()
    server.run(lambda: server.server.leave("group:1", ["bob"]))
    bob.expect(FrameType.UNSUBSCRIBED)
    keep(ann, "ann", first_id=2, topic="group:1")
    server.run(lambda: server.server.join("group:1", ["bob"]))
    keep(bob, "bob", first_id=1, topic="group:1")
    assert seqs(bob.take(1)) == [3]
