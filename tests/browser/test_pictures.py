"""Pictures of both pages as people see them, on a desk and on a phone, in light and in dark. They
are kept in build/screenshots; two of them are in the README (docs/images). What a test can judge of
a picture is that everything is on it, and nothing beside it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from people import People, Person, Visitor
from playwright.sync_api import expect
from serving import Serving
from test_console import dead_letter, row

from imserver.client import Client

LOOKS = [
    pytest.param(False, False, id="desk-light"),
    pytest.param(False, True, id="desk-dark"),
    pytest.param(True, False, id="phone-light"),
    pytest.param(True, True, id="phone-dark"),
]

ROOMS = {
    "desk-light": "launch",
    "desk-dark": "release",
    "phone-light": "coffee",
    "phone-dark": "night-shift",
}

TALK = [
    ("bob", "Morning! The new build is up: https://example.org/builds/42"),
    ("ann", "Looking now 👀"),
    ("bob", "🎉🎉"),
    ("bob", "When a message has its check mark, is it on the disk?"),
    ("ann", "Yes. It was flushed before you saw the mark, so it survives a power cut."),
    ("ann", "And if your phone was in a tunnel, it comes when you are back."),
]


def fits(visitor: Visitor) -> None:
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not visitor.page.evaluate(wide)


def talk(ann: Person, bob: Person) -> None:
    for name, text in TALK:
        speaker, listener = (ann, bob) if name == "ann" else (bob, ann)
        speaker.say(text)
        expect(listener.page.locator(".message").last).to_contain_text(text)


async def chatter(address: str, end: threading.Event) -> None:
    """A room of six who talk, at a pace that comes and goes."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(address, user=user))
            for user in ("ann", "bob", "carol", "dave", "erin", "frank")
        ]
        for client in clients:
            await client.subscribe("room:rehearsal")
        turn = 0
        while not end.is_set():
            turn += 1
            for client in clients[: 2 + turn // 20 % 4]:
                for _ in range(1 + turn // 10 % 5):
                    await client.publish("room:rehearsal", {"text": "ready"})
            body = {"text": f"step {turn} of the launch"}
            await clients[turn % 2].publish("dm:ann:bob", body, durable=True)
            await asyncio.sleep(0.05)


@pytest.fixture
def traffic(served: Serving) -> Iterator[None]:
    """In a thread with a loop of its own: Playwright has this one."""
    end = threading.Event()
    address = "{}:{}".format(*served.address)
    thread = threading.Thread(target=lambda: asyncio.run(chatter(address, end)))
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.mark.parametrize(("phone", "dark"), LOOKS)
def test_the_chat(people: People, request: pytest.FixtureRequest, phone: bool, dark: bool) -> None:
    look = request.node.callspec.id
    room = f"#room:{ROOMS[look]}"
    ann = people.person("ann", phone=phone, dark=dark, address=room)
    bob, carol = people.person("bob", address=room), people.person("carol", address=room)
    carol.write_to("ann")
    carol.say("Are you coming to lunch?")
    expect(carol.page.locator(".progress.kept")).to_have_count(1)
    talk(ann, bob)
    bob.field.press_sequentially("so ")
    expect(ann.page.locator("#typing")).to_be_visible()
    ann.picture(f"chat-{look}")
    fits(ann)
    if phone:
        ann.page.get_by_label("Back to all conversations").click()
        expect(ann.unread("carol")).to_be_visible()
        ann.picture(f"chat-list-{look}")
    else:
        ann.page.get_by_role("button", name="Join a room").click()
        ann.picture(f"chat-join-{look}")
    fits(ann)


@pytest.mark.parametrize(("phone", "dark"), LOOKS)
def test_the_entrance(
    people: People, request: pytest.FixtureRequest, phone: bool, dark: bool
) -> None:
    visitor = people.visitor("/chat", phone=phone, dark=dark)
    visitor.page.get_by_label("Pick a name").fill("not a name")
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.get_by_role("alert")).to_contain_text("no spaces")
    visitor.picture(f"entrance-{request.node.callspec.id}")
    fits(visitor)


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize(("phone", "dark"), LOOKS)
def test_the_console(
    people: People, served: Serving, request: pytest.FixtureRequest, phone: bool, dark: bool
) -> None:
    look = request.node.callspec.id
    letters = [dead_letter(served, f"{user}-{look}", "invoice 1041") for user in ("grace", "heidi")]
    console = people.visitor("/", phone=phone, dark=dark)
    expect(
        console.page.locator(".tile", has_text="commit latency").locator("dd").first
    ).to_contain_text("ms")
    console.page.wait_for_timeout(15_000 if look == "desk-light" else 3_000)  # something to draw
    console.picture(f"console-{look}")
    fits(console)
    for part in ("Sessions", "Topics", "Dead letters", "Settings"):
        console.page.get_by_role("link", name=part, exact=True).click()
        expect(console.page.locator(".table:visible, .panel:visible").first).to_be_visible()
        console.picture(f"console-{part.split()[0].lower()}-{look}")
        fits(console)
    console.page.goto(f"{served.url}/#topics/dm%3Aann%3Abob")
    expect(row(console, "bob").last).to_be_visible()
    console.picture(f"console-topic-{look}")
    console.page.goto(f"{served.url}/#letters")
    row(console, f"heidi-{look}").get_by_role("button", name="Show").click()
    expect(console.page.get_by_role("dialog")).to_contain_text("invoice 1041")
    console.picture(f"console-letter-{look}")
    fits(console)
    for peer in letters:
        peer.close()
