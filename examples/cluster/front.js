// The page. In a pool it takes the socket, so that a restart refuses nobody; in a pod it opens the port in PORT.
const http = require("node:http");
const { json } = require("node:stream/consumers");

// Each on a connection of its own: one that is kept may end with the pod at its other end.
function orders() {
  const options = { agent: false, signal: AbortSignal.timeout(15_000) };
  return new Promise((resolve, reject) => {
    http.get(`${process.env.WEB}/orders`, options, (answer) => json(answer).then(resolve, reject)).on("error", reject);
  });
}

async function page() {
  const items = (await orders()).map((order) => `<li>${order.delivered ? "✓" : "…"} ${encodeURIComponent(order.item)}`);
  return `<!doctype html><title>Shop</title><ul>${items.join("")}</ul>\n`;
}

const server = http.createServer(async (request, response) => {
  const [status, text] = await page().then((text) => [200, text], (error) => [502, `${error.message}\n`]);
  // Once it is stopping: a connection that is never idle would keep the process until it is killed.
  if (!server.listening) response.setHeader("connection", "close");
  response.writeHead(status, { "content-type": "text/html; charset=utf-8" });
  response.end(text);
});
process.on("SIGTERM", () => server.close(() => process.exit(0)));
server.listen(process.env.LISTEN_FDS ? { fd: 3 } : { host: process.env.HOST, port: process.env.PORT });
