// Node's ws as its documentation broadcasts: a loop over the clients, without compression. What came in is what goes
// out, one buffer for everyone.
import { WebSocket, WebSocketServer } from "ws";

const subscribers = new Set();
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });

server.on("connection", (socket, request) => {
  socket.on("error", console.error);
  if (request.url === "/subscribe") {
    subscribers.add(socket);
    socket.on("close", () => subscribers.delete(socket));
  } else {
    socket.on("message", (data) => {
      for (const subscriber of subscribers) {
        if (subscriber.readyState === WebSocket.OPEN) {
          subscriber.send(data, { binary: false });
        }
      }
    });
  }
  socket.send("joined");
});

server.on("listening", () => console.log(`serving at ${server.address().port}`));
