// Figures of the last hour or day, which the pool keeps: asked for when a view shows them.

import { get } from "./api.js";
import { $ } from "./dom.js";
import { store } from "./store.js";

const AGAIN_MS = 30000;
const RETRY_MS = 5000; // after a request that failed
const LABELS = { now: "2 minutes", hour: "hour", day: "24 hours" };
const kept = new Map();

// The newest answer about a server, or about the pool (""); `redraw` is called when there is another one.
function asked(span, server, redraw) {
  const key = `${span} ${server}`;
  const found = kept.get(key) || { again: 0, answer: null };
  kept.set(key, found);
  if (store.known && Date.now() > found.again) {
    found.again = Date.now() + AGAIN_MS;
    get(`history?span=${span}&server=${encodeURIComponent(server)}`).then((answer) => {
      found.answer = answer;
      redraw();
    }).catch(() => {
      found.again = Date.now() + RETRY_MS;
    });
  }
  return found.answer;
}

export const forgetHistory = () => kept.clear();

// What each chart draws: `live` holds the series of the last two minutes, by the figures' names.
export function drawCharts(charts, live, server, redraw) {
  const span = $("span").value;
  const label = LABELS[span];
  const answer = span === "now" ? null : asked(span, server, redraw);
  for (const [figure, chart] of Object.entries(charts)) {
    const values = live[figure] || [];
    if (span === "now") chart.draw(values, { label, seconds: store.interval, marks: store.marks(server) });
    else if (!answer) chart.draw([], { label });
    else {
      const { series, slots, slot_seconds: seconds } = answer;
      // The last slot is the present one, which is still counted.
      const now = values.at(-1) ?? null;
      chart.draw([...(series[figure] || []), now], { label, seconds, count: slots, marks: [...(series.restarts || []), 0] });
    }
  }
}
