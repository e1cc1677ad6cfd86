// The cluster page: asks for the state every second while it is shown.

import { ApiError, clusterState } from "./client.js";
import { element } from "./markdown.js";
import { drawPicture } from "./picture.js";

const EVERY = 1000; // ms
const HISTORY = 90; // points of the curve
const $ = (id) => document.getElementById(id);

export class ClusterPage {
  constructor(needsKey) {
    this.needsKey = needsKey;
    this.abort = null;
    this.history = [];
  }

  start() {
    if (this.abort !== null) return;
    this.abort = new AbortController();
    this.run(this.abort.signal);
  }

  stop() {
    this.abort?.abort();
    this.abort = null;
  }

  async run(signal) {
    while (!signal.aborted) {
      try {
        if (document.visibilityState === "visible") this.draw(await clusterState(signal));
      } catch (error) {
        if (signal.aborted) return;
        showState("unreachable", error instanceof ApiError ? error.message : `The page made a mistake (${error.message}).`);
        if (error.status === 401 && !(await this.needsKey(error.message))) {
          this.stop();
          return;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, EVERY));
    }
  }

  draw(state) {
    const nodes = Array.isArray(state.nodes) ? state.nodes : [];
    this.history = [...this.history, state.tokens_per_second?.decode ?? 0].slice(-HISTORY);
    showState(state.state, state.message);
    drawFigures(state, nodes, this.history);
    const slowest = slowestRank(nodes);
    drawPicture($("picture"), nodes, slowest);
    $("nodes").replaceChildren(...nodes.map((node) => nodeCard(node, slowest, nodes)));
  }
}

/** The rank of the node that computes longest, where there are several to compare. */
export function slowestRank(nodes) {
  const measured = nodes.filter((node) => node.state !== "lost" && Number.isFinite(node.compute_ms));
  if (measured.length < 2) return null;
  return measured.reduce((a, b) => (b.compute_ms > a.compute_ms ? b : a)).rank;
}

const STATES = { ready: "ready", recovering: "being rebuilt", down: "down", unreachable: "not reachable" };

function showState(state, message) {
  const pill = $("cluster-state");
  const text = STATES[state] ?? state ?? "";
  if (pill.textContent !== text) pill.textContent = text;
  pill.dataset.state = state ?? "";
  $("cluster-message").textContent = message ?? "";
  $("cluster-message").hidden = !message;
}

function drawFigures(state, nodes, history) {
  const slots = state.slots ?? {};
  const queue = state.queue ?? {};
  const requests = state.requests ?? {};
  const memory = nodes
    .filter((node) => node.state !== "lost")
    .reduce((sum, node) => sum + (node.weight_bytes ?? 0) + (node.kv_cache_bytes ?? 0), 0);
  const speed = figure("Generated", number(state.tokens_per_second?.decode), "tokens/s");
  speed.append(curve(history));
  const busy = figure("Slots", `${slots.busy ?? 0} of ${slots.total ?? 0}`, "busy");
  busy.append(dots(slots.busy ?? 0, slots.total ?? 0));
  $("figures").replaceChildren(
    speed,
    figure("Prompts read", number(state.tokens_per_second?.prefill), "tokens/s"),
    busy,
    figure("Waiting", String(queue.waiting ?? 0), Number.isFinite(queue.limit) ? `of ${queue.limit} at most` : "requests"),
    figure("Answered", String(requests.finished ?? 0), requests.failed ? `${requests.failed} failed` : "requests"),
    figure("Memory", bytes(memory), "weights and KV cache"),
    figure("Model", state.model ?? "…", state.context ? `context of ${state.context}` : ""),
    figure("Running for", duration(state.uptime_seconds), ""),
  );
}

function figure(label, value, unit) {
  const card = element("div", "figure");
  const add = (className, text) => card.append(Object.assign(element("span", className), { textContent: text }));
  add("label", label);
  add("value", value);
  add("unit", unit);
  if (value.length > 12) card.classList.add("long");
  return card;
}

