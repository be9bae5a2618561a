// The page's state of the pool. Messages of the stream change it; listeners that draw are notified.

const SERIES = ["requests_per_second", "latency_p99_seconds", "memory_bytes"];
const SAMPLES = 60;
const MOST_EVENTS = 500;

class Store extends EventTarget {
  constructor() {
    super();
    this.clear();
  }

  clear() {
    this.about = {};
    this.servers = new Map();
    this.events = [];
    this.skew = 0;
    this.span = 3600;
    this.interval = 2;
    this.total = { rps: [], p99: [], memory: [] };
    this.known = false;
  }

  get now() {
    return Date.now() / 1000 + this.skew;
  }

  notify(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  pool(message) {
    this.clear();
    this.known = true;
    this.about = message.about;
    this.skew = message.now - Date.now() / 1000;
    this.span = message.span_seconds;
    this.interval = message.interval_seconds;
    this.events = message.events;
    for (const item of message.items) {
      this.take(item);
      const server = this.servers.get(item.name);
      server.figures = message.figures[item.name] || {};
      server.series = message.series[item.name] || Object.fromEntries(SERIES.map((key) => [key, []]));
      server.levels = message.levels[item.name] || [];
    }
    this.refill();
    this.notify("pool");
  }

  take(item) {
    const server = this.servers.get(item.name) || { figures: {}, series: Object.fromEntries(SERIES.map((key) => [key, []])), levels: [] };
    // The page counts the uptime itself.
    this.servers.set(item.name, { ...server, ...item, since: item.uptime_seconds > 0 ? this.now - item.uptime_seconds : 0 });
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
      for (const key of SERIES) {
        server.series[key].push(server.figures[key] ?? null);
        if (server.series[key].length > SAMPLES) server.series[key].shift();
      }
    }
    this.sum();
    this.notify("stats");
  }

  event(event) {
    this.events.push(event);
    if (this.events.length > MOST_EVENTS) this.events.shift();
    this.notify("event", event);
  }

  // The totals of the pool.
  sum() {
    let rps = null;
    let memory = null;
    let p99 = null;
    for (const { figures } of this.servers.values()) {
      if (figures.requests_per_second != null) rps = (rps ?? 0) + figures.requests_per_second;
      if (figures.memory_bytes != null) memory = (memory ?? 0) + figures.memory_bytes;
      if (figures.latency_p99_seconds != null && figures.requests_per_second > 0) p99 = Math.max(p99 ?? 0, figures.latency_p99_seconds);
    }
    for (const [key, value] of Object.entries({ rps, memory, p99 })) {
      this.total[key].push(value);
      if (this.total[key].length > SAMPLES) this.total[key].shift();
    }
  }

  refill() {
    const add = (one, other) => (other == null ? one : (one ?? 0) + other);
    const most = (one, other) => (other == null ? one : Math.max(one ?? 0, other));
    const keys = { rps: ["requests_per_second", add], memory: ["memory_bytes", add], p99: ["latency_p99_seconds", most] };
    for (const [key, [name, join]] of Object.entries(keys)) {
      const series = [...this.servers.values()].map((server) => server.series[name]);
      const length = Math.max(0, ...series.map((values) => values.length));
      this.total[key] = Array.from({ length }, (_, index) =>
        series.reduce((sum, values) => join(sum, values[values.length - length + index]), null));
    }
  }
}

export const store = new Store();

const TROUBLE = { ko: 0, warn: 1, ok: 4, asleep: 5, off: 6 };

export function level(server) {
  const { state, health, ready } = server;
  if (state === "stopped" && ready) return "ok";
  if (state === "stopped" || state === "disabled") return "off";
  if (state === "sleeping") return "asleep";
  if (state === "failed" || state === "backoff" || (state === "running" && health === "ko")) return "ko";
  if (state !== "running" || !ready || health === "warn") return "warn";
  return "ok";
}

export const trouble = (server) => TROUBLE[level(server)];
