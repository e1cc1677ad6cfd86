// The chat: the conversation on the screen, the answer that is being written, what can be done with messages.

import { answer, ApiError } from "./client.js";
import { MessageView } from "./message_view.js";
import { splitThought } from "./markdown.js";
import * as store from "./store.js";

const SAVE_EVERY = 2000; // ms while an answer is being written
const NEAR_END = 80; // pixels from the end that still count as being there

const $ = (id) => document.getElementById(id);

export class Chat {
  /** `hooks`: changed() after a conversation was saved, needsKey(problem) → Promise<boolean>, model() → name or null. */
  constructor(hooks) {
    this.hooks = hooks;
    this.conversation = store.newConversation();
    this.views = [];
    this.abort = null;
    this.follows = true;
    const scroller = $("scroller");
    scroller.addEventListener("scroll", () => this.scrolled());
    $("messages").addEventListener("drawn", () => this.follows && this.toEnd());
    $("messages").addEventListener("click", (event) => this.clicked(event));
    $("to-end").addEventListener("click", () => this.toEnd());
    window.addEventListener("pagehide", () => this.isWriting && this.save());
    this.show(this.conversation);
  }

  get isWriting() {
    return this.abort !== null;
  }

  show(conversation) {
    this.stop();
    this.conversation = conversation;
    $("messages").replaceChildren();
    this.views = [];
    conversation.messages.forEach((message) => this.append(message));
    this.retitle();
    this.toEnd();
  }

  append(message) {
    const view = new MessageView(message, this.views.length);
    this.views.push(view);
    $("messages").append(view.root);
    return view;
  }

  retitle() {
    const isEmpty = this.conversation.messages.length === 0;
    $("chat-title").textContent = isEmpty ? "New chat" : this.conversation.title;
    document.title = isEmpty ? "dllama-gpu" : `${this.conversation.title} · dllama-gpu`;
    $("welcome").hidden = !isEmpty;
    $("download").hidden = isEmpty;
    $("rename").hidden = isEmpty;
  }

  rename(title) {
    this.conversation.title = title;
    store.saveConversation(this.conversation);
    this.retitle();
    this.hooks.changed();
  }

  save() {
    this.conversation.updated = Date.now();
    store.saveConversation(this.conversation);
    this.hooks.changed();
  }

  /** Takes a new question, after the first `keep` messages, and has it answered. */
  async ask(text, keep = this.conversation.messages.length) {
    this.cut(keep);
    const { messages } = this.conversation;
    if (messages.length === 0) this.conversation.title = titleOf(text);
    messages.push({ role: "user", content: text });
    this.append(messages.at(-1));
    await this.answerLast();
  }

  /** Has the question before message `index` answered anew; what came after it goes. */
  async again(index) {
    this.cut(index);
    await this.answerLast();
  }

  cut(n) {
    this.stop();
    if (n <= this.conversation.leftOut) this.conversation.leftOut = 0;
    this.conversation.messages.length = n;
    this.views.splice(n).forEach((view) => view.root.remove());
  }

  stop() {
    this.abort?.abort();
    this.abort = null;
    this.showWriting(false);
  }

  /** Forgets the conversation, so that an answer which is just ending does not save it once more. */
  discard() {
    this.stop();
    this.conversation.messages = [];
  }

  showWriting(isWriting) {
    $("send").hidden = isWriting;
    $("stop").hidden = !isWriting;
  }

  async answerLast() {
    const conversation = this.conversation;
    const message = { role: "assistant", content: "" };
    conversation.messages.push(message);
    const view = this.append(message);
    const abort = (this.abort = new AbortController());
    const stop = this.watch(conversation, message);
    this.showWriting(true);
    this.retitle();
    this.save();
    view.start();
    this.toEnd();
    try {
      await this.streamWhatFits(conversation, message, view, abort.signal);
    } catch (error) {
      if (error.name === "AbortError") message.note = "stopped";
      else if (error instanceof ApiError && error.status === 401) await this.askKey(error, message);
      else message.error = sentence(error);
    } finally {
      stop();
      view.finish();
      store.saveConversation({ ...conversation, updated: Date.now() });
      this.hooks.changed();
      if (this.abort === abort) {
        this.abort = null;
        this.showWriting(false);
        $("status").textContent = message.error ? "" : "The answer is complete.";
      }
    }
    if (message.retry) {
      delete message.retry;
      if (this.conversation === conversation) await this.again(conversation.messages.indexOf(message));
    }
  }

  async askKey(error, message) {
    message.error = sentence(error);
    message.retry = await this.hooks.needsKey(error.message);
  }

