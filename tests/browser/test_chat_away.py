"""The server goes and comes back, and so do people; what was said meanwhile arrives."""

import pytest
from people import People
from playwright.sync_api import Browser, expect
from serving import Start


@pytest.fixture
def settings() -> dict[str, str]:
    """Clients come back soon, so that the test does."""
    return {"DRAIN__SPREAD_MS": "200", "RECONNECT__MAX_MS": "500"}


def test_after_a_restart_what_was_written_meanwhile_is_sent(
    browser: Browser, serve: Start, settings: dict[str, str]
) -> None:
    server = serve(**settings)
    people = People(browser, server.url)
    ann, bob = people.person("ann"), people.person("bob")
    ann.say("before")
    bob.sees("before")
    server.stop()
    expect(ann.page.locator("#banner")).to_contain_text("What you write waits here")
    ann.say("while it was away")
    expect(ann.message("while it was away")).to_contain_text("waits for the connection")
    ann.picture("chat-away")
    server.start()
    ann.connected()
    expect(ann.page.locator("#banner")).to_be_hidden()
    ann.kept("while it was away")
    bob.sees("while it was away")
    bob.say("I have it")
    ann.sees("I have it")
    for person in (ann, bob):
        expect(person.page.locator(".message")).to_have_count(3)
    people.leave()


def test_who_was_away_gets_what_was_said_meanwhile(
    browser: Browser, serve: Start, settings: dict[str, str]
) -> None:
    server = serve(**settings)
    people = People(browser, server.url)
    ann, bob = people.person("ann"), people.person("bob")
    bob.write_to("ann")
    bob.say("I go for lunch")
    expect(ann.unread("bob")).to_contain_text("1")
    bob.page.goto(f"{server.url}/client.json")
    ann.say("to the room, while bob is away")
    ann.conversation("bob").click()
    expect(ann.page.locator("#subtitle")).to_have_text("away")
    for number in range(3):
        ann.say(f"offline {number}")
    ann.kept("offline 2")
    server.stop()
    server.start()
    bob.page.goto(f"{server.url}/chat#room:elsewhere")
    bob.connected()
    expect(bob.unread("ann")).to_contain_text("3")
    expect(bob.unread("lobby")).to_contain_text("1")
    bob.conversation("ann").click()
    for number in range(3):
        bob.sees(f"offline {number}")
    expect(bob.page.locator(".divider + .message")).to_contain_text("offline 0")
    assert bob.page.locator(".message .text").all_inner_texts() == [
        "I go for lunch",
        "offline 0",
        "offline 1",
        "offline 2",
    ]
    people.leave()


def test_nothing_that_was_shown_comes_again_or_becomes_a_dead_letter(
    browser: Browser, serve: Start, settings: dict[str, str]
) -> None:
    server = serve(**settings, DELIVERY__ACK_WAIT_MS="1000", DELIVERY__ATTEMPTS="2")
    people = People(browser, server.url)
    ann, bob = people.person("ann"), people.person("bob")
    bob.join("elsewhere")  # what is not looked at is shown in the list, and that counts
    for number in range(20):
        ann.say(f"message {number}")
    expect(bob.unread("lobby")).to_contain_text("20")
    bob.page.wait_for_timeout(4_000)
    console = people.visitor("/#letters")
    expect(console.page.get_by_text("No dead letters")).to_be_visible()
    people.leave()
