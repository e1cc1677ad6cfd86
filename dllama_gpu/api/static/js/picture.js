// A picture of the nodes: a circle each, its size by the share; lines between them, their width by what crosses them.

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 720;
const HEIGHT = 350;
const LARGEST = 46;
const SMALLEST = 16;

function shape(tag, attributes, className = "") {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (className) made.setAttribute("class", className);
  return made;
}

/** Where the nodes stand: the root above, the others around an ellipse. */
export function places(n) {
  if (n === 1) return [{ x: WIDTH / 2, y: 90 }];
  if (n === 2) return [{ x: WIDTH * 0.3, y: 80 }, { x: WIDTH * 0.7, y: 80 }];
  return Array.from({ length: n }, (_, i) => {
    const angle = (2 * Math.PI * i) / n - Math.PI / 2;
    return { x: WIDTH / 2 + WIDTH * 0.36 * Math.cos(angle), y: HEIGHT / 2 + (HEIGHT / 2 - 100) * Math.sin(angle) };
  });
}

export function drawPicture(svg, nodes, slowest) {
  const spots = places(nodes.length);
  const ys = spots.map((spot) => spot.y);
  const top = Math.min(...ys, HEIGHT) - LARGEST - (nodes.length > 2 ? 50 : 10);
  const height = Math.max(...ys, 0) + LARGEST + 50 - top;
  svg.setAttribute("viewBox", `0 ${top} ${WIDTH} ${height}`);
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
    circles.append(circle(node, spots[i], node.rank === slowest, nodes.length > 2 && spots[i].y < HEIGHT / 2 - 30));
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
