// The gateway's routes and backends in the columns of `routes -o wide` and `backends -o wide`, asked for while shown.

import { get } from "./api.js";
import { $, el, setText } from "./dom.js";
import { bytes, latency, moment, plural, rate } from "./format.js";

const INTERVAL_MS = 5000;
const LEVELS = { healthy: "ok", active: "ok", starting: "warn", draining: "warn", napping: "asleep", unhealthy: "ko", error: "ko" };

let timer = 0;
let shown = 0;

const badge = (text) => text && el("span", { class: `badge ${LEVELS[text] ?? ""}` }, text);
const machine = ({ node, vmid, name, state }) => (vmid ? `${node}/${vmid} ${name} (${state})` : node);

// What a column shows of a route or backend, where that is not the field of this name.
const CELLS = {
  backend: ({ host }) => host,
  conn: ({ connections }) => connections,
  to: ({ to }) => to.join(", "),
  routes: ({ routes }) => routes.join(", "),
  machines: ({ machines }) => (machines || []).map(machine).join(", "),
  state: ({ state }) => badge(state),
  health: ({ health }) => badge(health),
  since: ({ since }) => since && moment(since),
  until: ({ until }) => until && moment(until),
  p50: ({ p50_seconds: seconds }) => latency(seconds),
  p99: ({ p99_seconds: seconds }) => latency(seconds),
};
const TITLES = { conn: "Connections", p50: "p50", p99: "p99" };
const HINTS = { waiting: "Requests in the queue of a limit now" };

function title(column) {
  return TITLES[column] || column[0].toUpperCase() + column.slice(1).replaceAll("_", " ");
}

function cell(row, column) {
  const found = column in CELLS ? CELLS[column](row) : row[column];
  const empty = found === "" || found === null || found === undefined;
  return el("td", {}, empty ? "–" : found instanceof Node ? found : String(found));
}

function draw(kind, columns, rows, more) {
  const list = $(`${kind}-list`);
  $(`${kind}-head`).replaceChildren(...columns.map((column) => el("th", { scope: "col", title: HINTS[column] || "" }, title(column))));
  list.replaceChildren(...rows.map((row) => el("tr", {}, ...columns.map((column) => cell(row, column)))));
  list.closest(".scroll").hidden = rows.length === 0;
  $(`more-${kind}s`).hidden = more === 0;
  setText($(`more-${kind}s`), `and ${plural(more, kind)} more: poolctl ${kind}s`);
}

function gatewayLine({ state, addresses, routes, stats }, refused) {
  const words = [state, ...addresses, plural(routes, "route")];
  if (stats) {
    words.push(`${rate(stats.requests_per_second)} requests/s`, `${rate(stats.errors_per_second)} errors/s`);
    words.push(plural(stats.connections, "connection"), bytes(stats.memory_bytes), `${rate(stats.cpu_percent)} % CPU`);
  }
  const without = Object.entries(refused).filter(([, count]) => count).map(([code, count]) => `${count} with ${code}`).join(", ");
  return [...words, ...(without ? [`refused without a route: ${without}`] : [])].join(" · ");
}

async function refresh() {
  const found = await get("routes");
  $("gateway").hidden = !found.gateway;
  setText($("gateway"), found.gateway ? gatewayLine(found.gateway, found.refused_without_route) : "");
  draw("route", found.route_columns, found.routes, found.more_routes);
  draw("backend", found.backend_columns, found.hosts, found.more_hosts);
  $("backends").hidden = found.hosts.length === 0;
  $("no-routes").hidden = found.routes.length > 0;
  $("routes-loading").hidden = true;
  const problem = found.problem || (found.gateway ? found.gateway.problem : "");
  $("gateway-problem").hidden = problem === "";
  setText($("gateway-problem"), problem);
}

// A failure is thrown the first time only: the page itself reports that the pool does not answer.
export async function showRoutes() {
  hideRoutes();
  const mine = shown;
  const again = () => {
    if (mine === shown) timer = setTimeout(() => refresh().catch(() => {}).then(again), INTERVAL_MS);
  };
  try {
    await refresh();
  } finally {
    again();
  }
}

export function hideRoutes() {
  clearTimeout(timer);
  shown += 1;
}
