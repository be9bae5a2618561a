// Requests to the page's own server.

let csrf = "";

export class LoggedOut extends Error {}

// "ended" is sent when an answer says that the session is over.
export const sessions = new EventTarget();

async function answer(response) {
  const document = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (response.status === 401) {
    if (!response.url.endsWith("/login")) sessions.dispatchEvent(new Event("ended"));
    throw new LoggedOut(document.error || "log in first");
  }
  if (!response.ok) throw new Error(document.error || `the dashboard answered ${response.status}`);
  return document;
}

export async function get(path) {
  return answer(await fetch(`/poolctl/${path}`, { headers: { accept: "application/json" }, credentials: "same-origin" }));
}

export async function post(path, body) {
  return answer(await fetch(`/poolctl/${path}`, {
    method: "POST",
    credentials: "same-origin",
    headers: { "content-type": "application/json", "x-csrf-token": csrf },
    body: JSON.stringify(body),
  }));
}

export async function session() {
  const found = await get("session");
  csrf = found.csrf;
  return found;
}

export async function login(token) {
  const found = await post("login", { token });
  csrf = found.csrf;
  return found;
}
