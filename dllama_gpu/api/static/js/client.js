// The server's API: models, answers as they are written, the state of the cluster.

import { eventData } from "./sse.js";

const KEY = "dllama.key";

/** What went wrong, in a sentence; `status` is the HTTP status, 0 where there was no answer; `code` is OpenAI's. */
export class ApiError extends Error {
  constructor(message, status, { code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

export function apiKey() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function setApiKey(key) {
  try {
    if (key) localStorage.setItem(KEY, key);
    else localStorage.removeItem(KEY);
  } catch {
    // a browser that keeps nothing asks again
  }
}

async function request(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?", 0);
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  let message = `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  let code = null;
  try {
    const { error } = await response.json();
    if (typeof error?.message === "string") message = error.message;
    code = error?.code ?? null;
  } catch {
    // not JSON: the status has to do
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new ApiError(message, response.status, { code, retryAfter: Number.isFinite(seconds) ? seconds : null });
}

export async function listModels() {
  const body = await (await request("/v1/models")).json();
  return Array.isArray(body?.data) ? body.data : [];
}

export async function clusterState(signal) {
  return (await request("/api/cluster", { signal })).json();
}

/**
 * Streams an answer. Yields `{text}`, `{thought}`, `{finish}` and `{usage}` in the order in which they come.
 * Throws ApiError, or the AbortError of `signal`.
 */
export async function* answer(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      const chunk = parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message ?? "The server failed.", 200);
      const choice = chunk.choices?.[0];
      if (choice?.delta?.reasoning_content) yield { thought: choice.delta.reasoning_content };
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { finish: choice.finish_reason };
      if (chunk.usage) yield { usage: chunk.usage };
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
  }
  signal?.throwIfAborted();
  throw new ApiError("The connection ended before the answer did.", 0);
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("The server sent something that is no JSON.", 200);
  }
}
