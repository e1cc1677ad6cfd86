// One message of a conversation on the screen.

import { element, rendered, splitThought } from "./markdown.js";

const SHORTEST_PAUSE = 40; // ms between two drawings of an answer that is being written
const COST_FACTOR = 4; // drawing may take a fifth of the time

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

function actionButton(action, label, iconName) {
  const button = element("button", "icon action");
  button.type = "button";
  button.title = label;
  button.setAttribute("aria-label", label);
  button.dataset.action = action;
  button.append(icon(iconName));
  return button;
}

/** The view of a message; `index` is its place in the conversation, and its actions bubble up as clicks. */
export class MessageView {
  constructor(message, index) {
    this.message = message;
    this.root = element("article", `message ${message.role}`);
    this.root.dataset.index = String(index);
    this.root.setAttribute("aria-label", message.role === "user" ? "You" : "Answer");
    this.body = element("div", "body");
    this.root.append(this.body);
    this.timer = null;
    this.nextDrawing = 0;
    this.actions = element("div", "actions");
    this.root.append(this.actions);
    if (message.role === "user") {
      this.body.textContent = message.content;
      this.actions.append(actionButton("copy", "Copy", "copy"), actionButton("edit", "Edit and send again", "edit"));
    } else {
      this.thought = element("details", "thought");
      this.thought.append(element("summary"), element("div", "body"));
      this.note = element("span", "note");
      this.draw();
      this.actions.append(actionButton("copy", "Copy", "copy"), actionButton("again", "Answer again", "again"), this.note);
      this.finish();
    }
  }

  /** Marks an answer as being written. */
  start() {
    this.root.classList.add("writing");
    this.root.setAttribute("aria-busy", "true");
    this.draw();
  }

  /** Draws soon what the message's content is by then. */
  changed() {
    if (this.timer !== null) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      this.draw();
    }, Math.max(0, this.nextDrawing - performance.now()));
  }

  /** Draws all of it now, and what came of it. */
  finish() {
    clearTimeout(this.timer);
    this.timer = null;
    this.root.classList.remove("writing");
    this.root.removeAttribute("aria-busy");
    this.draw();
    this.note.textContent = this.message.note ?? "";
    this.root.querySelector(".failure")?.remove();
    if (this.message.error) this.root.insertBefore(this.failure(this.message.error), this.actions);
  }

  draw() {
    const started = performance.now();
    const { thought, said, open } = splitThought(this.message.content);
    const thoughts = [this.message.thought, thought].filter(Boolean).join("\n\n");
    if (thoughts && !this.thought.isConnected) this.root.insertBefore(this.thought, this.body);
    if (thoughts) replaceChanged(this.thought.lastElementChild, rendered(thoughts));
    const isThinking = this.root.classList.contains("writing") && (open || (thoughts !== "" && !said));
    this.thought.classList.toggle("open-ended", isThinking);
    this.thought.firstElementChild.textContent = isThinking ? "Thinking…" : "Thoughts";
    replaceChanged(this.body, rendered(said));
    this.nextDrawing = performance.now() + Math.max(SHORTEST_PAUSE, COST_FACTOR * (performance.now() - started));
    this.root.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  }

  failure(sentence) {
    const frame = element("div", "failure");
    frame.setAttribute("role", "alert");
    const text = element("p");
    text.textContent = sentence;
    const again = element("button");
    again.type = "button";
    again.dataset.action = "again";
    again.textContent = "Try again";
    frame.append(text, again);
    return frame;
  }

  /** Turns a question into a field; `send` is called with the new text. */
  edit(send) {
    const field = element("textarea", "edit-field");
    field.value = this.message.content;
    field.setAttribute("aria-label", "Edit the message");
    const buttons = element("div", "edit-buttons");
    const cancel = Object.assign(element("button"), { type: "button", textContent: "Cancel" });
    const again = Object.assign(element("button", "primary"), { type: "button", textContent: "Send" });
    buttons.append(cancel, again);
    const close = () => {
      this.root.classList.remove("editing");
      this.body.textContent = this.message.content;
      this.actions.querySelector('[data-action="edit"]').focus();
    };
    const go = () => field.value.trim() && send(field.value.trim());
    cancel.addEventListener("click", close);
    again.addEventListener("click", go);
    field.addEventListener("input", () => fitHeight(field));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (sends(event)) {
        event.preventDefault();
        go();
      }
    });
    this.root.classList.add("editing");
    this.body.replaceChildren(field, buttons);
    fitHeight(field);
    field.focus();
  }
}

/** Puts `fragment` in the place of what `parent` holds, but leaves the equal blocks at its beginning, and a selection. */
function replaceChanged(parent, fragment) {
  const old = [...parent.childNodes];
  const fresh = [...fragment.childNodes];
  let n = 0;
  while (n < old.length && n < fresh.length && old[n].isEqualNode(fresh[n])) n += 1;
  old.slice(n).forEach((node) => node.remove());
  parent.append(...fresh.slice(n));
}

/** Whether this key sends: Enter alone, and not while an input method composes a character. */
export function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.altKey && !event.isComposing;
}

export function fitHeight(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}
