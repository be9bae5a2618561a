// Elements. Text is only ever set as text, so that no log line or name can become markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

export function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && !key.includes("-")) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Unchanged text is not set again: that would disturb screen readers and selections.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The same words again would not be said.
export function announce(text) {
  $("live").textContent = "";
  setTimeout(() => setText($("live"), text), 50);
}
