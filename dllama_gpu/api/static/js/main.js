// Joins the parts of the page.

import { Chat } from "./chat.js";
import { ApiError, listModels } from "./client.js";
import { ClusterPage } from "./cluster.js";
import { askForKey, askForName, changeSettings, confirmed, setUpDialogs } from "./dialogs.js";
import { fitHeight, sends } from "./message_view.js";
import { drawConversations, setUpDrawer } from "./sidebar.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);
const field = $("composer-text");
const isTouch = window.matchMedia("(pointer: coarse)").matches;

let model = null;
const closeDrawer = setUpDrawer();
const chat = new Chat({ changed: drawList, needsKey, model: () => model?.id ?? null });
const cluster = new ClusterPage(needsKey);

let asking = null;

/** Asks for the API key, once for all who need it; resolves with whether one was given. */
function needsKey(problem) {
  asking ??= askForKey(problem)
    .then(async (isGiven) => {
      if (isGiven) await findModel({ asks: false });
      return isGiven;
    })
    .finally(() => (asking = null));
  return asking;
}

// What is on the screen stands in the address, so that reload, back and bookmarks work.
function go(id) {
  const hash = id ? `#${id}` : "#";
  if (location.hash === hash || (!id && !location.hash)) route();
  else location.hash = hash;
}

function route() {
  const id = location.hash.slice(1);
  const onCluster = id === "cluster";
  $("chat").hidden = onCluster;
  $("cluster").hidden = !onCluster;
  $("to-cluster").classList.toggle("current", onCluster);
  if (onCluster) {
    cluster.start();
    document.title = "Cluster · dllama-gpu";
  } else {
    cluster.stop();
    if (id !== chat.conversation.id || chat.conversation.messages.length === 0) {
      chat.show((id && store.loadConversation(id)) || store.newConversation());
    } else chat.retitle();
    if (!isTouch) field.focus();
  }
  closeDrawer();
  drawList();
}

function drawList() {
  const current = location.hash === "#cluster" ? null : chat.conversation.id;
  drawConversations(current, { open: go, remove });
  $("hint").classList.toggle("problem", store.problem !== null);
  if (store.problem !== null) $("hint").textContent = store.problem;
}

async function remove(conversation) {
  if (!(await confirmed(`Delete “${conversation.title}”? This cannot be undone.`))) return;
  const isShown = conversation.id === chat.conversation.id;
  if (isShown) chat.discard();
  store.deleteConversation(conversation.id);
  if (isShown) {
    chat.show(store.newConversation());
    if (location.hash !== "#cluster") go("");
  }
  drawList();
}

async function send() {
  const text = field.value.trim();
  if (!text || chat.isWriting) return;
  field.value = "";
  store.saveDraft("");
  fitHeight(field);
  const asked = chat.ask(text);
  history.replaceState(null, "", `#${chat.conversation.id}`);
  drawList();
  await asked;
}

async function findModel({ asks = true } = {}) {
  try {
    [model = null] = await listModels();
    $("model-name").textContent = model?.id ?? "no model";
    $("model-name").title = model?.context_length ? `Context of ${model.context_length} tokens` : "Model";
  } catch (error) {
    $("model-name").textContent = "not connected";
    if (asks && error instanceof ApiError && error.status === 401) needsKey(error.message);
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => {
  chat.stop();
  field.focus();
});
field.addEventListener("keydown", (event) => {
  if (sends(event) && !isTouch) {
    event.preventDefault();
    send();
  }
});
field.addEventListener("input", () => {
  fitHeight(field);
  store.saveDraft(field.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chat.isWriting && !document.querySelector("dialog[open]")) chat.stop();
});
$("new-chat").addEventListener("click", () => {
  if (chat.conversation.messages.length > 0) chat.show(store.newConversation());
  go("");
});
$("rename").addEventListener("click", async () => {
  const { conversation } = chat;
  const name = await askForName(conversation.title);
  if (name !== null && chat.conversation === conversation) chat.rename(name);
});
$("download").addEventListener("click", () => chat.download());
$("open-settings").addEventListener("click", async () => {
  if (await changeSettings()) await findModel();
});

function showTheme(choice) {
  $("theme-icon").setAttribute("href", `#i-${choice}`);
  $("theme-label").textContent = `Theme: ${choice === "auto" ? "system" : choice}`;
}
$("theme").addEventListener("click", () => showTheme(window.dllamaTheme.next()));
showTheme(window.dllamaTheme.choice());

store.onOtherTab((id) => {
  if (id === chat.conversation.id && !chat.isWriting) {
    const changed = store.loadConversation(id);
    if (changed !== null) chat.show(changed);
  }
  drawList();
});
window.addEventListener("hashchange", route);
if (isTouch) $("hint").hidden = true;
setUpDialogs();
field.value = store.loadDraft();
fitHeight(field);
route();
findModel();
