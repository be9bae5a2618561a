// Events, newest first.

import { $, el } from "./dom.js";
import { clock, moment } from "./format.js";
import { store } from "./store.js";

const SHOWN = 300;
const MARKS = { error: "ko", warning: "warn" };

export function who(event) {
  const by = event.by;
  if (!by) return "";
  const name = by.user || (by.uid === undefined ? "" : `uid ${by.uid}`);
  return [by.command, name && `by ${name}`, by.address && `from ${by.address}`].filter(Boolean).join(" ");
}

export function eventLine(event, named = true) {
  const said = [el("span", {}, event.text)];
  if (who(event)) said.push(el("span", { class: "who" }, ` · ${who(event)}`));
  if (event.lines?.length) said.push(el("details", {}, el("summary", {}, "Last output"), el("pre", {}, event.lines.join("\n"))));
  const server = event.server ? el("a", { href: `#server/${encodeURIComponent(event.server)}` }, event.server) : el("span");
  return el("li", { class: named ? "" : "own" },
    el("time", { dateTime: event.time, title: moment(event.time) }, clock(event.time)),
    el("span", {}, el("span", { class: `badge ${MARKS[event.severity] || "off"}` }, event.kind)),
    named ? server : null,
    el("span", { class: "what" }, ...said));
}

function isWanted(event) {
  const kind = $("event-kind").value;
  const words = $("event-search").value.trim().toLowerCase();
  return (!kind || event.kind === kind) && (!words || JSON.stringify(event).toLowerCase().includes(words));
}

function kinds() {
  const select = $("event-kind");
  const there = new Set([...select.options].map((option) => option.value));
  for (const { kind } of store.events) {
    if (!there.has(kind)) select.append(el("option", { value: kind }, kind));
    there.add(kind);
  }
}

export function drawEvents() {
  kinds();
  const found = store.events.filter(isWanted).slice(-SHOWN).reverse();
  $("event-list").replaceChildren(...found.map((event) => eventLine(event)));
  $("no-events").hidden = found.length > 0;
}

export function addEvent(event) {
  kinds();
  if (!isWanted(event)) return;
  $("event-list").prepend(eventLine(event));
  if ($("event-list").children.length > SHOWN) $("event-list").lastElementChild.remove();
  $("no-events").hidden = true;
}

export function beginEvents() {
  for (const id of ["event-kind", "event-search"]) $(id).addEventListener("input", drawEvents);
}
