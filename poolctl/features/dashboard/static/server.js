// One server: state, figures, workers, events, log.

import { get } from "./api.js";
import { Chart, historyBar } from "./charts.js";
import { $, el, setText } from "./dom.js";
import { drawLine, eventLines } from "./events.js";
import { bytes, duration, latency, rate } from "./format.js";
import { drawCharts } from "./history.js";
import { LogTail } from "./logs.js";
import { actionButtons, drawActions } from "./actions.js";
import { badge, place } from "./servers.js";
import { store } from "./store.js";

// Those that are there, of those that are wanted.
function workersOf(server) {
  const there = (server.pids || []).length;
  return there && there !== server.workers ? `${there}/${server.workers}` : String(server.workers);
}

const FACTS = [
  ["Address", (server) => place(server)],
  ["Uptime", (server) => duration(server.since ? store.now - server.since : 0)],
  ["Restarts", (server) => String(server.restarts)],
  ["Workers", (server) => workersOf(server)],
  ["Requests", (server) => (server.figures.requests_total ?? "–").toLocaleString()],
  ["Errors", (server) => (server.figures.errors_total ?? "–").toLocaleString()],
  ["In flight", (server) => String(server.figures.in_flight ?? "–")],
  ["Connections", (server) => String(server.figures.connections ?? "–")],
  ["CPU", (server) => (server.figures.cpu_percent == null ? "–" : `${server.figures.cpu_percent.toFixed(1)} %`)],
  ["Event loop lag", (server) => latency(server.figures.loop_lag_seconds)],
  ["Median latency", (server) => latency(server.figures.latency_p50_seconds)],
  ["Tags", (server) => (server.tags || []).join(", ") || "–"],
];

let name = "";
let shown = "";
let asked = "";
let charts = null;
let bar = null;
let facts = null;
export const serverLog = new LogTail($("server-log"));

function build() {
  charts = {
    requests_per_second: new Chart("Requests per second", rate),
    errors_per_second: new Chart("Errors per second", rate),
    latency_p99_seconds: new Chart("p99 latency", latency),
    memory_bytes: new Chart("Memory", (value) => bytes(value || null)),
  };
  $("server-charts").append(...Object.values(charts).map((chart) => chart.node));
  bar = historyBar(90);
  $("server-history").append(bar.node);
  facts = FACTS.map(([label, value]) => {
    const node = el("dd");
    $("server-facts").append(el("div", {}, el("dt", {}, label), node));
    return { node, value };
  });
}

async function ask() {
  const server = store.servers.get(name);
  const key = server ? JSON.stringify([name, server.pids, server.state, Boolean(server.ended), server.health, server.restarts]) : "";
  if (!server || asked === key) return;
  asked = key;
  try {
    const [item] = (await get(`server?name=${encodeURIComponent(name)}`)).items;
    if (!item || item.name !== name) return;
    const workers = item.worker_list || [];
    $("server-workers").replaceChildren(...workers.map((worker) => el("tr", {},
      el("td", {}, worker.id), el("td", {}, worker.pid == null ? "" : `pid ${worker.pid}`), el("td", {}, worker.phase),
      el("td", {}, ...(worker.probes || []).map((probe) => el("div", {},
        el("span", { class: `badge ${probe.status}` }, probe.status), ` ${probe.kind}${probe.latency_seconds == null ? "" : ` in ${latency(probe.latency_seconds)}`}${probe.message ? `: ${probe.message}` : ""}`))))));
    if (!workers.length) $("server-workers").append(el("tr", {}, el("td", { colSpan: 4 }, "None.")));
    drawConfiguration(item);
    const failed = !item.complaint && item.failure ? [item.failure.message, item.failure.hint].filter(Boolean).join("\n") : "";
    const failure = server.ended ? server.reason : item.complaint || failed || item.preload_problem || "";
    setText($("server-failure"), failure);
    $("server-failure").hidden = !failure;
  } catch {
    asked = "";
  }
}

// Keys that are configured, each with its place; of the environment only the names, because values may be secret.
function drawConfiguration({ configuration, environment }) {
  const directory = (store.about.files?.[0] || "").replace(/[^/]*$/, "");
  const place = (text) => (directory && text.startsWith(directory) ? text.slice(directory.length) : text);
  $("server-configuration").replaceChildren(...configuration.map(([key, value, from]) => el("tr", {},
    el("th", { scope: "row" }, key), el("td", {}, el("code", {}, value)), el("td", {}, place(from) || "–"))));
  $("server-environment").hidden = !environment.length;
  setText($("server-environment"), `Environment: ${environment.join(", ")}`);
}

export function beginServer() {
  $("server-span").addEventListener("input", () => {
    $("span").value = $("server-span").value;
    drawServer();
  });
}

export function showServer(wanted) {
  if (!charts) build();
  name = wanted;
  shown = asked = "";
  setText($("server-title"), name);
  $("server-actions").replaceChildren(actionButtons(name));
  for (const id of ["server-workers", "server-configuration"]) $(id).replaceChildren(); // those of the server before
  $("server-environment").hidden = true;
  $("server-failure").hidden = true;
  drawServer();
}

export function hideServer() {
  name = "";
}

export function drawServer() {
  if (!name) return;
  const server = store.servers.get(name);
  $("server-missing").hidden = Boolean(server);
  $("server-parts").hidden = $("server-actions").hidden = !server;
  if (!server) {
    setText($("server-missing"), store.known ? "The pool has no server of this name." : "Loading …");
    $("server-state").replaceChildren();
    shown = asked = "";
    return;
  }
  const key = JSON.stringify([server.state, Boolean(server.ended), server.ready, server.health]);
  if (key !== shown) {
    shown = key;
    $("server-state").replaceChildren(badge(server));
    drawActions($("server-actions").firstElementChild, server);
  }
  for (const { node, value } of facts) {
    const now = value(server);
    if (typeof now === "string") setText(node, now);
    else if (node.textContent !== now.textContent) node.replaceChildren(now);
  }
  bar.draw(server.levels, store.now, store.span);
  $("server-span").value = $("span").value;
  drawCharts(charts, server.series, name, () => name === server.name && drawServer());
  drawEvents();
  ask();
}

function drawEvents() {
  const list = $("server-events");
  const found = eventLines(store.events.filter((event) => event.server === name)).slice(-12).reverse();
  const key = `${name} ${found[0]?.events.at(-1).seq ?? ""}`;
  if (list.dataset.shown === key) return;
  list.dataset.shown = key;
  list.replaceChildren(...(found.length ? found.map((line) => drawLine(line, false)) : [el("li", {}, el("span", { class: "what" }, "No events in the last hour."))]));
}
