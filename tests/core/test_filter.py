"""Tags and tag expressions beside sets and Python's own UTF-8 (filter.h: T1, T2)."""

import re

import pytest
from door import PROPERTY, GuardedPage, Span, ffi, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st

ALL = 0  # the filter of `*`

NOT_IN_TAGS = re.compile(r"[\x00-\x20\x7f-\x9f|*]")


def is_tag(tag: bytes) -> bool:
    """The rule, from Python's point of view."""
    try:
        return len(tag) <= 64 and not NOT_IN_TAGS.search(tag.decode())
    except UnicodeDecodeError:
        return False


def tags_of(expression: bytes) -> set[bytes] | None:
    """The tags an expression asks for; None when it breaks a rule."""
    tags = expression.split(b"||")
    if not 1 <= len(expression) <= 1024 or len(tags) > 16:
        return None
    return set(tags) if all(tag and is_tag(tag) for tag in tags) else None


# Tags

#: Bytes at the edges of every rule, more likely to meet than by chance.
EDGES = b"a$ |*\x00\x1f\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xed\xef\xf0\xf4\xf5\xff"


@pytest.fixture(scope="module")
def page() -> GuardedPage:
    return GuardedPage(4096)


@settings(PROPERTY, max_examples=1500)
@given(
    st.one_of(
        st.binary(max_size=70),
        st.lists(st.sampled_from(EDGES), max_size=8).map(bytes),
        st.text(max_size=40).map(str.encode),
    )
)
@example("é".encode() * 32)
@example("é".encode() * 32 + b"a")
@example(b"\xc2\x85")  # a control character of two bytes
@example(b"\xc2\xa0")
@example(b"\xe2\x82")  # unfinished
def test_a_tag_is_valid_when_python_says_so(page, tag) -> None:
    assert lib.im_tag_is_valid(page.span(tag)) == is_tag(tag)


def test_every_character_is_judged_as_python_judges_it(page) -> None:
    step = 7  # with all of the first 4096 and the neighbours of every edge
    edges = (0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF)
    for number in {*range(4096), *range(0, 0x110000, step), *edges}:
        if not 0xD800 <= number < 0xE000:
            tag = chr(number).encode()
            assert lib.im_tag_is_valid(page.span(tag)) == is_tag(tag), hex(number)


def test_all_pairs_and_the_risky_triples_of_bytes_are_judged_as_python_judges_them(page) -> None:
    firsts = [bytes([a, b]) for a in range(256) for b in range(256)]
    risky = [bytes([a, b, c]) for a in (0xE0, 0xE1, 0xED, 0xEF) for b in EDGES for c in EDGES]
    longer = [
        bytes([a, b, c, d]) for a in (0xF0, 0xF1, 0xF4, 0xF5) for b in EDGES for c in EDGES
        for d in (0x41, 0x80, 0xBF, 0xC2)
    ]  # fmt: skip
    for tag in firsts + risky + longer:
        assert lib.im_tag_is_valid(page.span(tag)) == is_tag(tag), tag


# Expressions


class Filters:
    def __init__(self) -> None:
        self.it = ffi.new("struct im_filters *")
        lib.im_filters_init(self.it, 0x1234567)

    def take(self, expression: bytes) -> int | None:
        """The id, or None when the expression breaks a rule."""
        id = ffi.new("uint32_t *")
        span = Span(expression)
        status = lib.im_filter_take(self.it, span.value, id)
        assert status in (lib.IM_OK, lib.IM_BAD)
        return id[0] if status == lib.IM_OK else None

    def drop(self, id: int) -> None:
        lib.im_filter_drop(self.it, id)

    def match(self, id: int, tag: bytes) -> bool:
        span = Span(tag)
        return lib.im_filter_match(self.it, id, span.value)

    def begin(self) -> None:
        lib.im_filters_begin(self.it)


@pytest.fixture
def filters():
    filters = Filters()
    yield filters
    lib.im_filters_free(filters.it)


TAGS = [b"a", b"b", b"ab", b"abc", b"$sys", "é".encode(), b"x" * 64]
EXPRESSIONS = st.lists(st.sampled_from(TAGS), min_size=1, max_size=17).map(b"||".join)


@PROPERTY
@given(st.one_of(EXPRESSIONS, st.lists(st.sampled_from(b"ab|* "), max_size=9).map(bytes)))
@example(b"")
@example(b"*")
@example(b"*||a")
@example(b"a|")
@example(b"a||")
@example(b"||a")
@example(b"a|||b")
@example(b"||".join([b"x" * 64] * 15) + b"||" + b"y" * 34)  # 1024 bytes
@example(b"||".join([b"x" * 64] * 15) + b"||" + b"y" * 35)
def test_an_expression_is_taken_when_it_keeps_the_rules(expression) -> None:
    filters = Filters()
    id = filters.take(expression)
    if expression == b"*":
        assert id == ALL
    elif tags_of(expression) is None:
        assert id is None
        assert filters.it.live == 0
    else:
        assert id
    lib.im_filters_free(filters.it)


@PROPERTY
@given(
    st.lists(st.one_of(EXPRESSIONS, st.just(b"*")), min_size=1, max_size=90),
    st.lists(st.sampled_from([b"", b"c", *TAGS]), max_size=6),
    st.data(),
)
def test_filters_match_as_sets_do_while_others_come_and_go(expressions, tags, data) -> None:
    filters = Filters()
    held: list[tuple[int, bytes]] = []
    for expression in expressions:
        id = filters.take(expression)
        if id is not None:
            held.append((id, expression))
        if held and data.draw(st.booleans()):
            filters.drop(held.pop(data.draw(st.integers(0, len(held) - 1)))[0])
        # T2: kept once, however many hold it, and as long as somebody does.
        alive = {id: expression for id, expression in held if id != ALL}
        assert filters.it.live == len(alive) == len(set(alive.values()))
        assert all(alive.get(id, b"*") == expression for id, expression in held)
    for tag in tags:
        filters.begin()
        for id, expression in held * 2:  # the second answer is the kept one
            wanted = expression == b"*" or tag in (tags_of(expression) or ())
            assert filters.match(id, tag) == wanted
    for id, _ in held:
        filters.drop(id)
    assert filters.it.live == 0
    lib.im_filters_free(filters.it)


def test_the_star_matches_everything_a_message_without_tag_too(filters) -> None:
    filters.begin()
    assert filters.match(ALL, b"")
    assert filters.match(ALL, b"anything")


def test_a_message_without_tag_passes_no_other_filter(filters) -> None:
    id = filters.take(b"a||b")
    filters.begin()
    assert not filters.match(id, b"")


def test_tags_are_compared_whole(filters) -> None:
    id = filters.take(b"ab||cd")
    for tag in (b"a", b"b", b"abc", b"bc", b"ab||cd", b"|", b"d"):
        filters.begin()
        assert not filters.match(id, tag), tag


def test_hundreds_of_filters_are_told_apart(filters) -> None:
    ids = {filters.take(b"tag%d" % number): number for number in range(700)}
    assert len(ids) == filters.it.live == 700
    for number in (0, 1, 63, 64, 65, 511, 699):
        filters.begin()
        assert [n for id, n in ids.items() if filters.match(id, b"tag%d" % number)] == [number]
    for id in ids:
        filters.drop(id)
    assert filters.it.live == 0
