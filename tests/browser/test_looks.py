"""Colours, small screens, and the picture of the cluster."""

from __future__ import annotations

import copy

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_chat import ask, finished
from tests.support.fake_api import Behaviour, example_cluster

PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
CONTRAST = """(selectors) => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const f = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const texts = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.innerText);
  const contrast = (e) => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  return selectors.flatMap((selector) => texts(selector).map((e) => [selector, contrast(e)]));
}"""


def ground(page: Page, theme: str) -> int:
    """How light the page is, 0 to 765, once its theme is this one."""
    expect(page.locator("html")).to_have_attribute("data-theme", theme)
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in color.removeprefix("rgb(").rstrip(")").split(","))


def test_the_theme_follows_the_system_until_one_is_chosen(open_page: OpenPage) -> None:
    page = open_page(color_scheme="dark")
    assert ground(page, "dark") < 150
    page.emulate_media(color_scheme="light")
    assert ground(page, "light") > 600
    button = page.locator("#theme")
    expect(button).to_have_text("Theme: system")
    button.click()
    button.click()
    expect(button).to_have_text("Theme: dark")
    assert ground(page, "dark") < 150
    page.reload()
    assert ground(page, "dark") < 150
    expect(button).to_have_text("Theme: dark")
    button.click()
    expect(button).to_have_text("Theme: system")
    assert ground(page, "light") > 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(open_page: OpenPage, behaviour: Behaviour, scheme: str) -> None:
    behaviour.answer = lambda messages: "[link](https://example.org) `x`\n\n> quote\n\n```python\ndef f(): # x\n```"
    behaviour.cluster = example_cluster()
    page = open_page(color_scheme=scheme)
    ask(page, "Hello")
    finished(page)
    seen = [".body", ".body a", ".body blockquote", ".note", ".hint", "#model-name", "#conversations .open"]
    contrasts = page.evaluate(CONTRAST, [*seen, ".code-bar", "[class^=hljs]"])
    page.click("#to-cluster")
    expect(page.locator(".node")).to_have_count(4)
    contrasts += page.evaluate(CONTRAST, [".figure span", ".node p", ".pair span", ".pill", ".legend"])
    assert len(contrasts) > 40
    assert [entry for entry in contrasts if entry[1] < 4.5] == []


