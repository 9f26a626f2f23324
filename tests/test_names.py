"""What may be a topic, a tag, a user; and the number that everything else is refused with."""

from typing import Any

import pytest

from imserver import names
from imserver.errors import ImError

MANY = "||".join(map(str, range(17)))
LONG = "||".join(["x" * 64] * 16) + " "


def assert_refused(code: int, call: Any, *args: Any) -> None:
    with pytest.raises(ImError) as caught:
        call(*args)
    assert caught.value.code == code


@pytest.mark.parametrize("topic", ["room:1", "é" * 127, "x" * 255, "dm:a b:c", "$sys", "日本"])
def test_good_topics(topic: str):
    assert names.check_topic(topic) == topic
    assert names.check_topic(topic.encode()) == topic


@pytest.mark.parametrize(
    "topic",
    [
        "",
        b"",
        "x" * 256,
        "é" * 128,
        "a\nb",
        "a\x00",
        "\x7f",
        "\x85",
        b"\xff",
        b"\xed\xa0\x80",
        "\ud800",
    ],
)
def test_bad_topics_are_422(topic: str | bytes):
    assert_refused(422, names.check_topic, topic)


@pytest.mark.parametrize("name", ["a", "ann.b_c-d@example.org", "X" * 64, "0"])
def test_good_identifiers(name: str):
    assert names.check_identifier(name) == name


@pytest.mark.parametrize("name", ["", "a b", "X" * 65, "é", "a\n", "a:b", "$server", "a/b", "٣"])
def test_bad_identifiers_are_422(name: str):
    assert_refused(422, names.check_identifier, name)


@pytest.mark.parametrize("tag", ["", "a", "é" * 32, "a-b.c", "a$"])
def test_good_tags(tag: str):
    assert names.check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["a b", "a|b", "*", "a\t", "x" * 65, b"\xff"])
def test_bad_tags_are_422(tag: str | bytes):
    assert_refused(422, names.check_tag, tag)


def test_tags_of_the_server_are_403():
    assert_refused(403, names.check_tag, "$presence")


@pytest.mark.parametrize(
    ("expression", "normal"),
    [
        ("*", "*"),
        (" * ", "*"),
        ("a", "a"),
        ("a||b", "a||b"),
        (" a ||  b ", "a||b"),
        ("$presence||é", "$presence||é"),
        ("||".join(map(str, range(16))), "||".join(map(str, range(16)))),
    ],
)
def test_good_tag_expressions(expression: str, normal: str):
    assert names.check_tags(expression) == normal


@pytest.mark.parametrize(
    "expression",
    ["", " ", "||", "a||", "||a", "a|b", "a|||b", "*||a", "a b", "a\n", "x" * 65, "a*", MANY, LONG],
)
def test_bad_tag_expressions_are_422(expression: str):
    assert_refused(422, names.check_tags, expression)