function curve(history) {
  const highest = Math.max(1, ...history);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "curve");
  svg.setAttribute("viewBox", `0 0 ${HISTORY - 1} 30`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const offset = HISTORY - history.length;
  line.setAttribute("points", history.map((rate, i) => `${offset + i},${(29 - (27 * rate) / highest).toFixed(2)}`).join(" "));
  svg.append(line);
  return svg;
}

function dots(busy, total) {
  const row = element("div", "dots");
  row.setAttribute("aria-hidden", "true");
  for (let i = 0; i < Math.min(total, 32); i++) row.append(element("span", i < busy ? "busy" : ""));
  return row;
}

function nodeCard(node, slowest, nodes) {
  const card = element("article", "node");
  card.dataset.rank = String(node.rank);
  const head = element("div", "node-head");
  const name = Object.assign(element("h2"), { textContent: node.name });
  head.append(name);
  if (node.rank === slowest) head.append(Object.assign(element("span", "pill slow"), { textContent: "slowest" }));
  if (node.state === "lost") head.append(Object.assign(element("span", "pill lost"), { textContent: "lost" }));
  card.classList.toggle("is-slowest", node.rank === slowest);
  card.classList.toggle("is-lost", node.state === "lost");
  card.append(head);
  const where = [node.host, node.device].filter(Boolean).join(" · ");
  card.append(Object.assign(element("p", "muted"), { textContent: where }));
  if (node.state === "lost") return card; // the rest is what it had
  const used = (node.weight_bytes ?? 0) + (node.kv_cache_bytes ?? 0);
  card.append(bar("Share", node.share ?? 0, `${(100 * (node.share ?? 0)).toFixed(1)} %`));
  const ofMemory = Number.isFinite(node.memory_bytes) && node.memory_bytes > 0;
  card.append(bar("Memory", ofMemory ? used / node.memory_bytes : null, ofMemory ? `${bytes(used)} of ${bytes(node.memory_bytes)}` : bytes(used)));
  if (Number.isFinite(node.compute_ms)) card.append(timeBar(node, nodes));
  if (Number.isFinite(node.sent_bytes_per_token) && nodes.length > 1) {
    const traffic = `sends ${bytes(node.sent_bytes_per_token)}, receives ${bytes(node.received_bytes_per_token ?? 0)}`;
    card.append(pair("Network per token", traffic));
  }
  return card;
}

function pair(label, value) {
  const row = element("div", "pair");
  row.append(
    Object.assign(element("span", "label"), { textContent: label }),
    Object.assign(element("span", "number"), { textContent: value }),
  );
  return row;
}

function bar(label, part, text) {
  const frame = element("div", "bar-row");
  frame.append(pair(label, text));
  if (part !== null) {
    const track = element("div", "track");
    const fill = element("div", "fill");
    fill.style.width = `${Math.min(100, 100 * part).toFixed(2)}%`;
    track.append(fill);
    frame.append(track);
  }
  return frame;
}

/** Where the time of a token goes, on one scale for all nodes. */
function timeBar(node, nodes) {
  const total = (n) => (n.compute_ms ?? 0) + (n.waiting_ms ?? 0) + (n.network_ms ?? 0);
  const longest = Math.max(...nodes.map(total), 1e-9);
  const frame = element("div", "bar-row");
  frame.append(pair("A token takes", `${number(total(node))} ms`));
  const track = element("div", "track");
  for (const kind of ["compute", "network", "waiting"]) {
    const part = element("div", `fill ${kind}`);
    part.style.width = `${((100 * (node[`${kind}_ms`] ?? 0)) / longest).toFixed(2)}%`;
    track.append(part);
  }
  frame.append(track);
  const words = `computes ${number(node.compute_ms)}, exchanges ${number(node.network_ms)}, waits ${number(node.waiting_ms)} ms`;
  frame.append(Object.assign(element("p", "muted small"), { textContent: words }));
  return frame;
}

export function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} days`;
}
