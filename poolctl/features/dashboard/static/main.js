// The page: login, the current view, and the state of the connection.

import { LoggedOut, login, post, session, sessions } from "./api.js";
import { note } from "./actions.js";
import { $, announce, setText } from "./dom.js";
import { beginEvents, drawEvents } from "./events.js";
import { beginFilters, readFilters } from "./filters.js";
import { forgetHistory } from "./history.js";
import { beginLogs, drawLogServers, followLogs } from "./logs.js";
import { hideRoutes, showRoutes } from "./routes.js";
import { beginServer, drawServer, hideServer, serverLog, showServer } from "./server.js";
import { beginServers, drawServers, stateWord, tick } from "./servers.js";
import { store } from "./store.js";
import { Stream } from "./stream.js";
import { beginTheme } from "./theme.js";

const VIEWS = ["servers", "server", "events", "logs", "routes"];
let view = "";
let inside = false;

function route() {
  const [name, argument = ""] = location.hash.slice(1).split("/");
  return [VIEWS.includes(name) ? name : "servers", decode(argument)];
}

// An address may be damaged, such as by a mail program.
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function show(focus = true) {
  if (!inside) return;
  const [name, argument] = route();
  if (view === "server") hideServer();
  if (view === "routes") hideRoutes();
  view = name;
  for (const each of VIEWS) $(`view-${each}`).hidden = each !== name;
  for (const link of $("nav").children) {
    if (link.hash === `#${name === "server" ? "servers" : name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  followLog(name, argument);
  if (name === "server") showServer(argument);
  if (name === "routes") showRoutes().catch((error) => inside && note(error.message, true));
  draw();
  drawTitle();
  if (focus) {
    window.scrollTo(0, 0);
    $(`${name}-title`).focus({ preventScroll: true });
  }
}

function followLog(name, argument) {
  if (name === "server") stream.follow(serverLog, argument);
  else if (name === "logs") followLogs(stream);
  else stream.follow(null);
}

function draw() {
  setText($("pool-name"), store.about.name || "poolctl");
  drawFiles();
  if (view === "servers") drawServers();
  if (view === "server") drawServer();
  if (view === "events") drawEvents();
  if (view === "logs") drawLogServers();
}

// Title and icon of a tab in the background say how many servers fail.
function drawTitle() {
  if (!inside) return;
  const failing = [...store.servers.values()].filter((server) => server.level === "ko").length;
  const [name, argument] = route();
  const title = name === "server" ? argument : $(`${name}-title`).textContent;
  document.title = `${failing ? `(${failing}) ` : ""}${title} · ${store.about.name || "poolctl"}`;
  drawIcon(failing);
}

function drawIcon(failing) {
  const icon = $("icon");
  icon.dataset.plain ||= icon.href;
  const wanted = failing ? new URL(`/icon/${Math.min(failing, 99)}.svg`, location).href : icon.dataset.plain;
  if (icon.href !== wanted) icon.href = wanted;
}

const SETTLE_MS = 600; // for changes that come together, such as those of a restart
let said = new Map(); // the words for each server
let saying = 0;

const wordsFor = (server) => [stateWord(server), ["warn", "ko"].includes(server.health) && `health ${server.health}`].filter(Boolean).join(", ");

// Has screen readers say which server has changed, or how many have.
function announceChanges() {
  saying ||= setTimeout(() => {
    saying = 0;
    const now = new Map([...store.servers.values()].map((server) => [server.name, wordsFor(server)]));
    const changed = {};
    for (const [name, words] of now) if (said.size && said.get(name) !== words) (changed[words] ||= []).push(name);
    said = now;
    const text = Object.entries(changed).map(([words, names]) => (names.length === 1 ? `${names[0]} is ${words}.` : `${names.length} servers are ${words}.`));
    if (text.length) announce(text.join(" "));
  }, SETTLE_MS);
}

function drawFiles() {
  setText($("files"), store.drift);
  $("files").hidden = !store.drift;
}

let lostTimer = 0;

function state(now, message = "") {
  if (now === "connecting") {
    link("lost", "connecting");
    return;
  }
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
  show(false);
  if (!stream.wanted) openStream();
}

function openStream() {
  link("lost", "connecting");
  followLog(...route());
  stream.open();
}

let again = 0;

// Shows the login; nothing is asked for until somebody logs in.
function leave(reason = "") {
  clearTimeout(again);
  clearTimeout(lostTimer);
  lostTimer = 0;
  inside = false;
  stream.close();
  stream.follow(null);
  hideServer();
  hideRoutes();
  store.clear();
  forgetHistory();
  $("confirm").close();
  $("notes").replaceChildren();
  draw();
  gone("");
  view = "";
  for (const each of VIEWS) $(`view-${each}`).hidden = true;
  $("nav").hidden = $("logout").hidden = true;
  link("", "");
  clearTimeout(saying);
  saying = 0;
  said = new Map();
  document.title = "poolctl";
  drawIcon(0);
  setText($("login-error"), reason);
  $("view-login").hidden = false;
  $("token").value = "";
  $("token").focus();
}

// A link may contain a code, or the token, behind the "#", which browsers send to no server.
function codeOfLink() {
  const match = /^#token=([^&]+)$/.exec(location.hash);
  if (!match) return "";
  history.replaceState(null, "", location.pathname + location.search);
  return match[1];
}

async function begin(code = codeOfLink()) {
  clearTimeout(again);
  let refusal = "";
  try {
    if (code) {
      await login(decode(code)).catch((error) => {
        if (error instanceof TypeError) throw error; // no connection
        refusal = error.message;
      });
    }
    // Whoever is logged in already needs no link, even if it was used.
    if (!code || refusal) {
      openStream(); // meanwhile: the cookie is probably valid
      await session();
    }
    enter();
  } catch (error) {
    if (error instanceof LoggedOut) leave(refusal);
    else {
      state("lost");
      again = setTimeout(() => begin(code), 2000);
    }
  }
}

beginTheme();
const reversed = readFilters();
beginServers(reversed);
beginServer();
beginEvents();
beginLogs(stream);
beginFilters(() => (inside ? view : ""));
sessions.addEventListener("ended", () => inside && leave("The session has ended: log in again."));
for (const kind of ["pool", "changed"]) {
  store.addEventListener(kind, () => {
    draw();
    drawTitle();
    announceChanges();
  });
}
store.addEventListener("stats", () => {
  if (view === "servers") tick();
  if (view === "server") drawServer();
});
store.addEventListener("files", drawFiles);
store.addEventListener("event", () => {
  if (view === "events") drawEvents();
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
  stream.close();
  await post("logout", {}).catch(() => {});
  leave();
});
begin();
