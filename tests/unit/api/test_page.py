from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from dllama_gpu.api.page import STATIC, page_response

PATHS = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file())
OWN = [path for path in PATHS if not path.startswith("vendor/")]


def text_of(path: str) -> str:
    response = page_response(path)
    assert response is not None
    return response.body.decode()


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", PATHS)
def test_every_file_is_sent_as_what_it_is_and_closed_to_everything_foreign(path: str) -> None:
    response = page_response(path)
    assert response is not None
    assert response.status == 200
    assert response.body == (STATIC / path).read_bytes()
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert response.headers["Content-Type"].startswith(types.get(path.rpartition(".")[2], "text/"))
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_itself_is_sent_where_no_file_is_named() -> None:
    assert page_response() == page_response("index.html")


@pytest.mark.parametrize("path", ["", "x", "../page.py", "js/../index.html", "/etc/passwd", "js", "index.html\0", "//"])
def test_nothing_else_is_sent(path: str) -> None:
    assert page_response(path) is None


def test_a_browser_that_has_the_file_is_told_so() -> None:
    tag = page_response("index.html").headers["ETag"]  # type: ignore[union-attr]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = page_response("index.html", known)
        assert again is not None
        assert (again.status, again.body) == (304, b"")
        assert again.headers["ETag"] == tag
    other = page_response("index.html", '"other"')
    assert other is not None
    assert other.status == 200


def test_nothing_in_the_page_is_inline_or_from_elsewhere() -> None:
    for tag, attributes in Tags(text_of("index.html")).found:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if tag == "script":
            assert attributes.get("src")
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("/static/", "#")), target
            if target and target.startswith("/static/"):
                assert target.removeprefix("/static/") in PATHS


@pytest.mark.parametrize("path", [path for path in OWN if path.endswith(".js")])
def test_scripts_import_files_that_are_there_and_never_write_html(path: str) -> None:
    text = text_of(path)
    for target in re.findall(r'from "([^"]+)"', text):
        assert (STATIC / path).parent.joinpath(target).resolve().is_file(), target
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "https://"):
        assert forbidden not in text.replace("https://html.spec.whatwg.org", "")


@pytest.mark.parametrize("path", [path for path in OWN if path.endswith(".css")])
def test_styles_fetch_nothing(path: str) -> None:
    assert "url(" not in text_of(path)
    assert "@import" not in text_of(path)


def test_every_library_of_others_has_its_licence_and_stands_in_the_list() -> None:
    libraries = [path for path in PATHS if re.fullmatch(r"vendor/[^/]+\.js", path)]
    assert libraries
    listed = (STATIC / "vendor" / "README.md").read_text()
    for path in libraries:
        assert f"`{path.removeprefix('vendor/')}`" in listed
        assert path.replace(".js", ".LICENSE.txt") in PATHS
