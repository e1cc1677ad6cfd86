"""Whatever a model or a person writes is text on the page: it runs nothing, fetches nothing, covers nothing."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_chat import ask, finished
from tests.support.fake_api import Behaviour

ATTACKS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg onload='window.hit = 1'><script>window.hit = 1</script></svg>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<style>body { display: none }</style>",
    "<form action='http://example.org'><input name=key><button>Send</button></form>",
    "<details open ontoggle='window.hit = 1'>x</details>",
    "<a href='javascript:window.hit = 1'>click</a>",
    "[click](javascript:window.hit=1)",
    "[click](JaVaScRiPt&#58;window.hit=1)",
    "[click](data:text/html,<script>parent.hit=1</script>)",
    "[click](vbscript:x)",
    "![x](http://127.0.0.1:9/pixel.png)",
    "![x](javascript:window.hit=1)",
    '[x](http://example.org "onmouseover=window.hit=1")',
    "```html\n<img src=x onerror='window.hit = 1'>\n```",
    "```\"><img src=x onerror='window.hit=1'>\ncode\n```",
    "```x onclick=window.hit=1\ncode\n```",
    "<math><mtext><table><mglyph><style><img src=x onerror='window.hit = 1'>",
    "<noscript><p title='</noscript><img src=x onerror=window.hit=1>'>",
    "| <img src=x onerror='window.hit=1'> |\n|---|\n| <b onclick='window.hit=1'>x</b> |",
    "&lt;script&gt;window.hit = 1&lt;/script&gt;",
    "<p style='position:fixed;inset:0;background:red'>covered</p>",
    "<base href='http://example.org/'>",
    "<meta http-equiv='refresh' content='0;url=http://example.org'>",
    '<a id="composer-text">x</a><a name="localStorage">y</a>',
]


def test_attacks_stay_text(open_page: OpenPage, behaviour: Behaviour) -> None:
    page = open_page()
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    behaviour.answer = lambda messages: messages[-1]["content"]
    for number, attack in enumerate(ATTACKS, 1):
        ask(page, attack)
        finished(page, number)
    for link in page.locator(".message.assistant .body a").all():
        assert link.get_attribute("href").startswith(("http://", "https://"))
        assert link.get_attribute("target") == "_blank"
        assert "noopener" in (link.get_attribute("rel") or "")
    tags = page.evaluate("[...new Set([...messages.querySelectorAll('.body *')].map((e) => e.localName))].sort()")
    assert not {"script", "img", "svg", "iframe", "style", "form", "input", "base", "meta", "math"} & set(tags)
    attributes = page.evaluate(
        "[...new Set([...messages.querySelectorAll('.body *')].flatMap((e) => e.getAttributeNames()))].sort()"
    )
    assert set(attributes) <= {"class", "href", "rel", "target", "tabindex", "type", "data-copies", "start"}
    page.reload()
    expect(page.locator(".message")).to_have_count(2 * len(ATTACKS))
    assert page.evaluate("window.hit") is None
    expect(page.locator("#composer-text")).to_be_visible()
    assert all(url.startswith(page.url.partition("#")[0]) for url in fetched)


def test_what_was_attacked_is_shown_as_it_was_written(page: Page, behaviour: Behaviour) -> None:
    behaviour.answer = lambda messages: messages[-1]["content"]
    text = "<img src=x onerror='window.hit = 1'> & <b>bold</b>"
    ask(page, text)
    finished(page)
    expect(page.locator(".message.user .body")).to_have_text(text)
    expect(page.locator(".message.assistant .body")).to_have_text(text)
    expect(page.locator("#conversations .open")).to_have_text([text])
    expect(page.locator("#chat-title")).to_have_text(text)


def test_names_in_storage_and_in_the_state_of_the_cluster_are_text(page: Page, behaviour: Behaviour) -> None:
    evil = "<img src=x onerror='window.hit=1'>"
    behaviour.cluster = {
        "model": evil,
        "state": evil,
        "message": evil,
        "slots": {"total": 1, "busy": 0},
        "nodes": [{"rank": 0, "name": evil, "host": evil, "device": evil, "share": 1, "state": evil}],
    }
    page.evaluate(
        "(evil) => localStorage.setItem('dllama.conversation.q',"
        " JSON.stringify({id: 'q', title: evil, messages: [{role: 'user', content: evil}]}))",
        evil,
    )
    page.evaluate("location.hash = 'cluster'")
    page.reload()
    expect(page.locator(".node h2")).to_have_text(evil)
    expect(page.locator("#cluster-message")).to_have_text(evil)
    expect(page.locator("#conversations .open")).to_have_text([evil])
    assert page.evaluate("window.hit") is None


@pytest.mark.parametrize(
    "script",
    [
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hit = 1'}))",
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\">')",
        "setTimeout('window.hit = 1', 0)",
    ],
)
def test_the_security_policy_would_stop_what_got_through(browser, api, script: str) -> None:  # type: ignore[no-untyped-def]
    page = browser.new_page()
    page.goto(api.url)
    page.evaluate(f"try {{ {script} }} catch {{}}")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    page.close()
