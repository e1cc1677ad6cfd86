// Conversations and parameters in the browser's storage. A conversation has a key of its own, so that a change of one
// writes only that one. Without storage (private windows of some browsers) they live as long as the page.

const PREFIX = "dllama.conversation.";
const SETTINGS = "dllama.settings";
const DRAFT = "dllama.draft";

const memory = new Map();
export let problem = null; // why conversations are not kept, if they are not

function read(key) {
  try {
    return localStorage.getItem(key) ?? memory.get(key) ?? null;
  } catch {
    return memory.get(key) ?? null;
  }
}

function write(key, value) {
  memory.set(key, value);
  try {
    localStorage.setItem(key, value);
    memory.delete(key);
    problem = null;
  } catch (error) {
    problem =
      error.name === "QuotaExceededError"
        ? "The browser's storage for this page is full: delete conversations, or this one is lost with the page."
        : "The browser keeps no data for this page: conversations are lost with it.";
  }
}

function remove(key) {
  memory.delete(key);
  try {
    localStorage.removeItem(key);
  } catch {
    // it was in memory only
  }
}

function keys() {
  const found = new Set(memory.keys());
  try {
    for (let i = 0; i < localStorage.length; i++) found.add(localStorage.key(i));
  } catch {
    // memory alone
  }
  return [...found].filter((key) => key.startsWith(PREFIX));
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const ROLES = ["user", "assistant"];

/**
 * The conversation if it has the shape that the page relies on, else null. The first `leftOut` messages are no longer
 * sent, as they do not fit the model's context.
 */
export function checked(value) {
  if (typeof value?.id !== "string" || !Array.isArray(value.messages)) return null;
  const messages = value.messages.filter((m) => ROLES.includes(m?.role) && typeof m.content === "string");
  return {
    id: value.id,
    title: typeof value.title === "string" ? value.title : "",
    updated: Number(value.updated) || 0,
    leftOut: Number.isInteger(value.leftOut) ? Math.min(Math.max(value.leftOut, 0), messages.length) : 0,
    messages: messages.map(({ role, content, thought, note, error }) => ({
      role,
      content,
      ...(typeof thought === "string" && thought ? { thought } : {}),
      ...(typeof note === "string" && note ? { note } : {}),
      ...(typeof error === "string" && error ? { error } : {}),
    })),
  };
}

export function newConversation() {
  const random = crypto.getRandomValues(new Uint32Array(4));
  return { id: [...random].map((n) => n.toString(36)).join(""), title: "", updated: Date.now(), leftOut: 0, messages: [] };
}

/** All conversations, the newest first. */
export function listConversations() {
  return keys()
    .map((key) => checked(parse(read(key))))
    .filter(Boolean)
    .sort((a, b) => b.updated - a.updated);
}

export function loadConversation(id) {
  return checked(parse(read(PREFIX + id)));
}

export function saveConversation(conversation) {
  if (conversation.messages.length === 0) return;
  write(PREFIX + conversation.id, JSON.stringify(conversation));
}

export function deleteConversation(id) {
  remove(PREFIX + id);
}

/** Calls `changed` when another tab has changed a conversation, with its id. */
export function onOtherTab(changed) {
  window.addEventListener("storage", (event) => {
    if (event.key === null) changed(null);
    else if (event.key.startsWith(PREFIX)) changed(event.key.slice(PREFIX.length));
  });
}

export function loadDraft() {
  return read(DRAFT) ?? "";
}

export function saveDraft(text) {
  if (text) write(DRAFT, text);
  else remove(DRAFT);
}

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty"];
const THINKING = ["on", "off"]; // nothing: as the model's template has it

export function loadSettings() {
  const stored = parse(read(SETTINGS)) ?? {};
  const settings = { system: typeof stored.system === "string" ? stored.system : "", stop: [] };
  if (Array.isArray(stored.stop)) settings.stop = stored.stop.filter((text) => typeof text === "string" && text);
  for (const name of NUMBERS) if (Number.isFinite(stored[name])) settings[name] = stored[name];
  if (THINKING.includes(stored.thinking)) settings.thinking = stored.thinking;
  return settings;
}

export function saveSettings(settings) {
  write(SETTINGS, JSON.stringify(settings));
}

/** The parameters of a request: only those that were chosen. */
export function requestParameters(settings) {
  const chosen = {};
  for (const name of NUMBERS) if (name in settings) chosen[name] = settings[name];
  if (settings.stop.length > 0) chosen.stop = settings.stop;
  if (settings.thinking) chosen.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  return chosen;
}

export { NUMBERS };
