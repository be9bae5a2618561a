// Formats figures.

export function rate(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(value >= 10000 ? 0 : 1)}k`;
  return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 9.95 || value === 0 ? 0 : 1);
}

export function latency(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const ms = seconds * 1000;
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms >= 10000 ? 0 : 1)} s`;
  return `${ms >= 9.95 || ms === 0 ? ms.toFixed(0) : ms.toFixed(1)} ms`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (!(seconds > 0)) return "–";
  const parts = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
  const first = parts.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0s";
  return parts
    .slice(first, first + 2)
    .map(([unit, size], index) => {
      const count = Math.floor(index === 0 ? seconds / size : (seconds % parts[first][1]) / size);
      return index > 0 && count === 0 ? "" : `${count}${unit}`;
    })
    .join(" ")
    .trim();
}

export function clock(time) {
  const date = typeof time === "number" ? new Date(time * 1000) : new Date(time);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleTimeString([], { hour12: false });
}

// Such as "29 Nov, 15:40:19" in the words of the browser's language.
export function dayAndTime(time) {
  const date = new Date(time);
  const form = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString([], form);
}

export function moment(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString([], { hour12: false });
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
