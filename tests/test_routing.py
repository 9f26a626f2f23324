"""Who may do what, as a table; and denials, which win over it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imserver import routing
from imserver.config import Namespace
from imserver.errors import ImError
from imserver.model_session import NO_RIGHTS, Rights, matches
from imserver.routing import Routing

LOBBY = Rights(publish=("room:lobby", "room:team-*"), subscribe=("room:*",))
EVERYTHING = Rights(publish=("*",), subscribe=("*",))


@pytest.mark.parametrize(
    ("user", "rights", "topic", "publish", "subscribe"),
    [
        # An inbox is read by its owner, and written to by those who were allowed to.
        ("ann", NO_RIGHTS, "user:ann", False, True),
        ("bob", NO_RIGHTS, "user:ann", False, False),
        ("bob", Rights(publish=("user:ann",)), "user:ann", True, False),
        ("bob", EVERYTHING, "user:ann", True, False),
        ("ann", EVERYTHING, "user:", False, False),
        ("ann", EVERYTHING, "user:ann:bob", False, False),
        ("ann", EVERYTHING, "user:a nn", False, False),
        # A conversation belongs to its two; there is one name for it.
        ("ann", NO_RIGHTS, "dm:ann:bob", True, True),
        ("bob", NO_RIGHTS, "dm:ann:bob", True, True),
        ("eve", EVERYTHING, "dm:ann:bob", False, False),
        ("ann", NO_RIGHTS, "dm:bob:ann", False, False),
        ("ann", NO_RIGHTS, "dm:ann:ann", False, False),
        ("ann", NO_RIGHTS, "dm:ann", False, False),
        ("ann", NO_RIGHTS, "dm:ann:", False, False),
        ("ann", NO_RIGHTS, "dm::ann", False, False),
        ("ann", NO_RIGHTS, "dm:ann:bob:eve", False, False),
        ("ann", NO_RIGHTS, "dm:ann:b/b", False, False),
        # Groups and rooms are for those whose token says so.
        ("ann", NO_RIGHTS, "group:7", False, False),
        ("ann", Rights(publish=("group:7",)), "group:7", True, False),
        ("ann", Rights(subscribe=("group:7",)), "group:7", False, True),
        ("ann", NO_RIGHTS, "room:lobby", False, False),
        ("ann", LOBBY, "room:lobby", True, True),
        ("ann", LOBBY, "room:lobby2", False, True),
        ("ann", LOBBY, "room:team-red", True, True),
        ("ann", LOBBY, "room:team-", True, True),
        ("ann", LOBBY, "room:team", False, True),
        ("ann", LOBBY, "room:", False, False),
        ("ann", LOBBY, "room", False, False),
        # Nothing else is anybody's.
        ("ann", EVERYTHING, "$server", False, False),
        ("ann", EVERYTHING, "$broadcast", False, False),
        ("ann", EVERYTHING, "$room:lobby", False, False),
        ("ann", EVERYTHING, "lobby", False, False),
        ("ann", EVERYTHING, "rooms:lobby", False, False),
        ("ann", EVERYTHING, "Room:lobby", False, False),
        ("ann", EVERYTHING, ":lobby", False, False),
        ("ann", EVERYTHING, "*", False, False),
    ],
)
def test_who_may_do_what(
    user: str, rights: Rights, topic: str, publish: bool, subscribe: bool
) -> None:
    policy = Routing()
    assert policy.may_publish(user, rights, topic) is publish
    assert policy.may_subscribe(user, rights, topic) is subscribe


def test_in_dev_mode_rooms_are_open_and_nothing_else() -> None:
    policy = Routing(dev=True)
    assert policy.may_publish("ann", NO_RIGHTS, "room:lobby")
    assert policy.may_subscribe("ann", NO_RIGHTS, "room:lobby")
    assert not policy.may_publish("ann", NO_RIGHTS, "room:")
    for topic in ("group:7", "user:bob", "dm:bob:eve", "$room:lobby", "other"):
        assert not policy.may_publish("ann", NO_RIGHTS, topic)
        assert not policy.may_subscribe("ann", NO_RIGHTS, topic)


@pytest.mark.parametrize(
    ("who", "stranger", "claimant", "owner"),
    [
        ("anyone", True, True, True),
        ("claim", False, True, False),
        ("self", False, False, True),
        ("nobody", False, False, False),
    ],
)
def test_each_policy_means_what_it_says(
    who: str, stranger: bool, claimant: bool, owner: bool
) -> None:
    policy = Routing([Namespace(prefix="news", publish=who, subscribe="nobody")])  # type: ignore[arg-type]
    claim = Rights(publish=("news:ann",))
    assert policy.may_publish("bob", NO_RIGHTS, "news:ann") is stranger
    assert policy.may_publish("bob", claim, "news:ann") is claimant
    assert policy.may_publish("ann", NO_RIGHTS, "news:ann") is owner
    assert not policy.may_subscribe("ann", EVERYTHING, "news:ann")
    assert not policy.may_publish("ann", EVERYTHING, "room:lobby"), "a list of one's own is all"


def test_a_denial_wins_over_every_rule() -> None:
    policy = Routing([Namespace(prefix="room", publish="anyone", subscribe="anyone")], dev=True)
    policy.deny("ann", "room:*")
    assert not policy.may_publish("ann", EVERYTHING, "room:lobby")
    assert not policy.may_subscribe("ann", EVERYTHING, "room:lobby")
    assert policy.may_publish("bob", NO_RIGHTS, "room:lobby")


def test_an_exact_denial_denies_no_more() -> None:
    policy = Routing()
    policy.deny("ann", "room:lobby")
    assert not policy.may_publish("ann", LOBBY, "room:lobby")
    assert policy.may_publish("ann", LOBBY, "room:team-red")


def test_a_denial_is_lifted_by_the_same_words() -> None:
    policy = Routing()
    policy.deny("ann", "room:*")
    policy.deny("ann", "room:lobby")
    policy.allow("ann", "room:l*")
    assert sorted(policy.denials()) == [("ann", "room:*"), ("ann", "room:lobby")]
    policy.allow("ann", "room:*")
    assert list(policy.denials()) == [("ann", "room:lobby")]
    policy.allow("ann")
    policy.allow("ann")
    assert list(policy.denials()) == []
    assert policy.may_publish("ann", LOBBY, "room:lobby")


def test_a_full_table_refuses_and_forgets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "DENIALS_MAX", 2)
    policy = Routing()
    policy.deny("ann", "room:a")
    policy.deny("ann", "room:b")
    policy.deny("ann", "room:b")
    with pytest.raises(ImError) as refusal:
        policy.deny("bob", "room:c")
    assert refusal.value.code == 503
    assert policy.is_denied("ann", "room:a")
    policy.allow("ann", "room:a")
    policy.deny("bob", "room:c")
    assert policy.is_denied("bob", "room:c")


@given(topic=st.text(max_size=20), pattern=st.text(max_size=8))
def test_a_pattern_is_exact_or_a_beginning(topic: str, pattern: str) -> None:
    expected = topic.startswith(pattern[:-1]) if pattern[-1:] == "*" else topic == pattern
    assert matches(pattern, topic) is expected


@given(st.text(alphabet=":$*aroomdmuserg\x00 ", max_size=16))
def test_what_no_rule_names_is_forbidden(topic: str) -> None:
    allowed = Routing().may_publish("a", EVERYTHING, topic)
    assert not allowed or topic.partition(":")[0] in ("user", "dm", "group", "room")
