// The page's state of the pool. Messages of the stream change it; listeners that draw are notified.

const SERIES = ["requests_per_second", "errors_per_second", "latency_p99_seconds", "memory_bytes"];
const SAMPLES = 60;
const MOST_EVENTS = 500;
const MOST_RESTARTS = 500;

const empty = () => Object.fromEntries(SERIES.map((key) => [key, []]));

class Store extends EventTarget {
  constructor() {
    super();
    this.restarts = []; // the latest ones, each with its time and the server's name
    this.clear();
  }

  clear() {
    this.about = {};
    this.servers = new Map();
    this.events = [];
    this.drift = ""; // what is said of files that have changed since the pool read them
    this.skew = 0;
    this.span = 3600;
    this.interval = 2;
    this.total = empty();
    this.known = false;
  }

  get now() {
    return Date.now() / 1000 + this.skew;
  }

  notify(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  pool(message) {
    const before = this.servers;
    this.clear();
    this.known = true;
    this.about = message.about;
    this.skew = message.now - Date.now() / 1000;
    this.span = message.span_seconds;
    this.interval = message.interval_seconds;
    this.events = message.events;
    this.drift = message.files;
    for (const item of message.items) {
      this.take(item, before.get(item.name));
      const server = this.servers.get(item.name);
      server.figures = message.figures[item.name];
      server.series = empty();
      server.levels = message.levels[item.name] || [];
    }
    this.notify("pool");
  }

  series(message) {
    for (const [name, series] of Object.entries(message)) {
      if (this.servers.has(name)) this.servers.get(name).series = { ...empty(), ...series };
    }
    for (let back = SAMPLES; back > 0; back -= 1) this.sum(back);
    this.notify("pool");
  }

  take(item, before = this.servers.get(item.name)) {
    if (before && item.restarts > before.restarts) keep(this.restarts, { time: this.now, name: item.name }, MOST_RESTARTS);
    const server = before || { figures: {}, series: empty(), levels: [] };
    // The page counts the uptime itself.
    this.servers.set(item.name, { ...server, reason: "", ...item, since: item.uptime_seconds > 0 ? this.now - item.uptime_seconds : 0 });
  }

  changed(message) {
    for (const name of message.removed) this.servers.delete(name);
    for (const item of message.items) {
      this.take(item);
      this.servers.get(item.name).levels = message.levels[item.name] || [];
    }
    const all = this.servers;
    this.servers = new Map(message.order.filter((name) => all.has(name)).map((name) => [name, all.get(name)]));
    this.notify("changed", message);
  }

  stats(message) {
    this.skew = message.now - Date.now() / 1000;
    for (const [name, figures] of Object.entries(message.servers)) {
      if (this.servers.has(name)) this.servers.get(name).figures = figures;
    }
    for (const server of this.servers.values()) {
      for (const key of SERIES) keep(server.series[key], server.figures[key] ?? null, SAMPLES);
    }
    this.sum(1);
    this.notify("stats");
  }

  files(message) {
    this.drift = message.message;
    this.notify("files");
  }

  event(event) {
    keep(this.events, event, MOST_EVENTS);
    this.notify("event", event);
  }

  // Adds the pool's totals of a moment: that of the last figures is 1, the one before 2.
  sum(back) {
    let [rps, failed, p99, memory] = [null, null, null, null];
    for (const { series } of this.servers.values()) {
      const [requests, errors, latency, bytes] = SERIES.map((key) => series[key].at(-back));
      if (requests != null) rps = (rps ?? 0) + requests;
      if (errors != null) failed = (failed ?? 0) + errors;
      if (bytes != null) memory = (memory ?? 0) + bytes;
      if (latency != null && requests > 0) p99 = Math.max(p99 ?? 0, latency);
    }
    [rps, failed, p99, memory].forEach((value, index) => keep(this.total[SERIES[index]], value, SAMPLES));
  }

  // How many restarts each of the last samples had, of a server or of all ("").
  marks(name) {
    const found = Array(SAMPLES).fill(0);
    for (const { time, name: restarted } of this.restarts) {
      const back = Math.floor((this.now - time) / this.interval);
      if (back < SAMPLES && (!name || name === restarted)) found[SAMPLES - 1 - Math.max(0, back)] += 1;
    }
    return found;
  }
}

function keep(list, value, most) {
  list.push(value);
  if (list.length > most) list.shift();
}

export const store = new Store();

const TROUBLE = { ko: 0, warn: 1, busy: 2, ok: 4, asleep: 5, off: 6 };

export const trouble = (server) => TROUBLE[server.level];
