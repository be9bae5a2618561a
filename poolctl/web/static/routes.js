// The gateway's routes.

import { get } from "./api.js";
import { $, el } from "./dom.js";

const text = (value) => (Array.isArray(value) ? value.map(text).join(", ") : value && typeof value === "object" ? JSON.stringify(value) : String(value ?? ""));

export async function showRoutes() {
  const { items } = await get("routes");
  const columns = ["alias", "host", "path", "to", "policy"];
  $("route-list").replaceChildren(...items.map((route) => el("tr", {}, ...columns.map((key) => el("td", {}, text(route[key]))))));
  $("route-list").closest(".scroll").hidden = items.length === 0;
  $("no-routes").hidden = items.length > 0;
}
