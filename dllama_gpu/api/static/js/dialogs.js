// Parameters, the API key, and a question before something is deleted.

import { apiKey, setApiKey } from "./client.js";
import { loadSettings, NUMBERS, saveSettings } from "./store.js";

const $ = (id) => document.getElementById(id);

/** Shows a dialog and resolves with the value of the button that closed it. */
function shown(dialog) {
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** Lets a person change the parameters; resolves with whether they were saved. */
export async function changeSettings() {
  const fields = $("settings-form").elements;
  const settings = loadSettings();
  fill(fields, settings);
  fields.key.value = apiKey();
  if ((await shown($("settings"))) !== "save") return false;
  const changed = { system: fields.system.value.trim(), stop: [] };
  changed.stop = fields.stop.value.split("\n").filter((line) => line !== "").slice(0, 16);
  for (const name of NUMBERS) if (fields[name].value !== "") changed[name] = fields[name].valueAsNumber;
  if (fields.thinking.value) changed.thinking = fields.thinking.value;
  saveSettings(changed);
  setApiKey(fields.key.value.trim());
  return true;
}

function fill(fields, settings) {
  fields.system.value = settings.system;
  fields.stop.value = settings.stop.join("\n");
  fields.thinking.value = settings.thinking ?? "";
  for (const name of NUMBERS) fields[name].value = name in settings ? String(settings[name]) : "";
}

export function setUpDialogs() {
  // No submit buttons: Enter in a field presses the first of those.
  for (const button of document.querySelectorAll("[data-closes]")) {
    button.addEventListener("click", () => button.closest("dialog").close("cancel"));
  }
  $("settings-defaults").addEventListener("click", () => fill($("settings-form").elements, { system: "", stop: [] }));
}

/** Asks for the key; resolves with whether one was given. */
export async function askForKey(problem) {
  $("key-problem").textContent = problem;
  $("key-input").value = "";
  const answer = shown($("key-dialog"));
  $("key-input").focus();
  if ((await answer) !== "save" || !$("key-input").value.trim()) return false;
  setApiKey($("key-input").value.trim());
  return true;
}

/** Asks for another name; resolves with null where it stays as it is. */
export async function askForName(name) {
  const field = $("rename-input");
  field.value = name;
  const answer = shown($("rename-dialog"));
  field.select();
  return (await answer) === "save" && field.value.trim() ? field.value.trim() : null;
}

export async function confirmed(question) {
  $("confirm-text").textContent = question;
  return (await shown($("confirm"))) === "yes";
}
