// Actions on servers: requested, confirmed, performed, reported.

import { LoggedOut, post } from "./api.js";
import { $, announce, el } from "./dom.js";
import { plural } from "./format.js";

// `one` and `many` say what will happen, before it is confirmed.
export const ACTIONS = {
  start: {
    label: "Start", done: "started",
    one: "Its dependencies are started first.", many: "Their dependencies are started first.",
  },
  restart: {
    label: "Restart", done: "restarted",
    one: "Its processes are replaced; no connection is refused meanwhile.",
    many: "Their processes are replaced; no connection is refused meanwhile.",
  },
  drain: {
    label: "Drain", done: "drained",
    one: "It is taken out of rotation and keeps running.", many: "They are taken out of rotation and keep running.",
  },
  undrain: {
    label: "Undrain", done: "put back into rotation",
    one: "It is put back into rotation.", many: "They are put back into rotation.",
  },
  stop: {
    label: "Stop", done: "stopped", danger: true,
    one: "Connections to it will be refused. Servers that depend on it are stopped first.",
    many: "Connections to them will be refused. Servers that depend on them are stopped first.",
  },
};

// Which actions make sense for a server.
function offered(server) {
  if (server.state === "disabled") return [];
  if (["stopped", "completed", "failed"].includes(server.state)) return ["start"];
  if (server.state === "draining") return ["undrain", "restart", "stop"];
  if (/^(job|process):/.test(server.bind || "")) return ["restart", "stop"]; // no connections to drain
  return ["restart", "drain", "stop"];
}

// Buttons of all actions on a server; `drawActions` shows those that make sense now. Focus never falls off a button that goes.
export function actionButtons(name) {
  const buttons = Object.entries(ACTIONS).map(([action, { label, danger }]) => {
    const button = el("button", { type: "button", class: danger ? "danger" : "", "data-action": action, "aria-label": `${label} ${name}` }, label);
    button.addEventListener("click", () => {
      const menu = button.closest("details");
      if (menu) {
        menu.open = false;
        menu.firstElementChild.focus();
      }
      act(action, [name], button);
    });
    return button;
  });
  return el("div", { class: "actions", role: "group", "aria-label": `Actions for ${name}` }, ...buttons);
}

export function drawActions(node, server) {
  const shown = offered(server);
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  for (const button of node.children) button.hidden = !shown.includes(button.dataset.action);
  if (focused?.hidden) firstButton(node)?.focus();
}

const firstButton = (node) => [...node.children].find((button) => !button.hidden);

// The actions on a server behind one button; the others are made when it is pressed.
export function actionMenu(name, find) {
  const menu = el("details", { class: "menu" }, el("summary", { "aria-label": `Actions for ${name}`, title: "Actions" }, "⋯"));
  // At the click, not at the event "toggle", which comes after a Tab that follows at once.
  menu.firstElementChild.addEventListener("click", () => {
    if (menu.open) return;
    if (!menu.children[1]) menu.append(actionButtons(name));
    drawActions(menu.children[1], find());
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    menu.open = false;
    menu.firstElementChild.focus();
  });
  return menu;
}

// A menu closes when something else is pressed or gets focus.
for (const kind of ["pointerdown", "focusin"]) {
  document.addEventListener(kind, ({ target }) => {
    for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(target)) menu.open = false;
  });
}

export function note(text, bad = false) {
  const node = el("div", { class: bad ? "note bad" : "note" }, el("span", {}, text));
  const away = () => node.remove();
  node.append(el("button", { type: "button", class: "plain", "aria-label": "Dismiss", onclick: away }, "✕"));
  $("notes").append(node);
  if (!bad) setTimeout(away, 6000);
}

let closed = null;

export async function confirm(action, names) {
  // The event of a dialog that has just been closed would answer this question.
  await closed;
  const { label, one, many, danger } = ACTIONS[action];
  const dialog = $("confirm");
  const back = document.activeElement;
  $("confirm-title").textContent = names.length === 1 ? `${label} ${names[0]}?` : `${label} ${plural(names.length, "server")}?`;
  $("confirm-text").textContent = names.length === 1 ? one : many;
  $("confirm-names").replaceChildren(...(names.length === 1 ? [] : names.map((name) => el("li", {}, name))));
  $("confirm-yes").textContent = label;
  $("confirm-yes").className = danger ? "primary danger" : "primary";
  closed = new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (back?.checkVisibility()) back.focus();
      else if (back?.parentElement) firstButton(back.parentElement)?.focus();
      resolve(dialog.returnValue === "yes");
    }, { once: true });
    dialog.returnValue = "no";
    dialog.showModal();
    $("confirm-no").focus();
  });
  return closed;
}

// `users`, `3 servers`, or with what was stopped because it depends on them: `users, and web, which depends on it,`.
function report(names, dependents) {
  const selected = names.length === 1 ? names[0] : plural(names.length, "server");
  if (!dependents.length) return selected;
  const one = dependents.length === 1;
  const also = one ? dependents[0] : plural(dependents.length, "server");
  return `${selected}, and ${also}, which ${one ? "depends" : "depend"} on ${names.length === 1 ? "it" : "them"},`;
}

export async function act(action, names, button) {
  if (!names.length || !(await confirm(action, names))) return;
  button?.setAttribute("aria-busy", "true");
  announce(`${ACTIONS[action].label}: ${names.join(", ")}`);
  try {
    const result = await post("actions", { action, servers: names });
    const failed = result.errors || [];
    for (const error of failed) note([error.name, error.message, error.hint].filter(Boolean).join(": "), true);
    for (const warning of result.warnings || []) note(warning);
    if (failed.length) return;
    const [changed, dependents] = [names.filter((name) => !result.unchanged?.includes(name)), result.dependents || []];
    const idle = !changed.length && !dependents.length; // all of them had stopped before the click
    note(idle ? "Nothing was running." : `${report(changed, dependents)} ${ACTIONS[action].done}.`);
  } catch (error) {
    if (!(error instanceof LoggedOut)) note(`${ACTIONS[action].label} failed: ${error.message}`, true);
  } finally {
    button?.removeAttribute("aria-busy");
  }
}
