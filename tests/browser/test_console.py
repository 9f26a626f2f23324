"""The console before a real server: numbers that move, and what an operator may do."""

import struct

import pytest
from harness import JSON, Peer
from people import People, Visitor
from playwright.sync_api import Browser, Locator, expect
from serving import Serving, Start

from imserver.protocol import DURABLE, FrameType, Subscribe, encode_frame

SECRET = "an-operators-secret-of-at-least-32-bytes"


@pytest.fixture
def console(people: People) -> Visitor:
    visitor = people.visitor("/")
    expect(visitor.page.locator("#live")).to_have_text("Live")
    return visitor


def row(console: Visitor, text: str) -> Locator:
    return console.page.locator("tbody tr:visible", has_text=text)


def sign(served: Serving, user: str, device: str = "test") -> Peer:
    peer = Peer(served.address)
    peer.login(user, device)
    return peer


def dead_letter(served: Serving, user: str, text: str) -> Peer:
    """Somebody refuses a message, once, which is as often as this server tries."""
    peer = sign(served, user)
    topic = f"room:refused-by-{user}"
    peer.send(encode_frame(FrameType.SUBSCRIBE, Subscribe(topic=topic, durable=True), JSON, 2))
    while (frame := peer.receive()) and frame[2] != 2:
        pass  # the inbox, of which nobody asked
    writer = sign(served, "writer")
    writer.publish(topic, "writer", b'{"text": "%s"}' % text.encode(), codec=1, id=1, flags=DURABLE)
    writer.expect(FrameType.RECEIPT)
    writer.close()
    peer.expect(FrameType.MESSAGE)
    body = struct.pack(">Q", 1) + topic.encode()
    peer.send(struct.pack(">IBBH", 4 + len(body), FrameType.NACK, 0, 0) + body)
    peer.ping()
    return peer


def drawn(console: Visitor, title: str) -> int:
    """Pixels of a chart that are not empty."""
    chart = console.page.locator(".chart", has_text=title).locator("canvas")
    return int(
        chart.evaluate(
            "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
            ".reduce((sum, value, at) => sum + (at % 4 === 3 && value > 0), 0)"
        )
    )


def test_the_charts_move_with_the_traffic(console: Visitor, served: Serving) -> None:
    peer = sign(served, "mover")
    messages = console.page.locator(".chart", has_text="Messages a second")
    expect(messages.locator(".plot")).to_have_attribute(
        "aria-label", "Messages a second: deliveries 0, published 0, kept 0"
    )
    before = drawn(console, "Messages a second")
    peer.subscribe("room:moving")
    for _ in range(50):
        for _ in range(20):
            peer.publish("room:moving", "mover")
        console.page.wait_for_timeout(50)
    expect(messages.locator("li", has_text="published").locator("b")).not_to_have_text("0")
    expect(console.page.locator(".tile", has_text="connections").locator("dd").first).to_have_text(
        "1"
    )
    assert drawn(console, "Messages a second") > before
    expect(row(console, "ready")).to_be_visible()
    peer.close()


def test_a_session_is_found_and_disconnected(console: Visitor, served: Serving) -> None:
    mallory, alice = sign(served, "mallory", "phone"), sign(served, "alice")
    console.page.get_by_role("link", name="Sessions").click()
    expect(row(console, "alice")).to_be_visible()
    console.page.get_by_label("Search sessions").fill("mall")
    expect(row(console, "alice")).to_have_count(0)
    row(console, "mallory").get_by_role("button", name="Disconnect").click()
    dialog = console.page.get_by_role("dialog")
    expect(dialog).to_contain_text("Disconnect mallory?")
    console.page.keyboard.press("Escape")
    expect(row(console, "mallory")).to_be_visible()
    row(console, "mallory").get_by_role("button", name="Disconnect").click()
    dialog.get_by_role("button", name="Disconnect").click()
    expect(console.page.locator("#sessions-said")).to_have_text("1 connection of mallory closed.")
    expect(console.page.get_by_text("Nobody is here")).to_be_visible()
    goaway = mallory.expect(FrameType.GOAWAY)
    assert b"4010" in goaway
    alice.ping()
    for peer in (mallory, alice):
        peer.close()


def test_a_topic_shows_its_history_and_its_members(console: Visitor, served: Serving) -> None:
    ann = sign(served, "ann")
    for number in range(1, 61):
        body = b'{"text": "line %d"}' % number
        ann.publish("dm:ann:bob", "ann", body, codec=1, id=number, flags=DURABLE)
    receipts = 0
    while receipts < 60:
        frame = ann.receive()
        assert frame
        receipts += frame[0] == FrameType.RECEIPT
    ann.close()
    console.page.get_by_role("link", name="Topics").click()
    console.page.get_by_role("link", name="dm:ann:bob").click()
    expect(console.page.locator("#topic-title")).to_have_text("dm:ann:bob")
    history = console.page.locator("#topic-history tbody tr")
    expect(history.first).to_contain_text("line 60")
    expect(history).to_have_count(50)
    console.page.locator("#topic-history").get_by_role("button", name="More").click()
    expect(history).to_have_count(60)
    expect(history.last).to_contain_text("line 1")
    members = console.page.locator("#topic-members tbody tr b")
    expect(members).to_have_text(["ann", "bob"])


