// What the views show of the pool, kept in the page's address: a link shows the same to others.

import { $, el } from "./dom.js";

// The parameter of each control; only what differs from the default stands in the address.
const CONTROLS = {
  q: "search", state: "state", health: "health", sort: "sort", span: "span",
  kind: "event-kind", events: "event-search", log: "log-server", lines: "log-search", level: "log-level", age: "log-age",
};
const DEFAULTS = { sort: "trouble", span: "now" };
const REVERSED = "reversed";

// Sets the controls to what the address says, before anything is drawn.
export function readFilters() {
  const query = new URLSearchParams(location.search);
  for (const [key, id] of Object.entries(CONTROLS)) {
    const value = query.get(key);
    const node = $(id);
    if (value === null) continue;
    const known = node.tagName !== "SELECT" || [...node.options].some((option) => option.value === value);
    if (!known && key in DEFAULTS) continue;
    // The pool's own words are options only when the pool is known.
    if (!known) node.append(el("option", { value }, value));
    node.value = value;
  }
  return query.has(REVERSED);
}

export function keepFilters(reversed = $("sort").dataset.reversed === "yes") {
  $("sort").dataset.reversed = reversed ? "yes" : "";
  const query = new URLSearchParams();
  for (const [key, id] of Object.entries(CONTROLS)) {
    const value = $(id).value;
    if (value && value !== DEFAULTS[key]) query.set(key, value);
  }
  if (reversed) query.set(REVERSED, "1");
  const text = query.toString();
  const wanted = `${location.pathname}${text && `?${text}`}${location.hash}`;
  if (wanted !== `${location.pathname}${location.search}${location.hash}`) history.replaceState(null, "", wanted);
}

const SEARCHES = { servers: "search", events: "event-search", logs: "log-search" };

// "/" goes to the search of the present view.
export function beginFilters(view) {
  for (const kind of ["input", "change"]) document.addEventListener(kind, () => keepFilters());
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=checkbox]), select, textarea, dialog");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || typing || !SEARCHES[view()]) return;
    event.preventDefault();
    $(SEARCHES[view()]).focus();
    $(SEARCHES[view()]).select();
  });
}
