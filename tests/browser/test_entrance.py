"""Who comes in to the chat of a server that believes tokens only, and how its rooms are."""

from collections.abc import Iterator

import pytest
from people import People, Visitor
from playwright.sync_api import Browser, expect
from serving import Serving, Start

from imserver.auth import issue
from imserver.config import Auth, Key

SECRET = "a-secret-of-at-least-32-bytes-for-hs256"
AUTH = Auth(keys=(Key(algorithm="HS256", secret=SECRET),))


@pytest.fixture
def strict(serve: Start) -> Serving:
    return serve(dev=False, AUTH__KEYS=f'[{{"algorithm": "HS256", "secret": "{SECRET}"}}]')


@pytest.fixture
def guests(browser: Browser, strict: Serving) -> Iterator[People]:
    visiting = People(browser, strict.url)
    yield visiting
    visiting.leave()


def enter(visitor: Visitor, token: str) -> None:
    visitor.page.get_by_label("Paste your token").fill(token)
    visitor.page.get_by_role("button", name="Start chatting").click()


def test_a_token_says_who_one_is_and_on_which_device(guests: People) -> None:
    ann = guests.visitor("/chat#room:lobby")
    enter(ann, issue(AUTH, "ann", subscribe=["room:*"], publish=["room:*"], device="desk"))
    expect(ann.page.locator("#me-name")).to_have_text("ann")
    expect(ann.page.locator("#me-state")).to_have_text("Connected")
    expect(ann.page.locator("#title")).to_have_text("lobby")
    ann.page.reload()
    expect(ann.page.locator("#me-name")).to_have_text("ann")


def test_a_token_that_is_refused_is_asked_for_again(guests: People) -> None:
    ann = guests.visitor("/chat")
    enter(ann, "no.such.token")
    expect(ann.page.get_by_role("alert")).to_contain_text("(4001)")
    expect(ann.page.get_by_label("Paste your token")).to_be_focused()
    enter(ann, issue(AUTH, "ann"))
    expect(ann.page.locator("#me-state")).to_have_text("Connected")
    expect(ann.page.locator("#none")).to_contain_text("Join a room")


def test_a_room_that_keeps_nothing_says_so_and_works(guests: People) -> None:
    rights = {"subscribe": ["room:*"], "publish": ["room:*"]}
    ann, bob = (guests.visitor("/chat#room:live") for _ in range(2))
    for visitor, name in ((ann, "ann"), (bob, "bob")):
        enter(visitor, issue(AUTH, name, **rights))
        expect(visitor.page.locator("#start")).to_contain_text("Nothing is kept here")
    ann.page.locator("#text").fill("live and at most once")
    ann.page.keyboard.press("Enter")
    expect(bob.page.locator(".message .text")).to_have_text("live and at most once")
    expect(ann.page.locator(".message .progress")).to_contain_text("delivered")
    expect(ann.page.locator(".message")).to_have_count(1)


def test_a_right_that_is_missing_is_said_beside_the_message(guests: People) -> None:
    ann = guests.visitor("/chat#room:news")
    enter(ann, issue(AUTH, "ann", subscribe=["room:news"]))
    expect(ann.page.locator("#start")).to_contain_text("Nothing is kept here")
    ann.page.locator("#text").fill("may I?")
    ann.page.keyboard.press("Enter")
    expect(ann.page.locator(".failure")).to_contain_text("(403)")
