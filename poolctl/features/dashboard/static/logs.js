// Log lines, followed as they are written.

import { $, el, setText } from "./dom.js";
import { clock } from "./format.js";
import { store } from "./store.js";

const SHOWN = 1000;
const MARKS = { trace: "faint", debug: "faint", warning: "odd", error: "bad", critical: "bad" };
// Colours and cursor movements of a terminal (ECMA-48).
const ESCAPES = /\u001b\[[0-?]*[ -/]*[@-~]|\u001b[@-_]|[\u0000-\u0008\u000b-\u001f\u007f]/g;

export class LogTail {
  constructor(node, { named = false, wanted = () => true, follows = () => true, onWaiting = () => {} } = {}) {
    Object.assign(this, { node, named, wanted, follows, onWaiting, lines: [], waiting: [], first: true });
    node.addEventListener("scroll", () => this.resume());
  }

  clear() {
    this.lines = [];
    this.waiting = [];
    this.first = true;
    this.node.replaceChildren();
    this.onWaiting(0);
  }

  // A stream that is opened again begins with the last lines, of which some are shown already.
  reopened() {
    this.first = true;
  }

  get atEnd() {
    return this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight < 40;
  }

  // New lines wait while older ones are being read.
  take(lines) {
    const last = (this.waiting.at(-1) || this.lines.at(-1))?.[0] ?? "";
    const news = this.first ? lines.filter(([time]) => time > last) : lines;
    this.first = false;
    this.waiting = [...this.waiting, ...news].slice(-SHOWN);
    if (!this.resume()) this.onWaiting(this.waiting.length);
  }

  resume() {
    const reads = this.lines.length > 0 && !(this.follows() && this.atEnd);
    if (reads) return false;
    if (this.waiting.length) {
      const news = this.waiting;
      this.waiting = [];
      this.lines = [...this.lines, ...news].slice(-SHOWN);
      this.node.append(...news.filter((line) => this.wanted(line)).map((line) => this.line(line)));
      while (this.node.children.length > SHOWN) this.node.firstElementChild.remove();
      if (this.follows()) this.node.scrollTop = this.node.scrollHeight;
      this.onWaiting(0);
    }
    return true;
  }

  line([time, name, text, level]) {
    return el("div", { class: MARKS[level] || "" }, el("span", { class: "t" }, `${clock(time)} `), ...(this.named ? [el("span", { class: "n" }, `${name} `)] : []), text.replace(ESCAPES, ""));
  }

  draw() {
    this.node.replaceChildren(...this.lines.filter((line) => this.wanted(line)).map((line) => this.line(line)));
    if (this.follows()) this.node.scrollTop = this.node.scrollHeight;
    this.resume();
  }
}

const words = () => $("log-search").value.trim().toLowerCase();
const tail = new LogTail($("log"), {
  named: true,
  wanted: ([, name, text]) => !words() || `${name} ${text}`.toLowerCase().includes(words()),
  follows: () => $("log-follow").checked,
  onWaiting: (count) => setText($("log-note"), count ? `${count === SHOWN ? `${SHOWN} or more` : count} new ${count === 1 ? "line waits" : "lines wait"}: ${$("log-follow").checked ? "scroll to the end" : "Follow"} shows them.` : ""),
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
