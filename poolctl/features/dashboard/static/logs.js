// Log lines, followed as they are written.

import { $, el } from "./dom.js";
import { clock } from "./format.js";
import { store } from "./store.js";

const SHOWN = 1000;
const MARKS = { trace: "faint", debug: "faint", warning: "odd", error: "bad", critical: "bad" };
// Colours and cursor movements of a terminal (ECMA-48).
const ESCAPES = /\u001b\[[0-?]*[ -/]*[@-~]|\u001b[@-_]|[\u0000-\u0008\u000b-\u001f\u007f]/g;

export class LogTail {
  constructor(node, { named = false, wanted = () => true, follows = () => true } = {}) {
    Object.assign(this, { node, named, wanted, follows, lines: [], first: true });
  }

  clear() {
    this.lines = [];
    this.first = true;
    this.node.replaceChildren();
  }

  // A stream that is opened again begins with the last lines, of which some are shown already.
  reopened() {
    this.first = true;
  }

  take(lines) {
    const last = this.lines.at(-1)?.[0] ?? "";
    const news = this.first ? lines.filter(([time]) => time > last) : lines;
    this.first = false;
    this.lines = [...this.lines, ...news].slice(-SHOWN);
    this.add(news);
  }

  line([time, name, text, level]) {
    return el("div", { class: MARKS[level] || "" }, el("span", { class: "t" }, `${clock(time)} `), ...(this.named ? [el("span", { class: "n" }, `${name} `)] : []), text.replace(ESCAPES, ""));
  }

  draw() {
    const found = this.lines.filter((line) => this.wanted(line));
    this.node.replaceChildren(...found.map((line) => this.line(line)));
    if (this.follows()) this.node.scrollTop = this.node.scrollHeight;
  }

  add(lines) {
    const atEnd = this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight < 40;
    this.node.append(...lines.filter((line) => this.wanted(line)).map((line) => this.line(line)));
    while (this.node.children.length > SHOWN) this.node.firstElementChild.remove();
    if (this.follows() && atEnd) this.node.scrollTop = this.node.scrollHeight;
  }
}

const words = () => $("log-search").value.trim().toLowerCase();
const tail = new LogTail($("log"), {
  named: true,
  wanted: ([, name, text]) => !words() || `${name} ${text}`.toLowerCase().includes(words()),
  follows: () => $("log-follow").checked,
});

export function drawLogServers() {
  const select = $("log-server");
  if (!store.known) return;
  const names = [...store.servers.keys()];
  if ([...select.options].slice(1).map((option) => option.value).join("\n") === names.join("\n")) return;
  const kept = select.value;
  select.replaceChildren(el("option", { value: "" }, names.length > 50 ? "the first 50" : "all"), ...names.map((name) => el("option", { value: name }, name)));
  select.value = names.includes(kept) ? kept : "";
}

export function followLogs(stream) {
  stream.follow(tail, $("log-server").value ? [$("log-server").value] : []);
}

export function beginLogs(stream) {
  $("log-server").addEventListener("change", () => followLogs(stream));
  $("log-search").addEventListener("input", () => tail.draw());
  $("log-follow").addEventListener("change", () => tail.draw());
}
