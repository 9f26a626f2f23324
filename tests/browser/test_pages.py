"""The files of the pages: small, of one kind, and with nothing in them that a policy must forbid."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from people import People
from playwright.sync_api import expect

STATIC = Path(__file__).parent.parent.parent / "imserver/static"
OURS = [
    path
    for kind in ("js", "css", "html")
    for path in sorted(STATIC.rglob(f"*.{kind}"))
    if "vendor" not in path.parts and not path.is_symlink()
]
SCRIPTS = [path for path in OURS if path.suffix == ".js"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(STATIC)))
def test_a_file_of_the_pages_is_small_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    assert text.startswith(("/*", "<!doctype html>"))
    assert "\t" not in text


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(STATIC)))
def test_no_script_makes_markup_or_code_of_text(path: Path) -> None:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in text, forbidden


@pytest.mark.parametrize("path", sorted(STATIC.glob("*.html")), ids=lambda path: path.name)
def test_a_page_brings_no_code_or_style_of_its_own_and_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|javascript:", text)
    assert not re.search(r"(src|href)=\"(https?:)?//", text)
    for name in re.findall(r'(?:src|href)="(static/[^"#]+)', text):
        assert (STATIC.parent / name).is_file(), name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(STATIC)))
def test_a_script_imports_files_that_exist(path: Path) -> None:
    for name in re.findall(r'from "([^"]+)"', path.read_text()):
        assert (path.parent / name).is_file(), name


def test_what_others_wrote_is_as_they_published_it() -> None:
    vendor = STATIC / "vendor"
    told = json.loads((vendor / "VENDOR.json").read_text())
    files = {path.name: path.read_bytes() for path in vendor.iterdir() if path.suffix != ".json"}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == told[
        "sha256"
    ]
    assert b"MIT" in files["LICENSE"]
    assert told["version"].encode() in files["uPlot.iife.min.js"][:400]


@pytest.mark.parametrize("path", ["/", "/chat"])
def test_a_page_is_served_under_a_policy_that_forbids_everything_else(
    people: People, path: str
) -> None:
    visitor = people.visitor(path)
    answer = visitor.page.reload()
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    expect(visitor.page.locator("body")).to_be_visible()
    visitor.page.evaluate(
        "() => document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.was = 1' }))"
    )
    assert visitor.page.evaluate("() => window.was") is None
    assert any("Content Security Policy" in trouble for trouble in visitor.troubles)
    visitor.troubles.clear()