  /** Leaves out the older half of the conversation as often as the server says that it is longer than the context. */
  async streamWhatFits(conversation, message, view, signal) {
    const before = conversation.leftOut;
    for (;;) {
      try {
        await this.stream(message, view, sentMessages(conversation), signal);
        break;
      } catch (error) {
        const older = conversation.messages.length - 2 - conversation.leftOut; // but for the question and its answer
        if (error.code !== "context_length_exceeded" || older <= 0) throw error;
        conversation.leftOut += 2 * Math.ceil(older / 4);
      }
    }
    if (conversation.leftOut > before) message.note += " · the oldest messages no longer fit the context and are left out";
  }

  async stream(message, view, messages, signal) {
    const started = performance.now();
    let first = null;
    let finish = null;
    let usage = null;
    const body = { ...store.requestParameters(store.loadSettings()), messages };
    const model = this.hooks.model();
    if (model) body.model = model;
    for await (const part of answer(body, signal)) {
      if (part.text || part.thought) first ??= performance.now();
      if (part.text) message.content += part.text;
      if (part.thought) message.thought = (message.thought ?? "") + part.thought;
      if (part.finish) finish = part.finish;
      if (part.usage) usage = part.usage;
      view.changed();
    }
    message.note = noteOf(usage, finish, first === null ? null : first - started, performance.now() - (first ?? started));
  }

  /** Saves an answer now and then while it is being written; returns what ends that. */
  watch(conversation, message) {
    const timer = setInterval(() => (message.content || message.thought) && store.saveConversation(conversation), SAVE_EVERY);
    return () => clearInterval(timer);
  }

  async clicked(event) {
    const button = event.target.closest("button");
    if (button === null) return;
    if (button.dataset.copies === "code") {
      await copy(button.closest(".code").querySelector("pre").textContent, button);
      return;
    }
    const index = Number(button.closest(".message")?.dataset.index);
    const view = this.views[index];
    if (view === undefined) return;
    if (button.dataset.action === "copy") {
      const { content, role } = view.message;
      await copy(role === "assistant" ? splitThought(content).said : content, button);
    } else if (button.dataset.action === "again") {
      await this.again(index);
    } else if (button.dataset.action === "edit") {
      view.edit((text) => this.ask(text, index));
    }
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = $("scroller");
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR_END;
    $("to-end").hidden = this.follows;
  }

  toEnd() {
    $("scroller").scrollTop = $("scroller").scrollHeight;
    this.follows = true;
    $("to-end").hidden = true;
  }

  /** The conversation as a file that `/load` of `dllama-gpu chat` reads. */
  download() {
    const { system } = store.loadSettings();
    const messages = this.conversation.messages.map(({ role, content }) => ({ role, content }));
    if (messages.at(-1)?.role === "user") messages.pop();
    const all = system ? [{ role: "system", content: system }, ...messages] : messages;
    const link = document.createElement("a");
    const blob = new Blob([JSON.stringify({ messages: all }, null, 2) + "\n"], { type: "application/json" });
    link.href = URL.createObjectURL(blob);
    link.download = `${this.conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "chat"}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

/** What the model is sent: all but the last message, which is the answer to come, and what is left out. */
function sentMessages(conversation) {
  const { system } = store.loadSettings();
  const sent = [];
  for (const { role, content } of conversation.messages.slice(conversation.leftOut, -1)) {
    const said = role === "assistant" ? splitThought(content).said : content;
    if (said) sent.push({ role, content: said });
    else sent.pop(); // a question that got no answer is left out with it, so that the two still take turns
  }
  return system ? [{ role: "system", content: system }, ...sent] : sent;
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

function sentence(error) {
  if (!(error instanceof ApiError)) return `The page made a mistake (${error.message}).`;
  if (error.status === 429 && error.retryAfter !== null) return `${error.message} (in about ${error.retryAfter} s)`;
  return error.message;
}

/** What an answer was like, in a few words. */
function noteOf(usage, finish, firstMs, restMs) {
  const parts = [];
  const n = usage?.completion_tokens;
  if (n) parts.push(`${n}\u00a0token${n === 1 ? "" : "s"}`);
  if (n > 1 && restMs > 0) parts.push(`${((1000 * (n - 1)) / restMs).toFixed(1)}\u00a0tokens/s`);
  if (firstMs !== null) parts.push(`first after ${(firstMs / 1000).toFixed(2)}\u00a0s`);
  if (finish === "length") parts.push("ended at its limit");
  return parts.join(" · ");
}

/** Puts text on the clipboard and says so on the button; without a secure connection by way of a selection. */
async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "unseen";
    document.body.append(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
  }
  button.classList.add(done ? "done" : "not-done");
  const use = button.querySelector("use");
  const label = button.textContent;
  if (use) use.setAttribute("href", done ? "#i-check" : "#i-close");
  else button.textContent = done ? "Copied" : "Not allowed";
  document.getElementById("status").textContent = done ? "Copied." : "The browser does not allow copying.";
  setTimeout(() => {
    button.classList.remove("done", "not-done");
    if (use) use.setAttribute("href", "#i-copy");
    else button.textContent = label;
  }, 1500);
}
