// The live stream: reconnects automatically, and reports the state of the connection.

import { store } from "./store.js";

const MESSAGES = ["pool", "changed", "stats", "event", "files"];
const AGAIN_MS = 2000;

export class Stream {
  // `onState` gets "live", "gone" (the dashboard answers, the pool does not) or "lost"; `onRefused` is called when the login has expired.
  constructor(onState, onRefused) {
    this.onState = onState;
    this.onRefused = onRefused;
    this.source = null;
    this.timer = 0;
  }

  open() {
    this.close();
    const source = new EventSource("/poolctl/stream");
    this.source = source;
    for (const name of MESSAGES) {
      source.addEventListener(name, (event) => {
        store[name](JSON.parse(event.data));
        if (name === "pool") this.onState("live");
      });
    }
    source.addEventListener("gone", (event) => this.onState("gone", JSON.parse(event.data).message));
    source.onerror = () => {
      this.onState("lost");
      if (source.readyState === EventSource.CLOSED) {
        this.close();
        this.timer = setTimeout(() => this.onRefused(), AGAIN_MS);
      }
    };
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }
}
