// Log lines, followed as they are written.

import { $, el, setText } from "./dom.js";
import { clock } from "./format.js";
import { store } from "./store.js";

const SHOWN = 1000;
const MARKS = { trace: "faint", debug: "faint", warning: "odd", error: "bad", critical: "bad" };
// Colours and cursor movements of a terminal (ECMA-48).
const ESCAPES = /\u001b\[[0-?]*[ -/]*[@-~]|\u001b[@-_]|[\u0000-\u0008\u000b-\u001f\u007f]/g;

export class LogTail {
  constructor(node, { named = false, wanted = () => true, follows = () => true, onNote = () => {} } = {}) {
    Object.assign(this, { node, named, wanted, follows, onNote, source: null, lines: [] });
  }

  open(servers) {
    this.close();
    const query = servers.map((name) => `server=${encodeURIComponent(name)}`).join("&");
    const source = new EventSource(`/poolctl/logs?${query}`);
    this.source = source;
    let first = true;
    source.onopen = () => {
      first = true;
      this.onNote("");
    };
    source.addEventListener("lines", (event) => {
      const lines = JSON.parse(event.data);
      if (first) this.lines = [];
      this.lines = [...this.lines, ...lines].slice(-SHOWN);
      if (first) this.draw();
      else this.add(lines);
      first = false;
    });
    source.onerror = () => this.onNote("No connection: new log lines do not arrive. Reconnecting.");
  }

  close() {
    this.source?.close();
    this.source = null;
    this.lines = [];
    this.node.replaceChildren();
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
  onNote: (text) => setText($("log-note"), text),
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

export function showLogs() {
  drawLogServers();
  tail.open($("log-server").value ? [$("log-server").value] : []);
}

export const hideLogs = () => tail.close();

export function beginLogs() {
  $("log-server").addEventListener("change", showLogs);
  $("log-search").addEventListener("input", () => tail.draw());
  $("log-follow").addEventListener("change", () => tail.draw());
}
