// Events, newest first.

import { $, el } from "./dom.js";
import { dayAndTime, moment } from "./format.js";
import { store } from "./store.js";

const SHOWN = 300;
const MARKS = { error: "ko", warning: "warn" };

export function who(event) {
  const by = event.by;
  if (!by) return "";
  const name = by.user || (by.uid === undefined ? "" : `uid ${by.uid}`);
  return [by.command, name && `by ${name}`, by.address && `from ${by.address}`].filter(Boolean).join(" ");
}

function eventLine(event, named = true) {
  const said = [el("span", {}, event.text)];
  if (who(event)) said.push(el("span", { class: "who" }, ` · ${who(event)}`));
  if (event.lines?.length) said.push(el("details", {}, el("summary", {}, "Last output"), el("pre", {}, event.lines.join("\n"))));
  const server = event.server ? el("a", { href: `#server/${encodeURIComponent(event.server)}` }, event.server) : el("span");
  return el("li", { class: named ? "" : "own" },
    el("time", { dateTime: event.time, title: moment(event.time) }, dayAndTime(event.time)),
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

// What belongs to a crash loop, beside the crashes themselves.
const BETWEEN = ["backoff", "starting", "running"];
const PAUSE_MS = 10 * 60 * 1000;

// The events by line, oldest first. Crashes of a server in a row, for one cause, are one line with their number.
export function eventLines(events) {
  const lines = [];
  const loops = new Map(); // the loop of each server that may go on
  for (const event of events) {
    const crashed = event.kind === "lifecycle" && event.event === "worker ended" && event.severity !== "info";
    const loop = loops.get(event.server);
    const goesOn = loop && !event.by && (crashed
      ? loop.cause === event.cause && new Date(event.time) - new Date(loop.events.at(-1).time) < PAUSE_MS
      : event.kind === "lifecycle" && BETWEEN.includes(event.event));
    if (goesOn) {
      loop.events.push(event);
      loop.crashes += crashed;
      continue;
    }
    const line = { events: [event], crashes: Number(crashed), cause: event.cause };
    lines.push(line);
    if (crashed && !event.by) loops.set(event.server, line);
    else loops.delete(event.server);
  }
  return lines.flatMap(({ events: all, crashes, cause }) => {
    if (crashes < 2) return all.map((event) => ({ events: [event] }));
    const recovered = all.at(-1).event === "running" ? [{ events: [all.pop()] }] : [];
    return [{ events: all, crashes, cause }, ...recovered];
  }).sort((one, other) => one.events.at(-1).seq - other.events.at(-1).seq);
}

const drawn = new WeakMap(); // the element of each event

export function drawLine({ events, crashes, cause }, named = true) {
  const last = events.at(-1);
  if (crashes) {
    const seconds = (new Date(last.time) - new Date(events[0].time)) / 1000;
    const took = seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`;
    return eventLine({ ...last, severity: "error", text: `${crashes} times in ${took}: ${cause.replace(" before it was ready: ", ", ")}`, lines: null, by: null }, named);
  }
  if (!drawn.has(last)) drawn.set(last, {});
  return (drawn.get(last)[named] ||= eventLine(last, named));
}

export function drawEvents() {
  kinds();
  const found = eventLines(store.events.filter(isWanted)).slice(-SHOWN).reverse();
  $("event-list").replaceChildren(...found.map((line) => drawLine(line)));
  $("no-events").hidden = found.length > 0;
}

export function beginEvents() {
  for (const id of ["event-kind", "event-search"]) $(id).addEventListener("input", drawEvents);
}
