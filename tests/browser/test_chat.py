"""Two people chat in two browsers, through the real server."""

import json
import urllib.request

from harness import Peer
from people import People, Person
from playwright.sync_api import Browser, expect
from serving import Serving, Start

from imserver.protocol import DURABLE, FrameType


def two(people: People, room: str = "lobby") -> tuple[Person, Person]:
    address = f"#room:{room}"
    return people.person("ann", address=address), people.person("bob", address=address)


def test_two_people_talk_and_each_sees_what_has_been_kept(people: People) -> None:
    ann, bob = two(people)
    ann.say("Good morning 👋")
    bob.sees("Good morning 👋")
    ann.kept("Good morning 👋")
    bob.say("Morning! Is the build green?")
    ann.sees("Morning! Is the build green?")
    expect(ann.page.locator("#subtitle")).to_have_text("2 people here")
    for person in (ann, bob):
        expect(person.page.locator(".message")).to_have_count(2)


def test_typing_is_shown_and_ends_with_the_message(people: People) -> None:
    ann, bob = two(people, "typing")
    bob.say("first")
    ann.sees("first")
    bob.field.press_sequentially("I thi")
    expect(ann.page.locator("#typing")).to_have_text("bob is typing")
    expect(bob.page.locator("#typing")).to_be_hidden()
    bob.say("I think so")
    ann.sees("I think so")
    expect(ann.page.locator("#typing")).to_be_hidden()
    expect(ann.page.locator(".message")).to_have_count(2)


def test_a_direct_message_reaches_who_never_opened_the_conversation(people: People) -> None:
    ann, bob = two(people, "direct")
    ann.page.locator("#members").get_by_role("button", name="bob").click()
    expect(ann.page.locator("#title")).to_have_text("bob")
    ann.say("Between us: lunch at noon?")
    expect(bob.unread("ann")).to_contain_text("1")
    assert bob.page.title().startswith("(1)")
    bob.conversation("ann").click()
    bob.sees("Between us: lunch at noon?")
    expect(bob.unread("ann")).to_have_count(0)
    bob.say("At noon.")
    ann.sees("At noon.")
    expect(ann.page.locator("#subtitle")).to_have_text("online")


def test_what_was_not_seen_is_counted_and_marked(people: People) -> None:
    ann, bob = two(people, "unread")
    ann.say("seen")
    bob.sees("seen")
    bob.join("elsewhere")
    for number in range(3):
        ann.say(f"unseen {number}")
    expect(bob.unread("unread")).to_contain_text("3")
    bob.conversation("unread").click()
    expect(bob.page.locator(".divider + .message")).to_contain_text("unseen 0")
    expect(bob.unread("unread")).to_have_count(0)


def test_what_was_read_in_one_window_is_read_in_the_next(people: People) -> None:
    ann, bob = two(people, "marks")
    ann.say("once")
    bob.sees("once")
    bob.page.wait_for_timeout(300)
    again = people.person("bob", address="#room:other")
    again.join("marks")
    again.sees("once")
    expect(again.page.locator(".divider")).to_have_count(0)


def test_history_is_loaded_on_the_way_up_and_the_place_is_kept(
    people: People, served: Serving
) -> None:
    peer = Peer(served.address)
    peer.login("eve")
    for number in range(1, 131):
        body = b'{"text": "line %d"}' % number
        peer.publish("room:long", "eve", body, codec=1, id=number, flags=DURABLE)
        peer.expect(FrameType.RECEIPT)
    ann = people.person("ann", address="#room:long")
    ann.sees("line 130")
    expect(ann.message("line 1")).to_have_count(0)
    scroller = ann.page.locator("#scroller")
    while not ann.message("line 1").count():
        before = ann.page.locator(".message").count()
        first = ann.page.locator(".message").first
        text = first.locator(".text").inner_text()
        scroller.evaluate("(node) => (node.scrollTop = 100)")
        ann.page.wait_for_function(
            "(count) => document.querySelectorAll('.message').length > count", arg=before
        )
        expect(ann.message(text)).to_be_in_viewport()
    expect(ann.page.locator("#start")).to_have_text("This is where the conversation begins.")
    assert ann.page.locator(".message .text").all_inner_texts() == [
        f"line {number}" for number in range(1, 131)
    ]
    ann.page.get_by_role("button", name="Latest").click()
    expect(ann.message("line 130")).to_be_in_viewport()
    peer.close()


def test_what_people_write_is_text_and_only_its_links_are_links(people: People) -> None:
    ann, bob = two(people, "text")
    ann.say('<img src=x onerror="document.title=1"> see (https://example.org/a?b=1). <b>ok</b>')
    shown = bob.page.locator(".message .text")
    expect(shown).to_have_text(
        '<img src=x onerror="document.title=1"> see (https://example.org/a?b=1). <b>ok</b>'
    )
    expect(shown.locator("*")).to_have_count(1)
    link = shown.get_by_role("link")
    expect(link).to_have_attribute("href", "https://example.org/a?b=1")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    ann.say("javascript:alert(1)")
    expect(bob.page.locator(".message .text").last).to_have_text("javascript:alert(1)")
    expect(bob.page.locator(".message a")).to_have_count(1)


def test_a_refused_message_says_why_and_stays_to_be_sent_again(
    browser: Browser, serve: Start
) -> None:
    people = People(browser, serve(LIMITS__MAX_FRAME_BYTES="4096").url)
    ann = people.person("ann", address="#room:small")
    ann.say("x" * 5_000)
    failure = ann.page.locator(".failure")
    expect(failure).to_contain_text("(413)")
    failure.get_by_role("button", name="Try again").click()
    expect(failure).to_contain_text("(413)")
    failure.get_by_role("button", name="Discard").click()
    expect(ann.page.locator(".message")).to_have_count(0)
    ann.say("short")
    ann.kept("short")
    people.leave()


