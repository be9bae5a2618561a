// The page. In a pool it takes the socket, so that a restart refuses nobody; in a pod it opens the port in PORT.
const http = require("node:http");

const server = http.createServer((request, response) => {
  http
    .get(`${process.env.WEB}/orders`, (answer) => {
      let text = "";
      answer.on("data", (piece) => (text += piece));
      answer.on("end", () => {
        const items = JSON.parse(text).map((order) => `<li>${order.delivered ? "✓" : "…"} ${encodeURIComponent(order.item)}`);
        response.writeHead(200, { "content-type": "text/html; charset=utf-8" });
        response.end(`<!doctype html><title>Shop</title><ul>${items.join("")}</ul>\n`);
      });
    })
    .on("error", (error) => {
      response.writeHead(502);
      response.end(`${error.message}\n`);
    });
});
process.on("SIGTERM", () => server.close(() => process.exit(0)));
server.listen(process.env.LISTEN_FDS ? { fd: 3 } : { host: process.env.HOST, port: process.env.PORT });
