// The table of servers and the pool's own charts.

import { act, actionMenu, drawActions } from "./actions.js";
import { Chart, historyBar, sparkline } from "./charts.js";
import { $, el, setText } from "./dom.js";
import { keepFilters } from "./filters.js";
import { bytes, duration, latency, plural, rate } from "./format.js";
import { drawCharts } from "./history.js";
import { store, trouble } from "./store.js";

const figure = (key) => (server) => server.figures[key] ?? -1;
const SORTS = {
  name: [(server) => server.name.toLowerCase(), 1],
  trouble: [trouble, 1],
  rps: [figure("requests_per_second"), -1],
  errors: [figure("errors_per_second"), -1],
  p99: [figure("latency_p99_seconds"), -1],
  memory: [figure("memory_bytes"), -1],
  uptime: [(server) => (server.since ? store.now - server.since : -1), -1],
  restarts: [(server) => server.restarts, -1],
};

const FIGURES = ["requests_per_second", "errors_per_second", "latency_p99_seconds", "memory_bytes"];
const rows = new Map();
const picked = new Set();
let sort = "trouble";
let descending = false;
let charts = null;
let tallies = null;

const stateOf = (server) => (server.ended ? "ended" : server.state);
export const stateWord = (server) => (server.state === "running" && !server.ready ? "not ready" : stateOf(server));

export function badge(server) {
  const found = el("span", { class: "badges" }, el("span", { class: `badge ${server.level}` }, stateWord(server)));
  if (["ok", "warn", "ko"].includes(server.health)) {
    found.append(el("span", { class: `badge ${server.health}`, title: "health" }, server.health));
  }
  return found;
}

export function place(server) {
  const text = server.bind || "";
  // Only what a browser can open, and nothing that could be a script.
  return /^https?:\/\//.test(server.expose || "")
    ? el("a", { href: server.expose, rel: "noopener noreferrer", target: "_blank" }, text)
    : text;
}

// Charts are drawn for visible rows only: there may be thousands of rows.
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const row = entry.target.row;
    row.visible = entry.isIntersecting;
    if (row.visible) row.draw();
  }
}, { rootMargin: "300px" });

class Row {
  constructor(name) {
    this.name = name;
    this.visible = false;
    this.shown = "";
    this.box = el("input", { type: "checkbox", "aria-label": `Select ${name}`, onchange: () => this.pick() });
    this.where = el("div", { class: "sub" });
    this.why = el("div", { class: "why", hidden: true });
    this.state = el("td", { class: "state" });
    this.bar = historyBar();
    this.sparks = FIGURES.map(() => sparkline());
    this.numbers = ["Requests/s", "Errors/s", "p99", "Memory", "Uptime", "Restarts"].map((label) => el("td", { class: "number", "data-label": label }));
    this.texts = this.numbers.map((cell, index) => {
      const text = el("span");
      cell.append(text, ...(this.sparks[index] ? [this.sparks[index].node] : []));
      return text;
    });
    this.menu = actionMenu(name, () => this.server);
    this.node = el("tr", {},
      el("td", { class: "pick" }, this.box),
      el("th", { scope: "row" }, el("a", { href: `#server/${encodeURIComponent(name)}` }, name), this.where, this.why),
      this.state, el("td", { class: "history" }, this.bar.node), ...this.numbers, el("td", { class: "acts" }, this.menu));
    this.node.row = this;
    seen.observe(this.node);
  }

  get server() {
    return store.servers.get(this.name);
  }

  pick() {
    picked[this.box.checked ? "add" : "delete"](this.name);
    drawBulk();
  }

