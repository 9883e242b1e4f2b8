// Socket.IO on Node: an emit to a room, over WebSocket from the start, without compression.
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const io = new Server(http, {
  transports: ["websocket"],
  perMessageDeflate: false,
  serveClient: false,
});

io.on("connection", (socket) => {
  socket.on("join", (done) => {
    socket.join("bench");
    done();
  });
  socket.on("message", (data) => io.to("bench").emit("message", data));
});

http.listen(0, "127.0.0.1", () => console.log(`serving at ${http.address().port}`));
