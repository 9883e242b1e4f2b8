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
    { type: "presence", room: "elsewhere", joined: ["bob"], count: 2 },
    { type: "presence", ref: 99, room: "general", users: [], count: 0 },
    { type: "error", ref: 99, code: "INTERNAL", message: "of what nobody waits for" },
    { type: "of a later version", room: "general" },
    { ...event, id: 1, seq: 1, data: "still here" },
  );
  await until(() => heard.length);
  assert.deepEqual(heard, ["still here"]);
  assert.deepEqual(client.errors, []);
  assert.equal(server.connections.length, 1);
  client.disconnect();
});

test("each answer reaches the call that asked, whatever the order of the answers", async () => {
  const server = new Server();
  const asked = [];
  server.intercept = (_, command) => command.type === "history" && asked.push(command);
  const client = connectedTo(server);
  await client.connect();
  const room = await client.join("general");
  const befores = [30, 10, 20];
  const pages = befores.map((before) => room.page({ event: "message", before }));
  const refused = room.page({ event: "message", before: 40 }).catch((error) => error.code);
  await until(() => asked.length === 4);
  assert.equal(new Set(asked.map(({ ref }) => ref)).size, 4);
  for (const { ref, before } of asked.reverse()) {
    if (before === 40) server.refuse(server.connection, { ref }, "PERMISSION_DENIED");
    else {
      const message = { room: "general", event: "message", from: "bob", timestamp: 1, data: before };
      const events = [{ type: "event", ...message, id: before - 1, seq: before - 1 }];
      const page = { type: "history", ref, room: "general", events };
      server.tell(server.connection, { ...page, has_more: false, next: null, previous: null });
    }
  }
  const told = (await Promise.all(pages)).map(({ events }) => events.map(({ data }) => data));
  assert.deepEqual(told, befores.map((before) => [before]));
  assert.equal(await refused, "PERMISSION_DENIED");
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
  const client = connectedTo(server, { maxBackoffSeconds: 0.05 });
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

/** Wakes the client as a page does. Node has no events on globalThis, so those added are kept here. */
function pageEvents() {
  const handlers = new Map();
  globalThis.addEventListener = (type, fn) => handlers.set(type, fn);
  globalThis.removeEventListener = (type) => handlers.delete(type);
  return { fire: (type, fields = {}) => handlers.get(type)({ type, ...fields }), handlers };
}

/** A client that is connected to a server that pings every 25 s, under timers that the test moves. */
async function asleep(t) {
  const page = pageEvents();
  const server = new Server();
  server.intercept = (connection, { type, ref }) => {
    if (type !== "connect") return false;
    server.tell(connection, { type: "connected", ref, client_id: "c", user_id: "ann", ping_seconds: 25 });
    return true;
  };
  const client = connectedTo(server, { random: () => 0 });
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  t.after(() => {
    client.disconnect();
    mock.timers.reset();
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
    assert.equal(page.handlers.size, 0);
  });
  await client.connect();
  return { page, server, client };
}

async function turns() {
  for (let turn = 0; turn < 10; turn += 1) await Promise.resolve();
}

test("a page that comes back finds the silence by the wall clock, and reconnects at once", async (t) => {
  const { page, server, client } = await asleep(t);
  const states = [];
  client.onState((state) => states.push(state));
  // Frozen: the clock goes on, no timer runs.
  mock.timers.setTime(Date.now() + 300_000);
  page.fire("focus");
  assert.deepEqual(states, ["resuming"]);
  mock.timers.tick(0);
  await turns();
  assert.equal(server.connections.length, 2);
  assert.equal(client.state, "connected");
});

test("a page from the back/forward cache takes its connection for dead", async (t) => {
  const { page, server } = await asleep(t);
  page.fire("pageshow", { persisted: false });
  await turns();
  assert.equal(server.connections.length, 1);
  page.fire("pageshow", { persisted: true });
  mock.timers.tick(0);
  await turns();
  assert.equal(server.connections.length, 2);
});

test("a half-open connection is found soon after the network has changed, a good one is kept", async (t) => {
  const { page, server, client } = await asleep(t);
  mock.timers.tick(10_000);
  page.fire("online");
  page.fire("focus");
  await turns();
  const checks = server.commands.filter(({ type }) => type === "unread");
  assert.deepEqual(checks, [{ type: "unread", ref: 0, rooms: [] }]);
  server.tell(server.connection, { type: "unread", ref: 0, unread: {} });
  await turns();
  mock.timers.tick(5_000);
  assert.equal(client.state, "connected");

  page.fire("offline");
  await turns();
  mock.timers.tick(4_999);
  assert.equal(client.state, "connected");
  mock.timers.tick(1);
  assert.equal(client.state, "resuming");
});

test("an attempt that a sleep has made too old is given up when the page is back", async (t) => {
  const { page, server, client } = await asleep(t);
  server.intercept = () => true; // no answer to connect
  server.lose();
  mock.timers.tick(0);
  await turns();
  assert.equal(server.connections.length, 2);
  page.fire("focus");
  await turns();
  assert.equal(server.connections.length, 2);
  mock.timers.setTime(Date.now() + 60_000);
  server.intercept = () => false;
  page.fire("focus");
  mock.timers.tick(0);
  await turns();
  assert.equal(server.connections.length, 3);
  assert.equal(client.state, "connected");
});

test("handshakes that are refused, break or hang are tried again without end", async () => {
  const server = new Server();
  const Opening = server.WebSocket;
  let attempts = 0;
  const outcomes = [
    () => assert.fail("refused by the platform"),
    (socket) => queueMicrotask(() => socket.onclose?.({ code: 1006, reason: "" })), // a 503
    () => {}, // hangs
  ];
  class Stubborn {
    constructor(url) {
      attempts += 1;
      if (attempts > 30) return new Opening(url);
      outcomes[attempts % 3](this);
    }
    close() {}
  }
  const client = connectedTo(server, {
    WebSocket: Stubborn,
    connectTimeoutSeconds: 0.005,
    maxBackoffSeconds: 0.01,
    transports: ["websocket"],
  });
  const states = new Set();
  client.onState((state) => states.add(state));
  await client.connect();
  assert.deepEqual([...states], ["connecting", "connected"]);
  client.disconnect();
});

test("a time to wait that no timer takes is not the same as none", async () => {
  const server = new Server();
  const client = connectedTo(server);
  await client.connect();
  server.intercept = (connection, command) =>
    command.type === "connect" && server.refuse(connection, command, "RATE_LIMITED", { retry_after_seconds: 1e9 });
  server.lose();
  await until(() => client.errors.length);
  for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setTimeout(resolve, 1));
  assert.equal(server.connections.length, 2);
  client.disconnect();
});

test("a join that is answered after its time is left again", async () => {
  const server = new Server();
  const client = connectedTo(server, { requestTimeoutSeconds: 0.01 });
  await client.connect();
  let late;
  server.intercept = (connection, command) => command.type === "join" && (late = command) !== undefined;
  await assert.rejects(client.join("general"), { code: "TIMEOUT" });
  const message = { type: "joined", ref: late.ref, room: "general", seq: 0, epoch: "e", events: [], recovered: null };
  server.tell(server.connection, message);
  await until(() => server.commands.some(({ type, room }) => type === "leave" && room === "general"));
  assert.equal(client.getRoom("general"), undefined);
  client.disconnect();
});

test("a deletion that was taken before the connection was lost is done", async () => {
  const server = new Server();
  const client = connectedTo(server);
  await client.connect();
  server.intercept = (_, { type }) => type === "delete_room" || type === "create_room";
  const deleted = client.deleteRoom("club");
  const created = client.createRoom("club", "Club");
  await until(() => server.commands.some(({ type }) => type === "create_room"));
  server.intercept = (connection, command) => {
    if (command.type === "delete_room") return server.refuse(connection, command, "ROOM_NOT_FOUND");
    return command.type === "create_room" && server.refuse(connection, command, "ROOM_EXISTS");
  };
  server.lose();
  await deleted;
  await assert.rejects(created, { code: "ROOM_EXISTS" });
  await assert.rejects(client.deleteRoom("club"), { code: "ROOM_NOT_FOUND" });
  client.disconnect();
});

test("what a resume brings after a handler has disconnected is brought again", async () => {
  const server = new Server();
  const client = connectedTo(server);
  await client.connect();
  const room = await client.join("general");
  const event = (seq) => ({ type: "event", room: "general", event: "message", id: seq, seq, from: "bob", timestamp: 1 });
  server.intercept = (connection, { type, ref, room, since }) => {
    if (type !== "join") return false;
    const events = [1, 2, 3].filter((seq) => seq > since.seq).map(event);
    const message = { type: "joined", ref, room, name: room, seq: 3, epoch: "e", subscriptions: "*" };
    server.tell(connection, { ...message, events, has_more: false, next: null, recovered: true });
    return true;
  };
  const heard = [];
  room.onAny(({ seq }) => {
    heard.push(seq);
    if (seq === 1) client.disconnect();
  });
  server.lose();
  await until(() => client.state === "offline");
  await client.connect();
  await until(() => heard.length === 3);
  assert.deepEqual(heard, [1, 2, 3]);
  client.disconnect();
});

test("no time at all can be given, and any time there is", async () => {
  const server = new Server();
  const client = connectedTo(server, { requestTimeoutSeconds: Infinity, connectTimeoutSeconds: 1e9 });
  let answer;
  server.intercept = (connection, { type, ref }) => {
    if (type === "connect") answer = () => server.tell(connection, { type: "connected", ref, user_id: "ann" });
    if (type === "rooms") answer = () => server.tell(connection, { type: "rooms", ref, rooms: [] });
    return type !== "join";
  };
  const slowly = async () => {
    await until(() => answer);
    for (let turn = 0; turn < 10; turn += 1) await new Promise((resolve) => setTimeout(resolve, 1));
    answer();
    answer = null;
  };
  await Promise.all([client.connect(), slowly()]);
  await client.join("general");
  const [rooms] = await Promise.all([client.listRooms(), slowly()]);
  assert.deepEqual(rooms, []);
  assert.deepEqual([client.errors, server.connections.length], [[], 1]);
  client.disconnect();
});

test("one that disconnects on purpose is told of nothing that went wrong, nor that it comes back", async () => {
  const server = new Server();
  const client = connectedTo(server);
  const told = [];
  client.onDisconnect(({ willReconnect }) => told.push(willReconnect));
  client.onUnread(() => {});
  await client.connect();
  server.lose();
  await until(() => server.commands.some(({ type }) => type === "unread"));
  client.disconnect();
  await client.connect();
  assert.deepEqual(client.errors, []);
  assert.deepEqual(told, [true, false]);

  client.onState((state) => state === "resuming" && client.disconnect());
  server.lose();
  assert.deepEqual(told, [true, false, false]);
});

for (const what of ["unread", "presence"]) {
  test(`${what} that cannot be told is asked for with growing pauses, and once after a reconnect`, async (t) => {
    const server = new Server();
    let chance = 0.5;
    const client = connectedTo(server, { random: () => chance, backoffSeconds: 0.1, maxBackoffSeconds: 1 });
    const told = [];
    client.onUnread((counts) => told.push(counts.general));
    mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
    t.after(() => {
      client.disconnect();
      mock.timers.reset();
    });
    const settled = async () => {
      for (let turn = 0; turn < 3; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    };
    const pass = async (milliseconds) => {
      for (let passed = 0; passed < milliseconds; passed += 10) {
        mock.timers.tick(10);
        await settled();
      }
    };
    const reconnect = async () => {
      chance = 0; // at once
      server.lose();
      chance = 0.5;
      mock.timers.tick(0);
      await settled();
      assert.equal(client.state, "connected");
    };
    await client.connect();
    const room = await client.join("general");
    const asked = [];
    server.intercept = (connection, command) => {
      if (command.type !== what) return false;
      asked.push(Date.now());
      return server.refuse(connection, command, "STORE_UNAVAILABLE");
    };
    if (what === "unread") await reconnect();
    else {
      const present = room.presentUsers();
      present.subscribe(() => told.push(present.getSnapshot().count));
    }
    await pass(3000);
    const pauses = asked.slice(1, 7).map((at, index) => at - asked[index]);
    assert.deepEqual(pauses, [50, 100, 200, 400, 500, 500]);

    // What waits to be asked again is asked by the reconnect.
    asked.length = 0;
    server.intercept = (connection, { type, ref, room }) => {
      if (type !== what) return false;
      asked.push(Date.now());
      server.tell(connection, { type, ref, room, unread: { general: 7 }, users: ["bob"], count: 7 });
      return true;
    };
    await reconnect();
    await pass(3000);
    assert.equal(asked.length, 1);
    assert.deepEqual(told, [7]);
    assert.deepEqual(client.errors, []);
  });
}
