// Light, dark, or the system's theme; stored in this browser.

import { $ } from "./dom.js";

const KEY = "poolctl-theme";

export function beginTheme() {
  const select = $("theme");
  const apply = (theme) => (document.documentElement.dataset.theme = theme);
  let kept = "auto";
  try {
    kept = localStorage.getItem(KEY) || "auto";
  } catch {
    // Without storage the system's theme applies.
  }
  select.value = kept;
  apply(kept);
  select.addEventListener("change", () => {
    apply(select.value);
    try {
      localStorage.setItem(KEY, select.value);
    } catch {
      // The choice lasts until the page is closed.
    }
  });
}
