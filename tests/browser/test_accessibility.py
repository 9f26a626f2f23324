"""What somebody needs who has no mouse, hears the pages, or sees little contrast."""

import itertools
import re

import pytest
from people import People, Person, Visitor
from playwright.sync_api import Page, expect

#: Of what is shown and can be used: its name, as assistive technology computes it in short.
CONTROLS = """() => {
  const shown = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest("[inert]");
  const spoken = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data;
    if (node.nodeType !== Node.ELEMENT_NODE || node.getAttribute("aria-hidden") === "true") return "";
    return [...node.childNodes].map(spoken).join(" ");
  };
  const name = (node) => {
    const by = (node.getAttribute("aria-labelledby") ?? "").split(" ").filter(Boolean);
    const texts = [
      node.getAttribute("aria-label") ?? "",
      ...by.map((id) => spoken(document.getElementById(id))),
      ...[...(node.labels ?? [])].map(spoken),
      node.matches("input, textarea, select") ? "" : spoken(node),
    ];
    return texts.join(" ").trim();
  };
  const selector = "a[href], button, input, textarea, select, summary, [tabindex], [role=button]";
  return [...document.querySelectorAll(selector)].filter(shown).map((node, number) => {
    node.dataset.number = number;
    const tab = node.tabIndex >= 0 && !node.disabled;
    return { html: node.outerHTML.slice(0, 160), name: name(node), number: `${number}`, tab };
  });
}"""


def controls(page: Page) -> list[dict[str, object]]:
    found: list[dict[str, object]] = page.evaluate(CONTROLS)
    assert found
    return found


def reached_by_tab(page: Page) -> set[str]:
    """The numbers of what Tab visits, once around."""
    page.evaluate("() => { document.activeElement?.blur(); }")
    seen: dict[str, None] = {}
    for _ in range(80):
        page.keyboard.press("Tab")
        number = page.evaluate("() => document.activeElement.dataset.number ?? ''")
        if number in seen:
            break
        if number:
            seen[number] = None
    return set(seen)


@pytest.fixture
def ann(people: People, request: pytest.FixtureRequest) -> Person:
    """In a room of the test's own, with a message."""
    ann = people.person("ann", address=f"#room:{abs(hash(request.node.name))}")
    ann.say("Hello https://example.org")
    ann.kept("Hello https://example.org")
    return ann


@pytest.fixture(params=["#overview", "#sessions", "#topics", "#letters", "#settings"])
def console(people: People, request: pytest.FixtureRequest) -> Visitor:
    visitor = people.visitor(f"/{request.param}")
    expect(visitor.page.locator("#live")).to_have_text("Live")
    return visitor


def everything_has_a_name_and_is_reached(page: Page) -> None:
    found = controls(page)
    assert [one["html"] for one in found if not one["name"]] == []
    reached = reached_by_tab(page)
    assert [one["html"] for one in found if one["tab"] and one["number"] not in reached] == []


def test_on_the_chat_page_everything_has_a_name_and_is_reached(ann: Person) -> None:
    everything_has_a_name_and_is_reached(ann.page)


def test_on_the_console_everything_has_a_name_and_is_reached(console: Visitor) -> None:
    everything_has_a_name_and_is_reached(console.page)


def test_a_page_has_a_language_a_title_and_one_first_heading(ann: Person, console: Visitor) -> None:
    for page in (ann.page, console.page):
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.title()
        headings = page.locator("h1:visible")
        expect(headings).to_have_count(1)
        assert page.evaluate("() => document.querySelectorAll('[id]').length") == page.evaluate(
            "() => new Set([...document.querySelectorAll('[id]')].map((n) => n.id)).size"
        )


def test_arrow_keys_walk_through_the_conversations(people: People) -> None:
    ann = people.person("ann", address="#room:one")
    ann.join("two")
    ann.page.keyboard.press("Escape")
    focused = ann.page.locator("#conversations a:focus")
    expect(focused).to_contain_text("two")
    ann.page.keyboard.press("ArrowUp")
    expect(focused).to_contain_text("one")
    ann.page.keyboard.press("Enter")
    expect(ann.page.locator("#title")).to_have_text("one")
    expect(ann.field).to_be_focused()
    ann.page.keyboard.press("Escape")
    ann.page.keyboard.press("End")
    expect(focused).to_contain_text("two")


def test_a_dialog_is_left_by_escape_and_gives_the_focus_back(ann: Person) -> None:
    join = ann.page.get_by_role("button", name="Join a room")
    join.focus()
    ann.page.keyboard.press("Enter")
    expect(ann.page.get_by_label("Name of the room")).to_be_focused()
    ann.page.keyboard.press("Escape")
    expect(ann.page.get_by_role("dialog")).to_be_hidden()
    expect(join).to_be_focused()


def test_who_listens_hears_what_others_write_and_how_the_connection_is(people: People) -> None:
    ann = people.person("ann", address="#room:heard")
    bob = people.person("bob", address="#room:heard")
    bob.say("can you hear me?")
    announcer = ann.page.locator("#announcer")
    expect(announcer).to_have_attribute("aria-live", "polite")
    expect(announcer).to_have_text("bob: can you hear me?")
    expect(ann.page.locator("#banner-text")).to_have_attribute("role", "status")
    bob.kept("can you hear me?")
    expect(bob.page.locator(".message .progress")).to_contain_text("kept by the server")


def test_who_wants_no_motion_gets_none(people: People) -> None:
    ann, bob = (people.person(name, address="#room:still") for name in ("ann", "bob"))
    ann.page.emulate_media(reduced_motion="reduce")
    bob.field.press_sequentially("hm")
    dots = ann.page.locator("#typing .dots i").first
    expect(dots).to_be_visible()
    assert dots.evaluate("(node) => getComputedStyle(node).animationName") == "none"


# Contrast

TEXT = 4.5  # WCAG 2.2, AA
SHAPE = 3.0
PAIRS = [
    *itertools.product(["text", "muted", "accent"], ["ground", "surface"], [TEXT]),
    *itertools.product(["good", "warn", "bad"], ["surface", "ground"], [TEXT]),
    ("text", "sunken", TEXT),
    ("muted", "sunken", TEXT),
    ("on-accent", "accent", TEXT),
    ("on-soft", "soft", TEXT),
    ("warn", "warn-soft", TEXT),
    ("bad", "bad-soft", TEXT),
    ("edge", "surface", SHAPE),
    ("edge", "ground", SHAPE),
    *itertools.product(["line-0", "line-1", "line-2"], ["surface"], [SHAPE]),
]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_computed_as_the_guidelines_say() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.01)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_palette_has_enough_contrast(people: People, dark: bool) -> None:
    page = people.visitor("/", dark=dark).page
    style = "(name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`)"
    pale = {}
    for front, back, least in PAIRS:
        colours = [page.evaluate(style, name).strip() for name in (front, back)]
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours), colours
        if contrast(*colours) < least:
            pale[front, back] = round(contrast(*colours), 2)
    assert pale == {}


def test_letters_on_a_persons_colour_have_enough_contrast(people: People) -> None:
    page = people.person("ann").page
    for hue in range(8):
        colour = page.evaluate(
            """(hue) => {
                const node = document.querySelector(".avatar");
                node.dataset.hue = hue;
                return getComputedStyle(node).getPropertyValue("--hue").trim();
            }""",
            hue,
        )
        assert contrast("#ffffff", colour) >= TEXT, colour