def test_a_conversation_that_is_not_mine_says_so(people: People) -> None:
    ann = people.person("ann", address="#dm:bob:eve")
    expect(ann.page.locator("#refusal")).to_contain_text("(403)")
    expect(ann.page.locator("#composer")).to_be_hidden()


def api(served: Serving, path: str, body: dict[str, object]) -> None:
    """As the back end of an application does."""
    request = urllib.request.Request(
        f"{served.url}/v1/{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


def test_a_group_appears_for_those_who_are_put_into_it(people: People, served: Serving) -> None:
    ann, bob = (people.person(name, address="#room:alone") for name in ("gita", "hugo"))
    api(served, "topics/group:team/members", {"join": ["gita", "hugo"]})
    for person in (ann, bob):
        person.conversation("team").click()
        expect(person.page.locator("#subtitle")).to_have_text("2 people here")
    ann.say("now we are a team")
    bob.sees("now we are a team")
    api(served, "topics/group:team/members", {"leave": ["hugo"]})
    expect(bob.page.locator("#refusal")).to_contain_text("(403)")
    expect(bob.page.locator("#composer")).to_be_hidden()


def test_what_a_program_writes_to_somebody_is_in_the_inbox(people: People, served: Serving) -> None:
    ann = people.person("ida", address="#room:alone")
    expect(ann.conversation("Inbox")).to_have_count(0)
    api(served, "publish", {"topic": "user:ida", "body": {"text": "Your report is ready."}})
    expect(ann.unread("Inbox")).to_contain_text("1")
    ann.conversation("Inbox").click()
    ann.sees("Your report is ready.")
    expect(ann.page.locator("#composer")).to_be_hidden()


def test_who_signs_out_leaves_nothing_behind(people: People) -> None:
    ann = people.person("jane", address="#room:secrets")
    ann.field.fill("a draft")
    ann.page.get_by_role("button", name="Sign out").click()
    expect(ann.page.get_by_label("Pick a name")).to_be_visible()
    assert ann.page.evaluate("() => sessionStorage.getItem('imserver.login')") is None
    ann.page.get_by_label("Pick a name").fill("kim")
    ann.page.keyboard.press("Enter")
    ann.connected()
    expect(ann.page.locator("#me-name")).to_have_text("kim")
    expect(ann.page.locator("#title")).to_have_text("lobby")
    expect(ann.field).to_have_value("")


def test_two_windows_of_one_browser_are_two_people(people: People) -> None:
    context = people.context()
    ann = people.person("ann", context=context, address="#room:windows")
    bob = people.person("bob", context=context, address="#room:windows")
    ann.say("from the first window")
    bob.sees("from the first window")
    expect(ann.page.locator("#me-state")).to_have_text("Connected")


def test_a_reload_is_the_same_person_in_the_same_place(people: People) -> None:
    ann = people.person("ann", address="#room:lobby")
    ann.join("reload")
    ann.say("still here")
    ann.kept("still here")
    ann.page.reload()
    ann.connected()
    expect(ann.page.locator("#title")).to_have_text("reload")
    ann.sees("still here")
    ann.page.get_by_role("button", name="Leave").click()
    expect(ann.conversation("reload")).to_have_count(0)


def test_a_second_window_with_the_same_login_takes_over(people: People) -> None:
    context = people.context()
    ann = people.person("ann", context=context, address="#room:takeover")
    kept = ann.page.evaluate("() => ({ ...sessionStorage })")
    second = context.new_page()
    second.goto(f"{ann.url}/client.json")  # of the same origin, before the page starts
    second.evaluate("(kept) => Object.assign(sessionStorage, kept)", kept)
    second.goto(f"{ann.url}/chat#room:takeover")
    expect(ann.page.locator("#banner")).to_contain_text("You went on in another window.")
    ann.page.get_by_role("button", name="Use this window").click()
    ann.connected()


def test_on_a_phone_the_people_cover_the_conversation_until_one_is_picked(
    people: People,
) -> None:
    ann, bob = (people.person(name, phone=True, address="#room:pick") for name in ("ann", "lea"))
    bob.say("here I am")
    ann.sees("here I am")
    toggle = ann.page.get_by_role("button", name="People", exact=True)
    toggle.click()
    ann.page.keyboard.press("Escape")
    expect(ann.page.locator("#people")).to_be_hidden()
    expect(toggle).to_be_focused()
    toggle.click()
    ann.page.locator("#members").get_by_role("button", name="lea").click()
    expect(ann.page.locator("#title")).to_have_text("lea")
    ann.page.go_back()
    expect(ann.page.locator("#title")).to_have_text("pick")
    expect(ann.page.locator("#people")).to_be_hidden()


def test_on_a_phone_one_thing_is_shown_at_a_time(people: People) -> None:
    ann = people.person("ann", phone=True)
    expect(ann.page.locator("#title")).to_have_text("lobby")
    expect(ann.page.locator(".sidebar")).to_be_hidden()
    ann.say("from a phone")
    ann.kept("from a phone")
    ann.page.get_by_label("Back to all conversations").click()
    expect(ann.page.locator(".sidebar")).to_be_visible()
    expect(ann.page.locator("#conversation")).to_be_hidden()
    ann.conversation("lobby").click()
    ann.sees("from a phone")
    ann.page.keyboard.press("Escape")
    expect(ann.page.locator(".sidebar")).to_be_visible()
    overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not ann.page.evaluate(overflow)
