// The live stream of the pool's state, and of the log that is shown: watched, reopened, and closed in a hidden tab.

import { store } from "./store.js";

const MESSAGES = ["pool", "series", "changed", "stats", "event", "files"];
const AGAIN_MS = 2000;
// Something comes at least every five seconds. A connection can go silent without an error, such as one of a VPN.
const SILENCE_MS = 12000;
// A browser opens six connections to a server for all its tabs, so a hidden one asks for the state and hangs up.
const HIDDEN_MS = 30000;

export class Stream {
  // `onState` gets "connecting", "live", "gone" (the dashboard answers, the pool does not) or "lost"; `onRefused` is
  // called when the login has expired.
  constructor(onState, onRefused) {
    Object.assign(this, { onState, onRefused, source: null, wanted: false, heard: 0, timer: 0, watch: 0, log: null, query: "" });
    document.addEventListener("visibilitychange", () => {
      if (!this.wanted) return;
      if (document.hidden) this.rest();
      else {
        this.onState("connecting");
        this.open();
      }
    });
  }

  // Sends lines of this server, or of all for "", to `log`: those that `selection` wants; null for no log.
  follow(log, server = "", selection = {}) {
    const wanted = Object.entries(selection).filter(([, value]) => value);
    const query = log ? `?${new URLSearchParams([["log", server], ...wanted])}` : "";
    if (this.log === log && this.query === query) return;
    this.log?.clear();
    log?.clear();
    Object.assign(this, { log, query });
    if (this.wanted) this.open();
  }

  open() {
    this.close();
    this.wanted = true;
    this.heard = Date.now();
    const source = new EventSource(`/poolctl/stream${this.query}`);
    this.source = source;
    const on = (name, take) => source.addEventListener(name, (event) => {
      this.heard = Date.now();
      take(JSON.parse(event.data));
    });
    for (const name of MESSAGES) {
      on(name, (message) => {
        store[name](message);
        if (name === "pool") this.answered("live");
      });
    }
    on("gone", ({ message }) => this.answered("gone", message));
    on("lines", (lines) => this.log?.take(lines));
    on("search", ({ problem }) => this.log?.onProblem(problem));
    on("heartbeat", () => {});
    source.onopen = () => {
      this.heard = Date.now();
      this.log?.reopened();
    };
    source.onerror = () => {
      this.onState("lost");
      if (source.readyState === EventSource.CLOSED) {
        this.close();
        this.wanted = true;
        this.timer = setTimeout(() => this.onRefused(), AGAIN_MS);
      }
    };
    this.watch = setInterval(() => {
      if (Date.now() - this.heard < SILENCE_MS) return;
      this.onState("lost");
      this.open();
    }, AGAIN_MS);
  }

  answered(state, message) {
    this.onState(state, message);
    if (document.hidden) this.rest();
  }

  rest() {
    this.close();
    this.wanted = true;
    this.timer = setTimeout(() => this.open(), HIDDEN_MS);
  }

  close() {
    clearTimeout(this.timer);
    clearInterval(this.watch);
    this.source?.close();
    this.source = null;
    this.wanted = false;
  }
}
