// Log lines, selected by the dashboard and followed as they are written.

import { $, el, setText } from "./dom.js";
import { note } from "./actions.js";
import { clock, plural } from "./format.js";
import { store } from "./store.js";

const SHOWN = 1000;
const MARKS = { trace: "faint", debug: "faint", warning: "odd", error: "bad", critical: "bad" };
// Control sequences of a terminal (ECMA-48), of which the 16 colours and bold take effect.
const ESCAPES = /\u001b\[[0-?]*[ -/]*[@-~]|\u001b[@-_]|[\u0000-\u0008\u000b-\u001f\u007f]/g;
const COLOURS = /\u001b\[([\d;]*)m/;
const MAX_PIECES = 200;

const plain = (text) => text.replace(ESCAPES, "");

// The text in pieces, each a node of its colour; what comes after MAX_PIECES has the last colour.
export function coloured(text) {
  const pieces = text.split(COLOURS); // texts, and between them the codes
  const rest = pieces.splice(2 * MAX_PIECES + 1).filter((_, index) => index % 2).join("");
  let [colour, bold] = ["", false];
  return [...pieces, "", rest].map((piece, index) => {
    if (index % 2 === 0) {
      const classes = [colour, bold && "bold"].filter(Boolean).join(" ");
      return classes ? el("span", { class: classes }, plain(piece)) : plain(piece);
    }
    for (const code of piece.split(";").map(Number)) {
      if (code === 0) [colour, bold] = ["", false];
      else if (code === 1) bold = true;
      else if (code === 22) bold = false;
      else if (code === 39) colour = "";
      else if (code >= 30 && code <= 37) colour = `ansi${code - 30}`;
      else if (code >= 90 && code <= 97) colour = `ansi${code - 82}`;
      else if (code === 38 || code === 48) break; // of 256 or all colours
    }
    return "";
  });
}

export class LogTail {
  constructor(node, { named = false, follows = () => true, onWaiting = () => {}, onProblem = () => {} } = {}) {
    Object.assign(this, { node, named, follows, onWaiting, onProblem, lines: [], waiting: [], first: true });
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
      this.node.append(...news.map((line) => this.line(line)));
      while (this.node.children.length > SHOWN) this.node.firstElementChild.remove();
      if (this.follows()) this.node.scrollTop = this.node.scrollHeight;
      this.onWaiting(0);
    }
    return true;
  }

  line([time, name, text, level]) {
    return el("div", { class: MARKS[level] || "" }, el("span", { class: "t" }, `${clock(time)} `), ...(this.named ? [el("span", { class: "n" }, `${name} `)] : []), ...coloured(text));
  }

  get text() {
    return this.lines.map(([time, name, text]) => `${[time, ...(this.named ? [name] : []), plain(text)].join(" ")}\n`).join("");
  }
}

const count = (lines) => (lines === SHOWN ? `${SHOWN} or more new lines wait` : `${plural(lines, "new line")} ${lines === 1 ? "waits" : "wait"}`);
const tail = new LogTail($("log"), {
  named: true,
  follows: () => $("log-follow").checked,
  onWaiting: (lines) => setText($("log-note"), lines ? `${count(lines)}: ${$("log-follow").checked ? "scroll to the end" : "Follow"} shows them.` : ""),
  onProblem: (text) => {
    $("log-problem").hidden = false;
    setText($("log-problem"), text);
  },
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
  $("log-problem").hidden = true;
  stream.follow(tail, $("log-server").value, { level: $("log-level").value, age: $("log-age").value, grep: $("log-search").value });
}

async function copy() {
  // Browsers have a clipboard only for pages with TLS, or on this machine.
  try {
    await navigator.clipboard.writeText(tail.text);
    note(`${plural(tail.lines.length, "line")} copied.`);
  } catch {
    getSelection().selectAllChildren($("log"));
    note("The browser does not let this page copy: the lines are selected.");
  }
}

function download() {
  const url = URL.createObjectURL(new Blob([tail.text], { type: "text/plain" }));
  el("a", { href: url, download: `${$("log-server").value || store.about.name || "poolctl"}.log` }).click();
  URL.revokeObjectURL(url);
}

const TYPED_MS = 400; // after the last letter of an expression

export function beginLogs(stream) {
  let typed = 0;
  for (const id of ["log-server", "log-level", "log-age"]) $(id).addEventListener("change", () => followLogs(stream));
  $("log-search").addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => $("view-logs").hidden || followLogs(stream), TYPED_MS);
  });
  $("log-follow").addEventListener("change", () => {
    if ($("log-follow").checked) tail.node.scrollTop = tail.node.scrollHeight;
    tail.resume();
  });
  $("log-copy").addEventListener("click", copy);
  $("log-download").addEventListener("click", download);
}
