// The list of conversations.

import { element } from "./markdown.js";
import { icon } from "./message_view.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);

/** Draws the list anew; `current` is the id of the conversation on the screen, `open` and `remove` act on one. */
export function drawConversations(current, { open, remove }) {
  const items = store.listConversations().map((conversation) => {
    const item = element("li", conversation.id === current ? "current" : "");
    const button = element("button", "open");
    button.type = "button";
    button.textContent = conversation.title || "Untitled";
    button.title = button.textContent;
    if (conversation.id === current) button.setAttribute("aria-current", "page");
    button.addEventListener("click", () => open(conversation.id));
    const bin = element("button", "icon bin");
    bin.type = "button";
    bin.setAttribute("aria-label", `Delete “${button.textContent}”`);
    bin.title = "Delete";
    bin.append(icon("trash"));
    bin.addEventListener("click", () => remove(conversation));
    item.append(button, bin);
    return item;
  });
  const list = $("conversations");
  const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...items);
  if (focused >= 0) list.querySelectorAll("button")[focused]?.focus();
}

/** The drawer that the list is on a small screen. */
export function setUpDrawer() {
  const show = (isShown) => {
    $("app").classList.toggle("with-sidebar", isShown);
    $("veil").hidden = !isShown;
    if (isShown) $("close-sidebar").focus();
  };
  for (const button of document.querySelectorAll(".open-sidebar")) button.addEventListener("click", () => show(true));
  $("close-sidebar").addEventListener("click", () => show(false));
  $("veil").addEventListener("click", () => show(false));
  document.addEventListener("keydown", (event) => event.key === "Escape" && show(false));
  return () => show(false);
}
