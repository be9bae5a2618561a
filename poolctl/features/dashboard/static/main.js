// The page: login, the current view, and the state of the connection.

import { LoggedOut, login, post, session } from "./api.js";
import { note } from "./actions.js";
import { $, announce, setText } from "./dom.js";
import { addEvent, beginEvents, drawEvents } from "./events.js";
import { beginFilters, readFilters } from "./filters.js";
import { forgetHistory } from "./history.js";
import { beginLogs, drawLogServers, hideLogs, showLogs } from "./logs.js";
import { hideRoutes, showRoutes } from "./routes.js";
import { beginServer, drawServer, hideServer, showServer } from "./server.js";
import { beginServers, drawServers, tick } from "./servers.js";
import { store } from "./store.js";
import { Stream } from "./stream.js";
import { beginTheme } from "./theme.js";

const VIEWS = ["servers", "server", "events", "logs", "routes"];
let view = "";
let inside = false;

function route() {
  const [name, argument = ""] = location.hash.slice(1).split("/");
  return [VIEWS.includes(name) ? name : "servers", decodeURIComponent(argument)];
}

function show(focus = true) {
  if (!inside) return;
  const [name, argument] = route();
  if (view === "server") hideServer();
  if (view === "logs") hideLogs();
  if (view === "routes") hideRoutes();
  view = name;
  for (const each of VIEWS) $(`view-${each}`).hidden = each !== name;
  for (const link of $("nav").children) {
    if (link.hash === `#${name === "server" ? "servers" : name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "server") showServer(argument);
  if (name === "logs") showLogs();
  if (name === "routes") showRoutes().catch((error) => note(error.message, true));
  draw();
  document.title = `${name === "server" ? argument : $(`${name}-title`).textContent} · ${store.about.name || "poolctl"}`;
  if (focus) {
    window.scrollTo(0, 0);
    $(`${name}-title`).focus({ preventScroll: true });
  }
}

function draw() {
  setText($("pool-name"), store.about.name || "poolctl");
  drawFiles();
  if (view === "servers") drawServers();
  if (view === "server") drawServer();
  if (view === "events") drawEvents();
  if (view === "logs") drawLogServers();
}

function drawFiles() {
  setText($("files"), store.drift);
  $("files").hidden = !store.drift;
}

let lostTimer = 0;

function state(now, message = "") {
  if (now !== "lost") {
    clearTimeout(lostTimer);
    lostTimer = 0;
  }
  if (now === "live") {
    link("live", "live");
    gone("");
  } else if (now === "gone") {
    link("lost", "pool unreachable");
    gone(`The pool does not answer: ${message}. The page shows its last known state, and updates again when the pool answers.`);
  } else {
    link("lost", "reconnecting");
    // Usually the connection is back before anyone could read the message; each failed attempt calls this again.
    lostTimer ||= setTimeout(() => gone("The dashboard does not answer: the pool was stopped, or cannot be reached. The page shows its last known state. Reconnecting."), 2500);
  }
}

function link(mark, text) {
  $("link").className = `link ${mark}`;
  setText($("link"), text);
}

function gone(text) {
  if ($("gone").textContent !== text) $("gone").textContent = text;
  $("gone").hidden = !text;
  $("main").classList.toggle("stale", Boolean(text));
}

const stream = new Stream(state, () => begin());

function enter() {
  inside = true;
  $("view-login").hidden = true;
  $("nav").hidden = $("logout").hidden = false;
  link("lost", "connecting");
  stream.open();
  show(false);
}

function leave() {
  inside = false;
  stream.close();
  hideServer();
  hideLogs();
  store.clear();
  forgetHistory();
  draw();
  gone("");
  clearTimeout(lostTimer);
  lostTimer = 0;
  view = "";
  for (const each of VIEWS) $(`view-${each}`).hidden = true;
  $("nav").hidden = $("logout").hidden = true;
  link("", "");
  $("view-login").hidden = false;
  $("token").value = "";
  $("token").focus();
}

// A link may contain the token behind the "#", which browsers send to no server.
function tokenOfLink() {
  const match = /^#token=([^&]+)$/.exec(location.hash);
  if (!match) return "";
  history.replaceState(null, "", location.pathname + location.search);
  return decodeURIComponent(match[1]);
}

async function begin() {
  const token = tokenOfLink();
  try {
    await (token ? login(token) : session());
    enter();
  } catch (error) {
    if (error instanceof LoggedOut || token) {
      leave();
      setText($("login-error"), token ? error.message : "");
    } else {
      state("lost");
      setTimeout(begin, 2000);
    }
  }
}

beginTheme();
const reversed = readFilters();
beginServers(reversed);
beginServer();
beginEvents();
beginLogs();
beginFilters(() => (inside ? view : ""));
store.addEventListener("pool", draw);
store.addEventListener("changed", ({ detail }) => {
  draw();
  for (const item of detail.items) {
    if (["failed", "backoff"].includes(item.state) || item.health === "ko") announce(`${item.name} is ${item.state}, health ${item.health}`);
  }
});
store.addEventListener("stats", () => {
  if (view === "servers") tick();
  if (view === "server") drawServer();
});
store.addEventListener("files", drawFiles);
store.addEventListener("event", ({ detail }) => {
  if (view === "events") addEvent(detail);
});
window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#token=")) begin();
  else show();
});
$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  setText($("login-error"), "");
  try {
    await login($("token").value);
    $("token").value = "";
    enter();
    $("servers-title").focus();
  } catch (error) {
    setText($("login-error"), error.message);
    $("token").select();
  }
});
$("logout").addEventListener("click", async () => {
  await post("logout", {}).catch(() => {});
  leave();
});
begin();
