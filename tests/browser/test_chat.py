"""The chat in a real browser, against canned answers."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

from playwright.sync_api import Page, expect

from dllama_gpu.cli.chat.transcript import read_transcript
from tests.browser.conftest import OpenPage
from tests.support.fake_api import Behaviour

expect.set_options(timeout=20_000)


def ask(page: Page, text: str) -> None:
    page.fill("#composer-text", text)
    page.press("#composer-text", "Enter")


def answers(page: Page) -> list[str]:
    return page.locator(".message.assistant > .body").all_inner_texts()


def finished(page: Page, n: int = 1) -> None:
    """Waits until `n` answers are complete."""
    expect(page.locator(".message.assistant:not(.writing) .note:not(:empty)")).to_have_count(n)


def test_a_message_is_answered_and_the_answer_is_seen_while_it_is_written(page: Page, behaviour: Behaviour) -> None:
    behaviour.hold = threading.Event()
    behaviour.answer = lambda messages: "The first half, and then the second half."
    ask(page, "Hello\nthere")
    answer = page.locator(".message.assistant .body")
    expect(answer).to_contain_text("The first half")
    assert "second" not in answer.inner_text()
    assert page.locator(".message.assistant").get_attribute("aria-busy") == "true"
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#send")).to_be_hidden()
    behaviour.hold.set()
    finished(page)
    expect(answer).to_have_text("The first half, and then the second half.")
    expect(page.locator(".note")).to_have_text(re.compile(r"^11\stokens · .*\stokens/s · first after \d"))
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#chat-title")).to_have_text("Hello")
    request = behaviour.requests[0]
    assert request["messages"] == [{"role": "user", "content": "Hello\nthere"}]
    assert request["model"] == "tiny-model"
    assert request["stream"] is True
    assert not {"temperature", "top_p", "max_tokens", "seed", "stop"} & set(request)


def test_a_conversation_grows_and_is_sent_whole(page: Page, behaviour: Behaviour) -> None:
    ask(page, "one")
    finished(page)
    ask(page, "two")
    finished(page, 2)
    assert answers(page) == ["You said: one", "You said: two"]
    assert behaviour.requests[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "You said: one"},
        {"role": "user", "content": "two"},
    ]


def test_finished_blocks_of_an_answer_stay_selected_while_it_goes_on(page: Page, behaviour: Behaviour) -> None:
    behaviour.hold = threading.Event()
    behaviour.answer = lambda messages: "The first paragraph.\n\nThe second one, which is a good deal longer than it."
    ask(page, "Hello")
    expect(page.locator(".message.assistant .body")).to_contain_text("The second")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.assistant .body p'))")
    behaviour.hold.set()
    finished(page)
    assert page.evaluate("getSelection().toString()") == "The first paragraph."
    expect(page.locator(".message.assistant .body p")).to_have_text(
        ["The first paragraph.", "The second one, which is a good deal longer than it."]
    )


def test_stop_leaves_the_answer_as_it_is_and_tells_the_server(page: Page, behaviour: Behaviour) -> None:
    behaviour.hold = threading.Event()
    behaviour.answer = lambda messages: "The first half, and then the second half."
    ask(page, "Hello")
    expect(page.locator(".message.assistant .body")).to_contain_text("The first half")
    page.click("#stop")
    expect(page.locator(".note")).to_have_text("stopped")
    assert behaviour.gone.wait(20)
    assert "second" not in answers(page)[0]
    expect(page.locator("#send")).to_be_visible()
    behaviour.hold = None
    ask(page, "Go on")
    finished(page, 2)
    assert behaviour.requests[1]["messages"][1]["content"].startswith("The first half")


def test_escape_stops_too(page: Page, behaviour: Behaviour) -> None:
    behaviour.hold = threading.Event()
    ask(page, "Hello, this is a longer text")
    expect(page.locator(".message.assistant .body")).to_contain_text("You said")
    page.keyboard.press("Escape")
    expect(page.locator(".note")).to_have_text("stopped")


def test_an_answer_can_be_made_anew(page: Page, behaviour: Behaviour) -> None:
    ask(page, "Hello")
    finished(page)
    behaviour.answer = lambda messages: "Another answer"
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .body")).to_have_text("Another answer")
    assert len(page.locator(".message").all()) == 2
    assert behaviour.requests[1]["messages"] == behaviour.requests[0]["messages"]


def test_a_message_can_be_changed_and_sent_again_and_what_followed_goes(page: Page, behaviour: Behaviour) -> None:
    for number, text in enumerate(("one", "two"), 1):
        ask(page, text)
        finished(page, number)
    first = page.locator(".message.user").first
    first.hover()
    first.get_by_role("button", name="Edit and send again").click()
    field = page.get_by_label("Edit the message")
    expect(field).to_be_focused()
    field.press("Escape")
    expect(first.locator(".body")).to_have_text("one")
    first.get_by_role("button", name="Edit and send again").click()
    page.get_by_label("Edit the message").fill("three")
    page.get_by_label("Edit the message").press("Enter")
    expect(page.locator(".message.assistant .body")).to_have_text("You said: three")
    expect(page.locator(".message")).to_have_count(2)
    assert behaviour.requests[-1]["messages"] == [{"role": "user", "content": "three"}]


def test_an_answer_and_its_code_can_be_copied(open_page: OpenPage, behaviour: Behaviour) -> None:
    text = "Look:\n\n```python\nprint('<b>')\n```\n"
    behaviour.answer = lambda messages: text
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    ask(page, "Hello")
    finished(page)
    page.locator(".message.assistant").get_by_role("button", name="Copy", exact=True).last.click()
    expect(page.locator("#status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == text
    page.click(".copy-code")
    expect(page.locator(".copy-code")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "print('<b>')\n"


def test_copying_works_where_a_plain_connection_gives_no_clipboard(page: Page) -> None:
    ask(page, "Hello")
    finished(page)
    page.evaluate("void Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.locator(".message.assistant [data-action=copy]").click()
    expect(page.locator("#status")).to_have_text("Copied.")
    page.focus("#composer-text")
    page.keyboard.press("Control+V")
    expect(page.locator("#composer-text")).to_have_value("You said: Hello")


def test_conversations_survive_a_reload_and_can_be_left_and_deleted(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, "first conversation")
    finished(page)
    page.click("#new-chat")
    expect(page.locator("#welcome")).to_be_visible()
    ask(page, "second conversation")
    finished(page)
    page.reload()
    expect(page.locator(".message.user .body")).to_have_text("second conversation")
    names = page.locator("#conversations .open")
    expect(names).to_have_text(["second conversation", "first conversation"])
    names.nth(1).click()
    expect(page.locator(".message.user .body")).to_have_text("first conversation")
    expect(page.locator("#conversations .current")).to_have_text("first conversation")
    page.go_back()
    expect(page.locator(".message.user .body")).to_have_text("second conversation")
    page.get_by_role("button", name="Delete “second conversation”").click()
    page.get_by_role("button", name="Cancel").last.click()
    expect(names).to_have_count(2)
    page.get_by_role("button", name="Delete “second conversation”").click()
    page.get_by_role("button", name="Delete", exact=True).last.click()
    expect(names).to_have_text(["first conversation"])
    expect(page.locator("#welcome")).to_be_visible()
    page.reload()
    expect(names).to_have_text(["first conversation"])


def test_a_conversation_can_be_renamed(page: Page) -> None:
    expect(page.locator("#rename")).to_be_hidden()
    ask(page, "Hello")
    finished(page)
    for key, name in (("Escape", "Hello"), ("Enter", "<b>Physics</b>")):
        page.click("#rename")
        page.fill("#rename-input", "<b>Physics</b>")
        page.press("#rename-input", key)
        expect(page.locator("#chat-title")).to_have_text(name)
        expect(page.locator("#conversations .open")).to_have_text([name])
    page.reload()
    expect(page.locator("#chat-title")).to_have_text("<b>Physics</b>")


def test_a_conversation_deleted_while_it_is_answered_stays_deleted(page: Page, behaviour: Behaviour) -> None:
    behaviour.hold = threading.Event()
    ask(page, "Hello, this is a longer text")
    expect(page.locator(".message.assistant .body")).to_contain_text("You said")
    page.get_by_role("button", name="Delete “Hello, this is a longer text”").click()
    page.get_by_role("button", name="Delete", exact=True).last.click()
    expect(page.locator("#welcome")).to_be_visible()
    assert behaviour.gone.wait(20)
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#conversations .open")).to_have_count(0)


def test_what_was_written_before_a_reload_is_kept(page: Page, behaviour: Behaviour) -> None:
    behaviour.hold = threading.Event()
    behaviour.answer = lambda messages: "The first half, and then the second half."
    ask(page, "Hello")
    expect(page.locator(".message.assistant .body")).to_contain_text("The first half")
    page.fill("#composer-text", "a draft")
    page.reload()
    expect(page.locator(".message.assistant .body")).to_contain_text("The first half")
    expect(page.locator("#composer-text")).to_have_value("a draft")


def test_another_tab_shows_the_same_conversations(open_page: OpenPage) -> None:
    page = open_page()
    other = open_page(context=page.context)
    ask(page, "from the first tab")
    finished(page)
    expect(other.locator("#conversations .open")).to_have_text(["from the first tab"])


def test_parameters_are_sent_and_kept(page: Page, behaviour: Behaviour) -> None:
    page.click("#open-settings")
    for name, value in {
        "system": "Be brief.",
        "temperature": "0.25",
        "top_p": "0.5",
        "max_tokens": "64",
        "seed": "7",
        "stop": "END\n\nSTOP",
    }.items():
        page.fill(f'#settings [name="{name}"]', value)
    page.press('#settings [name="seed"]', "Enter")
    expect(page.locator("#settings")).to_be_hidden()
    page.reload()
    ask(page, "Hello")
    finished(page)
    request = behaviour.requests[0]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    chosen = {name: request.get(name) for name in ("temperature", "top_p", "max_tokens", "seed", "stop", "top_k")}
    assert chosen == {
        "temperature": 0.25,
        "top_p": 0.5,
        "max_tokens": 64,
        "seed": 7,
        "stop": ["END", "STOP"],
        "top_k": None,
    }
    page.click("#open-settings")
    expect(page.locator('#settings [name="stop"]')).to_have_value("END\nSTOP")
    page.fill('#settings [name="temperature"]', "3")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#settings")).to_be_visible()  # out of range: the browser says so
    page.keyboard.press("Escape")
    page.click("#open-settings")
    expect(page.locator('#settings [name="temperature"]')).to_have_value("0.25")
    page.get_by_role("button", name="Clear all").click()
    page.get_by_role("button", name="Save", exact=True).click()
    ask(page, "Again")
    finished(page, 2)
    assert "temperature" not in behaviour.requests[1]
    assert behaviour.requests[1]["messages"][0]["role"] == "user"


def test_a_server_with_a_key_asks_for_it_and_the_browser_keeps_it(page: Page, behaviour: Behaviour) -> None:
    behaviour.key = "secret"
    page.reload()
    dialog = page.locator("#key-dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#key-problem")).to_have_text("the API key is wrong or missing")
    dialog.get_by_role("button", name="Cancel").click()
    ask(page, "Hello")
    for key in ("wrong", "secret"):  # the first is refused, and the page asks again
        expect(dialog).to_be_visible()
        expect(page.locator("#key-input")).to_have_value("")
        page.fill("#key-input", key)
        page.press("#key-input", "Enter")
    finished(page)
    assert answers(page) == ["You said: Hello"]
    expect(page.locator("#model-name")).to_have_text("tiny-model")
    page.reload()
    ask(page, "Again")
    finished(page, 2)
    expect(dialog).to_be_hidden()


def test_a_busy_server_is_told_and_can_be_tried_again(page: Page, behaviour: Behaviour) -> None:
    behaviour.error = (429, "all 4 slots are busy and 64 requests wait", {"Retry-After": "3"})
    ask(page, "Hello")
    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("all 4 slots are busy and 64 requests wait (in about 3 s)")
    behaviour.error = None
    failure.get_by_role("button", name="Try again").click()
    finished(page)
    expect(failure).to_have_count(0)
    assert answers(page) == ["You said: Hello"]


def test_a_question_without_an_answer_is_left_out_of_the_next_request(page: Page, behaviour: Behaviour) -> None:
    behaviour.error = (503, "the model cannot run at the moment", {})
    ask(page, "first")
    expect(page.get_by_role("alert")).to_contain_text("the model cannot run at the moment")
    behaviour.error = None
    ask(page, "second")
    finished(page)
    assert behaviour.requests[1]["messages"] == [{"role": "user", "content": "second"}]


def test_a_conversation_longer_than_the_context_goes_on_without_its_oldest_messages(
    page: Page, behaviour: Behaviour
) -> None:
    for number in range(1, 6):
        ask(page, f"question {number}")
        finished(page, number)
    behaviour.context = 100  # a question and its answer have 30
    ask(page, "question 6")
    finished(page, 6)
    note = page.locator(".note").last
    expect(note).to_contain_text("the oldest messages no longer fit the context and are left out")
    sent = [message["content"] for message in behaviour.requests[-1]["messages"]]
    assert sent == ["question 4", "You said: question 4", "question 5", "You said: question 5", "question 6"]
    page.reload()
    ask(page, "q7")
    finished(page, 7)
    assert behaviour.requests[-1]["messages"][0]["content"] == "question 4"
    expect(page.locator(".message")).to_have_count(14)
    ask(page, "x" * 101)
    expect(page.get_by_role("alert")).to_contain_text("the prompt has 101 tokens, but the context holds 100")


def test_a_failure_inside_an_answer_keeps_what_was_written(page: Page, behaviour: Behaviour) -> None:
    behaviour.error_inside = "worker 10.0.0.3:9999 left"
    ask(page, "Hello, this is a longer text")
    expect(page.get_by_role("alert")).to_contain_text("worker 10.0.0.3:9999 left")
    expect(page.locator(".message.assistant .body")).to_contain_text("You said")
    behaviour.error_inside = None
    behaviour.ends_early = True
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("The connection ended before the answer did.")


def test_a_server_that_is_gone_is_told(page: Page, behaviour: Behaviour) -> None:
    expect(page.locator("#model-name")).to_have_text("tiny-model")
    page.context.set_offline(True)
    ask(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    finished(page)


def test_a_conversation_is_saved_as_a_file_that_the_terminal_chat_reads(page: Page, tmp_path: Path) -> None:
    ask(page, "What is gravity?")
    finished(page)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "What-is-gravity-.json"
    download.value.save_as(tmp_path / "chat.json")
    conversation = read_transcript(tmp_path / "chat.json")
    assert [(turn.question, turn.answer) for turn in conversation.turns] == [
        ("What is gravity?", "You said: What is gravity?")
    ]


def test_thoughts_of_a_reasoning_model_are_folded_and_not_sent_again(page: Page, behaviour: Behaviour) -> None:
    behaviour.answer = lambda messages: "<think>\nLet me see.\n</think>\n\nIt is **4**."
    ask(page, "2+2?")
    finished(page)
    expect(page.locator(".message.assistant > .body")).to_have_text("It is 4.")
    expect(page.get_by_text("Let me see.")).to_be_hidden()
    page.get_by_text("Thoughts").click()
    expect(page.get_by_text("Let me see.")).to_be_visible()
    ask(page, "Sure?")
    finished(page, 2)
    assert behaviour.requests[1]["messages"][1] == {"role": "assistant", "content": "It is **4**."}


def test_thoughts_that_come_apart_are_folded_kept_and_not_sent_again(page: Page, behaviour: Behaviour) -> None:
    behaviour.thought = "Two and two, **let me see**. " * 9
    behaviour.answer = lambda messages: "It is 4."
    behaviour.hold = threading.Event()
    ask(page, "2+2?")
    expect(page.locator(".thought summary")).to_have_text("Thinking…")
    behaviour.hold.set()
    finished(page)
    expect(page.locator(".thought summary")).to_have_text("Thoughts")
    expect(page.locator(".message.assistant > .body")).to_have_text("It is 4.")
    page.reload()
    expect(page.get_by_text("let me see").first).to_be_hidden()
    page.get_by_text("Thoughts").click()
    expect(page.get_by_text("let me see").first).to_be_visible()
    ask(page, "Sure?")
    finished(page, 2)
    assert behaviour.requests[1]["messages"][1] == {"role": "assistant", "content": "It is 4."}


def test_a_model_that_can_is_told_whether_to_think(page: Page, behaviour: Behaviour) -> None:
    for n_asked, (chosen, sent) in enumerate((("off", False), ("on", True), ("default", None)), start=1):
        page.click("#open-settings")
        page.get_by_label("Thinking before an answer").select_option(chosen)
        page.get_by_role("button", name="Save", exact=True).click()
        ask(page, chosen)
        finished(page, n_asked)
        expected = None if sent is None else {"enable_thinking": sent}
        assert behaviour.requests[-1].get("chat_template_kwargs") == expected


def test_damaged_storage_costs_no_more_than_what_is_damaged(open_page: OpenPage) -> None:
    page = open_page()
    ask(page, "a good one")
    finished(page)
    page.evaluate(
        """() => {
          localStorage.setItem("dllama.conversation.x", "{");
          localStorage.setItem("dllama.conversation.y", '{"id": 3}');
          const odd = {id: "z", title: {}, messages: [3, {role: "user", content: []}, {role: "user", content: "kept"}]};
          localStorage.setItem("dllama.conversation.z", JSON.stringify(odd));
          localStorage.setItem("dllama.settings", '{"stop": 3, "temperature": "hot"}');
        }"""
    )
    page.reload()
    expect(page.locator("#conversations .open")).to_have_text(["a good one", "Untitled"])
    ask(page, "more")
    finished(page, 2)


def test_full_storage_is_told(page: Page) -> None:
    page.evaluate("void (Storage.prototype.setItem = () => { throw new DOMException('x', 'QuotaExceededError'); })")
    ask(page, "Hello")
    finished(page)
    expect(page.locator("#hint")).to_contain_text("storage for this page is full")
    expect(page.locator("#conversations .open")).to_have_text(["Hello"])


def test_everything_is_reached_with_the_keyboard(page: Page, behaviour: Behaviour) -> None:
    expect(page.locator("#composer-text")).to_be_focused()
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("world")
    page.keyboard.press("Enter")
    finished(page)
    assert behaviour.requests[0]["messages"][0]["content"] == "Hello\nworld"
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id"))
    assert {"new-chat", "theme", "to-cluster", "Parameters", "Copy", "Answer again", "Edit and send again"} <= reached


def test_every_control_has_a_name(page: Page) -> None:
    ask(page, "Hello")
    finished(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, a")]
          .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_the_place_on_the_screen_is_kept_when_someone_reads_above(page: Page, behaviour: Behaviour) -> None:
    behaviour.answer = lambda messages: "\n\n".join(f"line {i}" for i in range(200))
    behaviour.hold = threading.Event()
    ask(page, "Hello")
    expect(page.locator(".message.assistant .body")).to_contain_text("line 90")
    at_end = "() => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80"
    page.wait_for_function(at_end)
    page.evaluate("scroller.scrollTop = 100")
    expect(page.locator("#to-end")).to_be_visible()
    behaviour.hold.set()
    finished(page)
    assert page.evaluate("scroller.scrollTop") == 100
    page.click("#to-end")
    page.wait_for_function(at_end)
    expect(page.locator("#to-end")).to_be_hidden()


def test_stored_conversations_hold_what_was_said_and_nothing_else(page: Page) -> None:
    ask(page, "Hello")
    finished(page)
    stored = page.evaluate("Object.entries(localStorage).filter(([key]) => key.startsWith('dllama.conversation.'))")
    assert len(stored) == 1
    conversation = json.loads(stored[0][1])
    assert [message["content"] for message in conversation["messages"]] == ["Hello", "You said: Hello"]
    assert set(conversation) == {"id", "title", "updated", "leftOut", "messages"}