  draw() {
    const server = this.server;
    if (!server) return;
    this.box.checked = picked.has(this.name);
    const shown = JSON.stringify([stateOf(server), server.ready, server.health, server.bind, server.expose, server.tags, server.reason]);
    if (shown !== this.shown) {
      this.shown = shown;
      this.state.replaceChildren(badge(server));
      this.where.replaceChildren(place(server), ...(server.tags?.length ? [` · ${server.tags.join(", ")}`] : []));
      setText(this.why, server.reason);
      this.why.title = server.reason;
      this.why.hidden = !server.reason;
      if (this.menu.open) drawActions(this.menu.children[1], server);
    }
    const { figures, series } = server;
    const texts = [rate(figures.requests_per_second), rate(figures.errors_per_second), latency(figures.latency_p99_seconds), bytes(figures.memory_bytes || null),
      duration(server.since ? store.now - server.since : 0), String(server.restarts)];
    texts.forEach((text, index) => setText(this.texts[index], text));
    if (!this.visible) return;
    this.numbers[1].classList.toggle("bad", figures.errors_per_second > 0);
    FIGURES.forEach((key, index) => this.sparks[index].draw(series[key]));
    this.bar.draw(server.levels, store.now, store.span);
  }
}

function wanted() {
  const words = $("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const state = $("state").value;
  const health = $("health").value;
  const found = [...store.servers.values()].filter((server) => {
    const text = [server.name, server.bind, server.expose, ...(server.tags || [])].join(" ").toLowerCase();
    return words.every((word) => text.includes(word)) && (!state || stateOf(server) === state) && (!health || server.health === health);
  });
  if (sort === "file") return found;
  const [key, usual] = SORTS[sort];
  const way = usual * (descending ? -1 : 1);
  return found.sort((one, other) => {
    const [left, right] = [key(one), key(other)];
    return (left < right ? -1 : left > right ? 1 : 0) * way;
  });
}

// Moves as few rows as possible, so that focus and selection stay where they are.
function arrange(servers) {
  const body = $("rows");
  const focused = document.activeElement;
  const inside = body.contains(focused);
  const names = new Set(servers.map((server) => server.name));
  for (const [name, row] of rows) {
    if (!store.servers.has(name)) {
      seen.unobserve(row.node);
      rows.delete(name);
      picked.delete(name);
    }
    if (!names.has(name)) row.node.remove();
  }
  let next = body.firstElementChild;
  for (const { name } of servers) {
    if (!rows.has(name)) rows.set(name, new Row(name));
    const { node } = rows.get(name);
    if (node === next) next = next.nextElementSibling;
    else body.insertBefore(node, next);
  }
  if (inside && document.activeElement !== focused && focused.isConnected) focused.focus({ preventScroll: true });
}

function drawBulk() {
  $("bulk").hidden = picked.size === 0;
  setText($("bulk-count"), picked.size ? `${plural(picked.size, "server")} selected` : "");
  const shown = wanted();
  const all = $("pick-all");
  const count = shown.filter((server) => picked.has(server.name)).length;
  all.checked = count > 0 && count === shown.length;
  all.indeterminate = count > 0 && count < shown.length;
}

function options(select, found) {
  const kept = select.value;
  // What was chosen, or comes from a link, stays chosen when no server is like that.
  const values = kept && !found.includes(kept) ? [...found, kept] : found;
  const now = [...select.options].slice(1).map((option) => option.value);
  if (now.join() === values.join()) return;
  select.replaceChildren(select.options[0], ...values.map((value) => el("option", { value }, value)));
  select.value = kept;
}

function drawOverview() {
  if (!charts) {
    tallies = { now: el("div", { class: "now" }), list: el("ul", { class: "tally", "aria-label": "Servers by state" }) };
    charts = {
      requests_per_second: new Chart("Requests per second", rate),
      errors_per_second: new Chart("Errors per second", rate),
      latency_p99_seconds: new Chart("Slowest p99 latency", latency),
      memory_bytes: new Chart("Memory", bytes),
    };
    $("overview").append(el("div", { class: "card" }, el("h2", {}, "Ready"), tallies.now, tallies.list), ...Object.values(charts).map((chart) => chart.node));
  }
  const all = [...store.servers.values()];
  // As `poolctl status` counts them.
  const should = all.filter((server) => !["disabled", "stopped", "sleeping"].includes(server.state) || server.ready);
  const ready = should.filter((server) => server.ready).length;
  setText(tallies.now, `${ready} of ${should.length}`);
  const counts = {};
  for (const server of all) {
    const word = stateWord(server);
    counts[word] ||= [0, server.level, word === stateOf(server)];
    counts[word][0] += 1;
  }
  drawTally(counts);
  drawCharts(charts, store.total, "", drawOverview);
}

// Each state with its number of servers; pressing it shows only these.
function drawTally(counts) {
  const chosen = $("state").value;
  const text = JSON.stringify([counts, chosen]);
  if (tallies.list.dataset.shown === text) return;
  tallies.list.dataset.shown = text;
  const focused = tallies.list.contains(document.activeElement) ? document.activeElement.dataset.word : "";
  const press = (word) => {
    if (!counts[word][2]) return sortBy("trouble", false);
    $("state").value = $("state").value === word ? "" : word;
    keepFilters();
    return drawServers();
  };
  tallies.list.replaceChildren(...Object.entries(counts).map(([word, [count, mark]]) => el("li", {},
    el("button", { type: "button", class: `badge ${mark}`, "data-word": word, "aria-pressed": String(chosen === word), title: `Show only servers that are ${word}`, onclick: () => press(word) }, `${count} ${word}`))));
  if (focused) [...tallies.list.querySelectorAll("button")].find((button) => button.dataset.word === focused)?.focus();
}

export function drawServers() {
  const all = [...store.servers.values()];
  options($("state"), [...new Set(all.map(stateOf))].sort());
  options($("health"), [...new Set(all.map((server) => server.health))].sort());
  const servers = wanted();
  arrange(servers);
  for (const { name } of servers) rows.get(name).draw();
  $("none").hidden = servers.length > 0 || !store.known;
  $("loading").hidden = store.known;
  $("overview").hidden = !store.known;
  $("table").hidden = servers.length === 0;
  setText($("shown"), !store.known ? "" : servers.length === all.length ? plural(all.length, "server") : `${servers.length} of ${plural(all.length, "server")}`);
  drawOverview();
  drawBulk();
}

let ticks = 0;

export function tick() {
  ticks += 1;
  // Rows that keep changing places can be neither read nor clicked.
  if (ticks % 5 === 0 && sort !== "file" && sort !== "name" && !$("rows").matches(":hover")) arrange(wanted());
  for (const row of rows.values()) row.draw();
  drawOverview();
}

function sortBy(name, turn) {
  if (turn && sort === name) descending = !descending;
  else descending = false;
  sort = name;
  $("sort").value = name;
  keepFilters(descending);
  for (const head of document.querySelectorAll("#table [data-sort]")) {
    if (head.dataset.sort !== sort) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", (SORTS[sort][1] > 0) !== descending ? "ascending" : "descending");
  }
  drawServers();
}

export function beginServers(reversed) {
  for (const id of ["search", "state", "health"]) $(id).addEventListener("input", drawServers);
  $("span").addEventListener("input", drawServers);
  $("sort").addEventListener("change", () => sortBy($("sort").value, false));
  for (const head of document.querySelectorAll("#table [data-sort]")) {
    head.firstElementChild.addEventListener("click", () => sortBy(head.dataset.sort, true));
  }
  sort = $("sort").value;
  sortBy(sort, reversed);
  $("pick-all").addEventListener("change", (event) => {
    for (const { name } of wanted()) picked[event.target.checked ? "add" : "delete"](name);
    drawServers();
    for (const row of rows.values()) row.box.checked = picked.has(row.name);
  });
  $("bulk-clear").addEventListener("click", () => {
    picked.clear();
    for (const row of rows.values()) row.box.checked = false;
    drawBulk();
    $("search").focus();
  });
  for (const button of document.querySelectorAll("#bulk [data-action]")) {
    button.addEventListener("click", () => act(button.dataset.action, [...picked], button));
  }
}