def test_a_dead_letter_is_looked_at_and_redriven(console: Visitor, served: Serving) -> None:
    eve = dead_letter(served, "eve", "invoice 1041")
    console.page.get_by_role("link", name="Dead letters").click()
    letter = row(console, "room:refused-by-eve")
    letter.get_by_role("button", name="Show").click()
    dialog = console.page.get_by_role("dialog")
    expect(dialog).to_contain_text("invoice 1041")
    dialog.get_by_role("button", name="Close").click()
    letter.get_by_role("button", name="Redrive").click()
    dialog.get_by_role("button", name="Redrive").click()
    expect(console.page.locator("#letters-said")).to_have_text("1 letter is on the way once more.")
    expect(letter).to_have_count(0)
    assert b"invoice 1041" in eve.expect(FrameType.MESSAGE)
    eve.close()


def test_dead_letters_are_chosen_and_purged(console: Visitor, served: Serving) -> None:
    peers = [dead_letter(served, user, "gone") for user in ("fay", "gil")]
    console.page.get_by_role("link", name="Dead letters").click()
    for user in ("fay", "gil"):
        row(console, f"refused-by-{user}").get_by_role("checkbox").check()
    expect(console.page.locator("#letters-count")).to_have_text("2 chosen")
    console.page.get_by_role("button", name="Purge them").click()
    console.page.get_by_role("dialog").get_by_role("button", name="Purge").click()
    expect(console.page.locator("#letters-said")).to_have_text("2 letters are deleted.")
    for user in ("fay", "gil"):
        expect(row(console, f"refused-by-{user}")).to_have_count(0)
    for peer in peers:
        peer.close()


def test_the_settings_in_force_are_shown_and_found(console: Visitor) -> None:
    console.page.get_by_role("link", name="Settings").click()
    attempts = console.page.locator(".facts > div:visible", has_text="delivery.attempts")
    expect(attempts).to_contain_text("1")
    console.page.get_by_label("Search settings").fill("heartbeat")
    expect(attempts).to_have_count(0)
    expect(console.page.locator(".panel:visible")).to_have_count(1)


def test_an_error_is_shown_with_its_number_and_its_text(console: Visitor) -> None:
    problem = {
        "title": "not durable",
        "status": 507,
        "code": 507,
        "detail": "this server keeps nothing",
    }
    console.page.route("**/v1/topics?*", lambda route: route.fulfill(status=507, json=problem))
    console.page.route("**/v1/topics", lambda route: route.fulfill(status=507, json=problem))
    console.page.get_by_role("link", name="Topics").click()
    expect(console.page.locator("#topics-list .error")).to_have_text(
        "507 · not durable: this server keeps nothing"
    )


def test_a_server_that_is_away_is_told_and_waited_for(browser: Browser, serve: Start) -> None:
    server = serve()
    people = People(browser, server.url)
    console = people.visitor("/")
    expect(console.page.locator("#live")).to_have_text("Live")
    server.stop()
    expect(console.page.locator("#trouble")).to_have_text("The server does not answer.")
    server.start()
    expect(console.page.locator("#live")).to_have_text("Live")
    expect(console.page.locator("#trouble-bar")).to_be_hidden()
    people.leave()


def test_without_dev_it_asks_for_a_key_and_keeps_it_in_the_tab(
    browser: Browser, serve: Start
) -> None:
    server = serve(
        dev=False,
        API__KEYS=f'[{{"name": "ops", "secret": "{SECRET}", "scopes": ["admin"]}},'
        f' {{"name": "shop", "secret": "{SECRET[::-1]}", "scopes": ["publish"]}}]',
        AUTH__KEYS=f'[{{"algorithm": "HS256", "secret": "{SECRET}"}}]',
    )
    people = People(browser, server.url)
    console = people.visitor("/")
    key = console.page.get_by_label("Admin key")
    key.fill("wrong")
    console.page.keyboard.press("Enter")
    expect(console.page.locator("#entrance-error")).to_contain_text("401")
    key.fill(SECRET[::-1])
    console.page.keyboard.press("Enter")
    expect(console.page.locator("#entrance-error")).to_contain_text("403")
    key.fill(SECRET)
    console.page.keyboard.press("Enter")
    expect(console.page.locator("#live")).to_have_text("Live")
    console.page.reload()
    expect(console.page.locator("#live")).to_have_text("Live")
    console.page.get_by_role("link", name="Settings").click()
    expect(console.page.locator(".panel").first).to_be_visible()
    assert SECRET not in console.page.content()
    console.page.get_by_role("button", name="Forget the key").click()
    expect(key).to_be_visible()
    people.leave()
