// A picture of the nodes: a circle each, its size by the share; lines between them, their width by what crosses them.

const NS = "http://www.w3.org/2000/svg";
const WIDEST = 720;
const NARROWEST = 320;
const NAME = 150; // what the address of a node takes
const LARGEST = 46;
const SMALLEST = 16;

function shape(tag, attributes, className = "") {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (className) made.setAttribute("class", className);
  return made;
}

/** Where the nodes stand: the root above, the others around an ellipse, which is taller where there is no width. */
function places(n, width) {
  if (n === 1) return [{ x: width / 2, y: 0 }];
  const reach = Math.min(0.36 * width, (width - NAME) / 2);
  if (n === 2) return [{ x: width / 2 - reach, y: 0 }, { x: width / 2 + reach, y: 0 }];
  const rise = width < 500 ? 30 + 25 * n : 75;
  return Array.from({ length: n }, (_, i) => {
    const angle = (2 * Math.PI * i) / n - Math.PI / 2;
    return { x: width / 2 + reach * Math.cos(angle), y: rise * Math.sin(angle) };
  });
}

export function drawPicture(svg, nodes, slowest) {
  // On a small screen the letters keep their size, and the nodes move together.
  const width = Math.min(WIDEST, Math.max(NARROWEST, svg.clientWidth || WIDEST));
  const spots = places(nodes.length, width);
  const ys = spots.map((spot) => spot.y);
  const top = Math.min(...ys) - LARGEST - (nodes.length > 2 ? 50 : 10);
  const height = Math.max(...ys) + LARGEST + 50 - top;
  svg.setAttribute("viewBox", `0 ${top} ${width} ${height}`);
  svg.setAttribute("aria-label", description(nodes, slowest));
  const lines = shape("g", {});
  const circles = shape("g", {});
  const most = Math.max(1, ...nodes.map((node) => node.sent_bytes_per_token ?? 0));
  nodes.forEach((node, i) => {
    for (let j = i + 1; j < nodes.length; j++) {
      const isLost = node.state === "lost" || nodes[j].state === "lost";
      const traffic = ((node.sent_bytes_per_token ?? 0) + (nodes[j].sent_bytes_per_token ?? 0)) / (2 * most);
      const ends = { x1: spots[i].x, y1: spots[i].y, x2: spots[j].x, y2: spots[j].y };
      lines.append(shape("line", { ...ends, "stroke-width": 1.2 + 3 * traffic }, isLost ? "link lost" : "link"));
    }
    circles.append(circle(node, spots[i], node.rank === slowest, nodes.length > 2 && spots[i].y < -30));
  });
  svg.replaceChildren(lines, circles);
}

function circle(node, { x, y }, isSlowest, isAbove) {
  const part = node.state === "lost" ? 0 : Math.min(1, node.share ?? 0);
  const kinds = ["spot", isSlowest ? "slowest" : "", node.state === "lost" ? "lost" : ""];
  const group = shape("g", {}, kinds.filter(Boolean).join(" "));
  const radius = Math.max(SMALLEST, LARGEST * Math.sqrt(part));
  group.append(shape("circle", { cx: x, cy: y, r: radius + 5 }, "halo"), shape("circle", { cx: x, cy: y, r: radius }, "disc"));
  const share = shape("text", { x, y: y + 4 }, "share");
  share.textContent = node.state === "lost" ? "" : `${Math.round(100 * part)} %`;
  const above = isAbove ? -2 * radius - 50 : 0;
  const name = shape("text", { x, y: y + radius + 22 + above }, "name");
  name.textContent = node.name;
  const below = shape("text", { x, y: y + radius + 38 + above }, "below");
  below.textContent = node.state === "lost" ? "lost" : isSlowest ? `slowest: ${node.compute_ms.toFixed(2)} ms` : (node.host ?? "");
  group.append(share, name, below);
  return group;
}

function description(nodes, slowest) {
  const words = nodes.map((node) => {
    const what = node.state === "lost" ? "lost" : `${Math.round(100 * (node.share ?? 0))} percent of the model`;
    return `${node.name}: ${what}${node.rank === slowest ? ", the slowest" : ""}`;
  });
  return `Nodes of the cluster. ${words.join("; ")}`;
}
