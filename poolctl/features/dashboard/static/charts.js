// Charts, sparklines and history bars: small SVG images, each with a sentence for screen readers.

import { el, setText, svg } from "./dom.js";
import { duration, plural } from "./format.js";

const WIDTH = 300;
const HEIGHT = 80;
const SAMPLES = 60;

function points(values, most, width, height) {
  const step = values.length > 1 ? width / (values.length - 1) : 0;
  return values.map((value, index) =>
    value === null || value === undefined ? null : [index * step, height - (value / most) * height]);
}

// Missing figures leave a gap in the line.
function lines(found) {
  let path = "";
  let open = false;
  for (const point of found) {
    if (point) path += `${open ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    open = Boolean(point);
  }
  return path;
}

function area(found, height) {
  let path = "";
  let piece = [];
  for (const point of [...found, null]) {
    if (point) piece.push(point);
    else if (piece.length > 1) path += `${lines(piece)}L${piece.at(-1)[0].toFixed(1)} ${height}L${piece[0][0].toFixed(1)} ${height}Z`;
    if (!point) piece = [];
  }
  return path;
}

function padded(values, count) {
  return values.length >= count ? values.slice(-count) : [...Array(count - values.length).fill(null), ...values];
}

export function sparkline() {
  const line = svg("path", { class: "line" });
  const picture = svg("svg", { class: "spark", viewBox: "0 -1 100 22", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  return {
    node: picture,
    draw(values) {
      const all = padded(values || [], SAMPLES);
      line.setAttribute("d", lines(points(all, Math.max(...all.map((each) => each ?? 0), 1e-9), 100, 20)));
    },
  };
}

export class Chart {
  // `show` formats a figure.
  constructor(title, show) {
    this.show = show;
    this.title = title;
    this.values = [];
    this.marks = [];
    this.pointed = null; // the interval that is read
    this.now = el("div", { class: "now" });
    this.fill = svg("path", { class: "area" });
    this.path = svg("path", { class: "line" });
    this.marked = svg("path", { class: "mark" });
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.picture = svg(
      "svg",
      { viewBox: `0 -2 ${WIDTH} ${HEIGHT + 4}`, preserveAspectRatio: "none", role: "slider", tabindex: 0, "aria-readonly": "true" },
      ...[0, HEIGHT / 2, HEIGHT].map((y) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y })),
      this.fill, this.path, this.marked, this.cursor,
    );
    this.begin = el("span");
    this.most = el("span");
    this.top = el("span");
    this.middle = el("span");
    const scale = el("div", { class: "scale", "aria-hidden": "true" }, this.top, this.middle);
    this.node = el("div", { class: "card" }, el("h2", {}, title), this.now, el("div", { class: "plot" }, this.picture, scale),
      el("div", { class: "axis", "aria-hidden": "true" }, this.begin, this.most, el("span", {}, "now")));
    this.picture.addEventListener("pointermove", (event) => {
      const box = this.picture.getBoundingClientRect();
      this.point(Math.round(((event.clientX - box.left) / box.width) * (this.values.length - 1)));
    });
    this.picture.addEventListener("keydown", (event) => {
      const last = this.values.length - 1;
      const at = this.pointed ?? last;
      const index = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last }[event.key];
      if (index === undefined) return;
      event.preventDefault();
      this.point(index);
    });
    for (const away of ["pointerleave", "blur"]) this.picture.addEventListener(away, () => this.point(null));
  }

  // `count` figures at intervals of `seconds`, the last one of now; `marks` says how many restarts each interval had.
  draw(values, { label, seconds = 2, count = SAMPLES, marks = [] }) {
    this.seconds = seconds;
    this.values = padded(values, count);
    this.marks = padded(marks, count);
    const known = values.filter((value) => value !== null && value !== undefined);
    const most = Math.max(...known, 1e-9);
    const found = points(this.values, most, WIDTH, HEIGHT);
    this.path.setAttribute("d", lines(found));
    this.fill.setAttribute("d", area(found, HEIGHT));
    this.marked.setAttribute("d", runs(this.marks).map(([from, to]) => `M${this.x(from)} 0V${HEIGHT}H${this.x(to)}V0Z`).join(""));
    const now = this.values.at(-1);
    setText(this.begin, `${duration(count * seconds)} ago`);
    const highest = this.show(known.length ? Math.max(...known) : null);
    const any = highest !== "–";
    setText(this.most, any ? `highest ${highest}` : "no figures yet");
    const scaled = known.some((value) => value > 0);
    setText(this.top, scaled ? this.show(most) : "");
    setText(this.middle, scaled ? this.show(most / 2) : "");
    this.point(this.pointed ?? null);
    this.picture.setAttribute("aria-valuemin", 1 - count);
    this.picture.setAttribute("aria-valuemax", 0);
    const restarts = this.marks.reduce((sum, each) => sum + (each || 0), 0);
    const say = any ? `now ${this.show(now)}, highest ${highest}${restarts ? `, ${plural(restarts, "restart")}` : ""}` : "no figures yet";
    this.picture.setAttribute("aria-label", `${this.title}, last ${label}: ${say}`);
  }

  x(index) {
    return ((index * WIDTH) / (this.values.length - 1)).toFixed(1);
  }

  // Shows the figure of an interval, or that of now.
  point(index) {
    const last = this.values.length - 1;
    this.pointed = index === null ? null : Math.min(last, Math.max(0, index));
    const at = this.pointed ?? last;
    this.cursor.setAttribute("visibility", this.pointed === null ? "hidden" : "visible");
    this.cursor.setAttribute("x1", this.x(at));
    this.cursor.setAttribute("x2", this.x(at));
    const ago = at === last ? "now" : `${duration((last - at) * this.seconds)} ago`;
    const restarts = this.marks[at] > 0 ? ` · ${plural(this.marks[at], "restart")}` : "";
    const text = `${this.show(this.values[at])} · ${ago}${restarts}`;
    setText(this.now, this.pointed === null ? this.show(this.values[last]) : text);
    this.picture.setAttribute("aria-valuenow", at - last);
    this.picture.setAttribute("aria-valuetext", text);
  }
}

// The marked intervals, those beside each other together, as first and last.
function runs(marks) {
  const found = [];
  marks.forEach((mark, index) => {
    if (!(mark > 0)) return;
    if (found.at(-1)?.[1] >= index - 2) found.at(-1)[1] = index;
    else found.push([index, index]);
  });
  return found;
}

// A short start within an interval of good service is not shown.
const RANK = ["unknown", "off", "asleep", "busy", "ok", "warn", "ko"];
// Not by colour alone: worse levels have another shape too.
const TALL = { unknown: 4, off: 6, asleep: 10, busy: 10, ok: 20, warn: 14, ko: 20 };

// The worst level in each of `count` equal parts of the time span before `now`.
export function parts(changes, now, span, count) {
  const found = Array(count).fill("unknown");
  const begin = now - span;
  const size = span / count;
  (changes || []).forEach(([since, level], index) => {
    const until = index + 1 < changes.length ? changes[index + 1][0] : now;
    const first = Math.max(0, Math.floor((since - begin) / size));
    const last = Math.min(count - 1, Math.ceil((until - begin) / size) - 1);
    for (let part = first; part <= Math.max(first, last) && part < count; part += 1) {
      if (RANK.indexOf(level) > RANK.indexOf(found[part])) found[part] = level;
    }
  });
  return found;
}

export function shares(changes, now, span) {
  const total = {};
  (changes || []).forEach(([since, level], index) => {
    const until = index + 1 < changes.length ? changes[index + 1][0] : now;
    const lasted = until - Math.max(since, now - span);
    if (lasted > 0) total[level] = (total[level] || 0) + lasted;
  });
  const sum = Object.values(total).reduce((one, other) => one + other, 0);
  return Object.entries(total)
    .sort((one, other) => other[1] - one[1])
    .map(([level, lasted]) => `${level} ${((100 * lasted) / sum).toFixed(lasted / sum > 0.995 || lasted / sum < 0.005 ? 2 : 0)} %`)
    .join(", ");
}

export function historyBar(count = 30) {
  const paths = Object.fromEntries(RANK.map((level) => [level, svg("path", { class: level })]));
  const title = svg("title");
  const picture = svg("svg", { viewBox: `0 0 ${count * 5} 20`, preserveAspectRatio: "none", role: "img" }, title, ...Object.values(paths));
  return {
    node: picture,
    draw(changes, now, span) {
      const drawn = Object.fromEntries(RANK.map((level) => [level, ""]));
      parts(changes, now, span, count).forEach((level, index) => {
        const tall = TALL[level];
        // A gap in the bar marks downtime.
        drawn[level] += level === "ko" ? `M${index * 5} 0h4v12h-4zM${index * 5} 15h4v5h-4z` : `M${index * 5} ${20 - tall}h4v${tall}h-4z`;
      });
      for (const [level, path] of Object.entries(paths)) {
        if (path.getAttribute("d") !== drawn[level]) path.setAttribute("d", drawn[level]);
      }
      const say = `Last hour: ${shares(changes, now, span) || "no data"}`;
      if (title.textContent !== say) {
        title.textContent = say;
        picture.setAttribute("aria-label", say);
      }
    },
  };
}
