// The rollout of the server that is shown: its share, the figures of both sides, and what may be done with it.

import { get } from "./api.js";
import { $, el, setText } from "./dom.js";
import { bytes, duration, latency } from "./format.js";
import { actionButton } from "./servers.js";

let name = "";
let asking = false;
let buttons = "";

const isOver = (rollout) => ["promoted", "withdrawn"].includes(rollout.state);
const percent = (share) => `${Number((100 * share).toPrecision(3))} %`;

export function beginRollout(wanted) {
  name = wanted;
  buttons = "";
  $("server-rollout").hidden = true;
}

function row(label, figures) {
  const cells = [figures.workers, figures.requests, figures.errors, latency(figures.latency_p50_seconds), latency(figures.latency_p99_seconds), bytes(figures.memory_bytes)];
  return el("tr", {}, el("th", { scope: "row" }, label), ...cells.map((text) => el("td", {}, String(text))));
}

function draw(rollout) {
  $("server-rollout").hidden = !rollout;
  if (!rollout) return;
  const words = [rollout.state, `${percent(rollout.share)} of the traffic`, `${duration(rollout.elapsed_seconds)} of ${duration(rollout.for_seconds)}`];
  if (rollout.reason) words.push(rollout.reason);
  else if (rollout.abort_on.length) words.push(`withdrawn on ${rollout.abort_on.join(", ")}`);
  setText($("rollout-state"), words.join(" · "));
  $("rollout-figures").replaceChildren(row("New", rollout.canary), row("Others", rollout.before));
  const offered = isOver(rollout) ? [] : rollout.state === "promoting" ? ["withdraw"] : ["promote", "withdraw"];
  if (offered.join() === buttons) return;
  buttons = offered.join();
  $("rollout-actions").replaceChildren(...offered.map((action) => actionButton(action, [rollout.name])));
}

export async function drawRollout() {
  if (asking || !name) return;
  asking = true;
  const wanted = name;
  try {
    const found = await get(`rollout?name=${encodeURIComponent(wanted)}`);
    if (wanted === name) draw(found.items[0]);
  } catch {
    // The page itself reports that the pool does not answer.
  } finally {
    asking = false;
  }
}
