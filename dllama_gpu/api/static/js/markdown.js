// A model's text as a part of the page. Nothing in it can become a script, a form or a picture from elsewhere:
// markdown-it writes HTML tags as text, DOMPurify lets only the few tags through that Markdown needs, and the page's
// Content-Security-Policy forbids what both might miss.

import MarkdownIt from "../vendor/markdown-it.js";
import DOMPurify from "../vendor/dompurify.js";
import highlighter from "../vendor/highlight.js";

const LONGEST_HIGHLIGHTED = 20000; // characters; longer code is shown in one colour

const parser = new MarkdownIt({ html: false, linkify: false, breaks: false, highlight });
parser.disable("image"); // shown as a link: fetching it would tell its server what was said here

// Alignment as a class, because the Content-Security-Policy allows no style in a tag.
for (const name of ["th_open", "td_open"]) {
  parser.renderer.rules[name] = (tokens, index, options, _, self) => {
    const align = /text-align:(left|center|right)/.exec(tokens[index].attrGet("style") ?? "");
    tokens[index].attrs = align ? [["class", `align-${align[1]}`]] : [];
    return self.renderToken(tokens, index, options);
  };
}

function highlight(code, language) {
  if (!language || code.length > LONGEST_HIGHLIGHTED || !highlighter.getLanguage(language)) return "";
  return highlighter.highlight(code, { language, ignoreIllegals: true }).value;
}

const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** The text as a DocumentFragment. */
export function rendered(text) {
  const fragment = DOMPurify.sanitize(parser.render(text), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const pre of fragment.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre));
  for (const table of fragment.querySelectorAll("table")) {
    const frame = element("div", "table-frame");
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

function codeBlock(pre) {
  const language = /language-([\w+#.-]+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
  const frame = element("div", "code");
  const bar = element("div", "code-bar");
  const copy = element("button", "copy-code");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.dataset.copies = "code";
  bar.append(Object.assign(element("span"), { textContent: language }), copy);
  pre.tabIndex = 0; // so that a keyboard can scroll it
  frame.append(bar, pre.cloneNode(true));
  return frame;
}

/** Splits what a reasoning model thinks from what it says; `open` while it is still thinking. */
export function splitThought(text) {
  const end = text.indexOf("</think>");
  const begins = /^\s*<think>/.exec(text);
  if (end >= 0) {
    return { thought: text.slice(begins?.[0].length ?? 0, end).trim(), said: text.slice(end + 8).trimStart(), open: false };
  }
  if (begins) return { thought: text.slice(begins[0].length).trim(), said: "", open: true };
  return { thought: "", said: text, open: false };
}

export function element(tag, className = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  return made;
}
