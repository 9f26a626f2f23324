"""What people do on the pages, in the words of a test."""

import re
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

SCREENSHOTS = Path(__file__).parent.parent.parent / "build/screenshots"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
WAIT_MS = 20_000  # what takes longer will not come

expect.set_options(timeout=WAIT_MS)


def is_trouble(text: str) -> bool:
    """Whether the browser complains of our page, and not of a server that is away."""
    return not re.search(r"ERR_CONNECTION|WebSocket connection|status of 4|Failed to load", text)


class Visitor:
    """A tab, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.troubles: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: self.troubles.append(str(error.stack or error)))
        page.on("console", self._on_console)

    def _on_console(self, message: object) -> None:
        kind, text = getattr(message, "type", ""), getattr(message, "text", "")
        if kind == "error" and is_trouble(text):
            self.troubles.append(text)

    def picture(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")


class Person(Visitor):
    """Somebody on the chat page."""

    def __init__(self, page: Page, url: str, name: str, address: str = "") -> None:
        super().__init__(page, url)
        self.name = name
        page.goto(f"{url}/chat{address}")
        page.get_by_label("Pick a name").fill(name)
        page.keyboard.press("Enter")
        self.connected()

    def connected(self) -> None:
        expect(self.page.locator("#me-state")).to_have_text("Connected")

    @property
    def field(self) -> Locator:
        return self.page.locator("#text")

    def say(self, text: str) -> None:
        self.field.fill(text)
        self.field.press("Enter")

    def message(self, text: str) -> Locator:
        return self.page.locator(".message", has=self.page.get_by_text(text, exact=True))

    def sees(self, text: str) -> None:
        expect(self.message(text)).to_be_visible()

    def kept(self, text: str) -> None:
        """The server has it on its disk, says the page."""
        expect(self.message(text)).to_have_count(1)
        expect(self.page.locator(".progress.sending")).to_have_count(0)
        expect(self.page.locator(".progress.failed")).to_have_count(0)

    def conversation(self, name: str) -> Locator:
        named = self.page.locator(".name").get_by_text(name, exact=True)
        return self.page.locator("#conversations a", has=named)

    def unread(self, name: str) -> Locator:
        return self.conversation(name).locator(".badge")

    def join(self, room: str) -> None:
        self.page.get_by_role("button", name="Join a room").click()
        self.page.get_by_label("Name of the room").fill(room)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#title")).to_have_text(room)

    def write_to(self, user: str) -> None:
        self.page.get_by_role("button", name="Write to somebody").click()
        self.page.get_by_label("Their name").fill(user)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#title")).to_have_text(user)


class People:
    """Those of one test, each with a browser of their own unless told otherwise."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser, self._url = browser, url
        self._contexts: list[BrowserContext] = []
        self._visitors: list[Visitor] = []

    def context(self, *, phone: bool = False, dark: bool = False) -> BrowserContext:
        made = self._browser.new_context(
            viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]
            color_scheme="dark" if dark else "light",
            device_scale_factor=2 if phone else 1,
            has_touch=phone,
            locale="en-GB",
        )
        self._contexts.append(made)
        return made

    def person(
        self,
        name: str,
        *,
        phone: bool = False,
        dark: bool = False,
        address: str = "",
        context: BrowserContext | None = None,
    ) -> Person:
        page = (context or self.context(phone=phone, dark=dark)).new_page()
        person = Person(page, self._url, name, address)
        self._visitors.append(person)
        return person

    def visitor(self, path: str, *, phone: bool = False, dark: bool = False) -> Visitor:
        visitor = Visitor(self.context(phone=phone, dark=dark).new_page(), self._url)
        self._visitors.append(visitor)
        visitor.page.goto(f"{self._url}{path}")
        return visitor

    def leave(self) -> None:
        for context in self._contexts:
            context.close()
        for visitor in self._visitors:
            assert visitor.troubles == []
