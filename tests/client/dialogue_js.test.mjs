// The browser client under Node, over a socket that is a scripted server. Run by test_dialogue_js.py.

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { createDialogueClient } from "../../dialogue/static/dialogue.js";

/** Answers `connect` and `join`; the rest, and whatever `intercept` deals with, is the test's. */
class Server {
  connections = [];
  commands = [];
  intercept = () => false;

  constructor() {
    const server = this;
    this.WebSocket = class {
      readyState = 0;
      constructor() {
        server.connections.push(this);
        queueMicrotask(() => this.onopen?.());
      }
      send(text) {
        const commands = JSON.parse(text);
        for (const command of Array.isArray(commands) ? commands : [commands]) server.take(this, command);
      }
      close() {}
    };
  }

  get connection() {
    return this.connections.at(-1);
  }

  tell(connection, ...messages) {
    queueMicrotask(() => connection.onmessage?.({ data: JSON.stringify(messages) }));
  }

  take(connection, command) {
    this.commands.push(command);
    const { type, ref, room } = command;
    if (this.intercept(connection, command)) return;
    if (type === "connect") {
      this.tell(connection, { type: "connected", ref, client_id: "c", user_id: "ann", ping_seconds: 0 });
    } else if (type === "join") {
      const recovered = command.since ? true : null;
      const message = { type: "joined", ref, room, name: room, seq: 0, epoch: "e", subscriptions: "*" };
      this.tell(connection, { ...message, events: [], has_more: false, next: null, recovered });
    }
  }

  refuse(connection, { ref }, code, fields = {}) {
    this.tell(connection, { type: "error", ref, code, message: "no", ...fields });
    return true;
  }

  lose(code = 1006) {
    this.connection.onclose?.({ code, reason: "" });
  }
}

async function until(condition) {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1));
}

function connectedTo(server, options = {}) {
  const client = createDialogueClient({
    url: "http://server",
    WebSocket: server.WebSocket,
    backoffSeconds: 0.005,
    ...options,
  });
  client.errors = [];
  client.onError((error) => client.errors.push(error));
  return client;
}

test("messages of a later server are passed over", async () => {
  const server = new Server();
  const client = connectedTo(server);
  await client.connect();
  const room = await client.join("general");
  const heard = [];
  room.onAny((event) => heard.push(event.data));
  const event = { type: "event", room: "general", event: "message", from: "bob", timestamp: 1 };
  server.tell(
    server.connection,
    { type: "presence", room: "general", joined: ["bob"], count: 2 },
    { type: "presence", ref: 99, room: "general", users: [], count: 0 },
    { type: "unread", unread: { other: 1 } },
    { type: "room_created", id: "new", name: "New" },
    { type: "room_updated", id: "general", name: "G" },
    { type: "room_deleted", room: "new" },
    { type: "of a later version", room: "general" },
    { ...event, id: 1, seq: 1, data: "still here" },
  );
  await until(() => heard.length);
  assert.deepEqual(heard, ["still here"]);
  assert.deepEqual(client.errors, []);
  assert.equal(server.connections.length, 1);
  client.disconnect();
});

test("many rooms are back although joins and errors are limited", async () => {
  const server = new Server();
  const client = connectedTo(server, { maxBackoffSeconds: 0.05 });
  await client.connect();
  const rooms = await Promise.all(Array.from({ length: 300 }, (_, number) => client.join(`r${number}`)));
  const left = [];
  for (const room of rooms) room.onLeft((reason) => left.push(reason));
  let tokens = 0;
  let at = Date.now();
  let errors = 0;
  server.intercept = (connection, command) => {
    if (command.type !== "join") return false;
    tokens = Math.min(100, tokens + (Date.now() - at) / 2);
    at = Date.now();
    if (tokens >= 1) {
      tokens -= 1;
      return false;
    }
    errors += 1;
    return server.refuse(connection, command, "RATE_LIMITED", { retry_after_seconds: 0.002 });
  };
  server.lose();
  await until(() => rooms.every((room) => room.joined));
  assert.deepEqual(left, []);
  assert.equal(server.connections.length, 2);
  assert.ok(errors > 0);
  assert.ok(errors < 300, `${errors} errors`);
  client.disconnect();
});

test("what is sent again and is too fast then is tried again", async () => {
  const server = new Server();
  const client = connectedTo(server);
  await client.connect();
  const room = await client.join("general");
  const tooFast = (connection, command) =>
    ["join", "trigger"].includes(command.type) &&
    server.refuse(connection, command, "RATE_LIMITED", { retry_after_seconds: 0.01 });
  server.intercept = tooFast;
  const isTooFast = { code: "RATE_LIMITED", retryAfterSeconds: 0.01 };
  await assert.rejects(room.trigger("message", 1), isTooFast);
  await assert.rejects(client.join("other"), isTooFast);

  server.intercept = (_, command) => ["join", "trigger"].includes(command.type); // no answer
  const sent = room.trigger("message", 2, { key: "k" });
  const joined = client.join("other");
  await until(() => server.commands.some(({ key }) => key === "k"));
  let refusals = 20;
  server.intercept = (connection, command) => {
    if (refusals > 0 && tooFast(connection, command)) {
      refusals -= 1;
      return true;
    }
    if (command.type !== "trigger") return false;
    server.tell(connection, { type: "ok", ref: command.ref, room: "general", seq: 1, id: 1, timestamp: 1 });
    return true;
  };
  server.lose();
  assert.equal((await sent).seq, 1);
  assert.equal((await joined).id, "other");
  assert.equal(refusals, 0);
  client.disconnect();
});

test("after 4009 the client stays away for a while", async () => {
  const server = new Server();
  const client = connectedTo(server, { random: () => 0 });
  await client.connect();
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  try {
    server.lose(4009);
    globalThis.dispatchEvent?.(new Event("focus"));
    mock.timers.tick(1999);
    await Promise.resolve();
    assert.equal(server.connections.length, 1);
    mock.timers.tick(1);
    await Promise.resolve();
    assert.equal(server.connections.length, 2);
  } finally {
    client.disconnect();
    mock.timers.reset();
  }
});