def test_a_phone_shows_all_without_scrolling_sideways(open_page: OpenPage, behaviour: Behaviour) -> None:
    table = "| " + " | ".join(f"column {i}" for i in range(12)) + " |\n" + "|---" * 12 + "|\n" + "| x " * 12 + "|"
    behaviour.answer = lambda messages: f"{'word' * 100}\n\n```\n{'code ' * 50}\n```\n\n{table}"
    behaviour.cluster = example_cluster()
    page = open_page(**PHONE)
    fits = "document.documentElement.scrollWidth <= innerWidth && scroller.scrollWidth <= scroller.clientWidth"
    expect(page.locator("#sidebar")).to_be_hidden()
    page.fill("#composer-text", "Hello")
    page.press("#composer-text", "Enter")  # on a phone this is a new line
    page.tap("#send")
    finished(page)
    assert page.evaluate(fits)
    assert behaviour.requests[0]["messages"][0]["content"] == "Hello"
    page.tap("#chat .open-sidebar")
    expect(page.locator("#conversations .open")).to_be_visible()
    page.tap("#veil", position={"x": 370, "y": 400})
    expect(page.locator("#sidebar")).to_be_hidden()
    page.tap("#chat .open-sidebar")
    page.tap("#to-cluster")
    expect(page.locator(".node")).to_have_count(4)
    expect(page.locator("#sidebar")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in page.locator("#picture .name").all():
        place = name.bounding_box()
        assert place is not None
        assert place["height"] >= 12  # large enough to be read
        assert 0 <= place["x"] <= place["x"] + place["width"] <= 390
    page.tap("#cluster .open-sidebar")
    page.tap("#new-chat")
    page.tap("#open-settings")
    box = page.locator("#settings").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    expect(page.get_by_role("button", name="Save", exact=True)).to_be_in_viewport()


def test_the_cluster_page_shows_every_node_and_marks_the_slowest(page: Page, behaviour: Behaviour) -> None:
    behaviour.cluster = example_cluster()
    page.click("#to-cluster")
    expect(page.locator("#cluster-state")).to_have_text("ready")
    cards = page.locator(".node")
    expect(cards).to_have_count(4)
    for number, (name, share) in enumerate([("this machine", "46.0 %"), ("10.0.0.2:9999", "28.0 %")]):
        expect(cards.nth(number)).to_contain_text(name)
        expect(cards.nth(number)).to_contain_text(share)
    expect(cards.nth(0)).to_contain_text("desktop · cpu (avx512, 16 threads)")
    expect(cards.nth(0)).to_contain_text("2.3 GiB of 32.0 GiB")
    expect(cards.nth(0)).to_contain_text("computes 9.10, exchanges 2.10, waits 5.30 ms")
    expect(cards.nth(0)).to_contain_text("sends 402 KiB, receives 625 KiB")
    expect(page.locator(".pill.slow")).to_have_count(1)
    expect(page.locator(".node.is-slowest h2")).to_have_text("10.0.0.3:9999")
    expect(page.locator("#picture .slowest .name")).to_have_text("10.0.0.3:9999")
    expect(page.locator("#picture .link")).to_have_count(6)
    figures = page.locator("#figures")
    for text in ("31.4", "412", "2 of 8", "of 64 at most", "1284", "2 h 1 min", "Llama-3.2-8B-Instruct-Q4_0", "8192"):
        expect(figures).to_contain_text(text)
    assert page.locator("#picture").get_attribute("aria-label").startswith("Nodes of the cluster. this machine: 46")


def test_the_cluster_page_follows_what_happens(page: Page, behaviour: Behaviour) -> None:
    behaviour.cluster = example_cluster()
    page.click("#to-cluster")
    expect(page.locator("#cluster-state")).to_have_text("ready")
    changed = copy.deepcopy(behaviour.cluster)
    changed["state"], changed["message"] = "recovering", "worker 10.0.0.3:9999 left during token 57"
    changed["nodes"][2]["state"] = "lost"
    changed["tokens_per_second"]["decode"] = 0.0
    behaviour.cluster = changed
    expect(page.locator("#cluster-state")).to_have_text("being rebuilt")
    expect(page.locator("#cluster-message")).to_have_text("worker 10.0.0.3:9999 left during token 57")
    expect(page.locator(".pill.lost")).to_have_count(1)
    expect(page.locator(".node.is-slowest h2")).to_have_text("this machine")
    behaviour.cluster = example_cluster()
    expect(page.locator("#cluster-state")).to_have_text("ready")
    expect(page.locator("#cluster-message")).to_be_hidden()
    page.context.set_offline(True)
    expect(page.locator("#cluster-state")).to_have_text("not reachable")
    page.context.set_offline(False)
    expect(page.locator("#cluster-state")).to_have_text("ready")


def test_one_machine_that_has_measured_nothing_has_no_slowest_node(page: Page, behaviour: Behaviour) -> None:
    state = example_cluster(1)
    for name in (
        "compute_ms",
        "waiting_ms",
        "network_ms",
        "sent_bytes_per_token",
        "received_bytes_per_token",
        "memory_bytes",
    ):
        state["nodes"][0][name] = None
    behaviour.cluster = state
    page.click("#to-cluster")
    expect(page.locator(".node")).to_have_count(1)
    expect(page.locator(".pill.slow")).to_have_count(0)
    expect(page.locator(".node")).not_to_contain_text("A token takes")
    expect(page.locator("#picture circle.disc")).to_have_count(1)
    expect(page.locator("#picture .link")).to_have_count(0)


def test_the_cluster_is_asked_only_while_it_is_shown(page: Page, behaviour: Behaviour) -> None:
    behaviour.cluster = example_cluster()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/api/cluster" in request.url else None)
    page.wait_for_timeout(300)
    assert asked == []
    page.click("#to-cluster")
    expect(page.locator(".node")).to_have_count(4)
    page.click("#new-chat")
    expect(page.locator("#chat")).to_be_visible()
    n_asked = len(asked)
    page.wait_for_timeout(1500)
    assert len(asked) == n_asked
