// The gateway's routes and hosts, asked for every few seconds while they are shown.

import { get } from "./api.js";
import { $, el, setText } from "./dom.js";
import { bytes, latency, plural, rate } from "./format.js";

const INTERVAL_MS = 5000;
const LEVELS = { healthy: "ok", active: "ok", starting: "warn", draining: "warn", napping: "asleep", unhealthy: "ko", error: "ko" };

let timer = 0;
let shown = 0;

const state = (text, why = "", level = LEVELS[text] ?? "") => [el("span", { class: `badge ${level}` }, text), why && el("div", { class: "hint" }, why)];
const cell = (content) => el("td", {}, ...[content].flat().filter((each) => each !== ""));

function routeRow(route) {
  const figures = [route.requests, route.refused, route.waiting, route.errors].map(String);
  const way = [route.way, route.why && el("div", { class: "hint" }, route.why)];
  return [route.alias, route.host, route.path, route.to.join(", "), way, state(route.state), ...figures, latency(route.p50_seconds), latency(route.p99_seconds)];
}

function hostRow(host) {
  const figures = [host.connections, host.in_flight, host.waiting, host.requests, host.errors].map(String);
  const why = host.available && host.health !== "unhealthy" ? "" : host.why || "not available";
  return [host.host, host.routes.join(", "), state(host.state), state(host.health, why), host.breaker || "–", ...figures];
}

function draw(kind, rows, more, word = kind) {
  $(`${kind}-list`).replaceChildren(...rows.map((cells) => el("tr", {}, ...cells.map(cell))));
  $(`${kind}-list`).closest(".scroll").hidden = rows.length === 0;
  $(`more-${kind}s`).hidden = more === 0;
  setText($(`more-${kind}s`), `and ${plural(more, word)} more: poolctl ${word}s`);
}

function gatewayLine({ state, addresses, routes, stats }) {
  const words = [state, ...addresses, plural(routes, "route")];
  if (stats) {
    words.push(`${rate(stats.requests_per_second)} requests/s`, `${rate(stats.errors_per_second)} errors/s`);
    words.push(plural(stats.connections, "connection"), bytes(stats.memory_bytes), `${rate(stats.cpu_percent)} % CPU`);
  }
  return words.join(" · ");
}

async function refresh() {
  const found = await get("routes");
  $("gateway").hidden = !found.gateway;
  setText($("gateway"), found.gateway ? gatewayLine(found.gateway) : "");
  draw("route", found.routes.map(routeRow), found.more_routes);
  draw("host", found.hosts.map(hostRow), found.more_hosts, "backend");
  $("hosts").hidden = found.hosts.length === 0;
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
