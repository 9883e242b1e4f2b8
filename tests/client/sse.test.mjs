// The browser client without WebSockets, against a real server. Run by test_dialogue_js.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import { connected, makeClient, until } from "./support.mjs";

const sse = { transports: ["sse"] };
let rooms = 0;

/** A room of the test's own. */
const newRoom = () => `room-${++rooms}`;

/** Everything of a room, oldest first, as the log has it. */
async function log(room) {
  const events = [];
  for (let cursor, page; page?.next !== null; cursor = page.next) {
    page = await room.page({ cursor, limit: 200 });
    events.unshift(...page.events);
  }
  return events.map(({ seq, data }) => [seq, data]);
}

test("where no WebSocket comes through it goes on without, and over to one as soon as it does", async (t) => {
  const ann = makeClient(t, "ann", { transports: undefined });
  const states = [];
  ann.onState((state) => states.push([state, ann.transport]));
  ann.network.isBlocked = true;
  await ann.connect();
  assert.equal(ann.transport, "sse");
  assert.equal(ann.clientId, null);
  assert.equal(ann.userId, "ann");
  assert.deepEqual(states, [["connecting", null], ["connected", "sse"]]);
  assert.equal(ann.errors.length, 2);

  const room = await ann.join(newRoom());
  const bob = await connected(t, "bob");
  const theirs = await bob.join(room.id);
  const heard = [];
  room.onAny(({ seq, data }) => heard.push([seq, data]));
  const resets = [];
  room.onReset(() => resets.push(1));
  const connections = [];
  ann.onConnect(({ resumed }) => connections.push(resumed));
  const acks = [];
  ann.network.isBlocked = false;
  for (let n = 0; ann.transport === "sse" || acks.length % 20; n += 1) {
    acks.push(await (n % 2 ? room : theirs).trigger("message", { n }));
  }
  assert.equal(ann.transport, "websocket");
  assert.notEqual(ann.clientId, null);
  await until(() => heard.length >= acks.length);
  assert.deepEqual(heard, await log(theirs));
  assert.deepEqual(heard.map(([seq]) => seq), acks.map(({ seq }) => seq));
  assert.deepEqual(connections, [true]);
  assert.deepEqual(resets, []);
  // Many were sent by both transports; a key that is known is recorded once.
  assert.equal(new Set(heard.map(([, { n }]) => n)).size, acks.length);
});

test("streams that break, and a network that is down, lose and double nothing, in either direction", async (t) => {
  const ann = await connected(t, "ann", sse);
  const bob = await connected(t, "bob");
  const room = await ann.join(newRoom());
  const theirs = await bob.join(room.id);
  const heard = [];
  room.onAny(({ seq, data }) => heard.push([seq, data]));
  const states = new Set();
  ann.onState((state) => states.add(state));
  const sent = [];
  for (let n = 0; n < 120; n += 1) {
    sent.push(room.trigger("message", { ann: n }), theirs.trigger("message", { bob: n }));
    if (n % 20 === 5) ann.network.cut();
    if (n % 40 === 30) ann.lose();
    if (n % 10 === 0) await sent.at(-2);
  }
  await Promise.all(sent);
  await until(() => heard.length >= 240);
  assert.deepEqual(heard, await log(theirs));
  for (const name of ["ann", "bob"]) {
    const own = heard.map(([, data]) => data[name]).filter((n) => n !== undefined);
    assert.deepEqual(own, Array.from({ length: 120 }, (_, n) => n));
  }
  assert.ok(states.has("resuming"));
  assert.deepEqual(ann.errors, []);
});

test("one stream that breaks is opened again, and the link stands", async (t) => {
  const ann = await connected(t, "ann", sse);
  const bob = await connected(t, "bob");
  const room = await ann.join(newRoom());
  const states = [];
  ann.onState((state) => states.push(state));
  const heard = [];
  room.onAny(({ data }) => heard.push(data));
  ann.network.cut();
  await until(() => !room.joined);
  await (await bob.join(room.id)).trigger("message", "meanwhile");
  await until(() => heard.length);
  assert.deepEqual(heard, ["meanwhile"]);
  assert.ok(room.joined);
  assert.deepEqual(states, []);
});

test("rooms beyond the streams are polled, and get one when one is free", async (t) => {
  const ann = await connected(t, "ann", sse);
  const bob = await connected(t, "bob");
  const joined = [];
  for (let number = 0; number < 6; number += 1) joined.push(await ann.join(newRoom()));
  const streams = () => ann.network.requests.filter((request) => request.endsWith("/events")).length;
  const heard = new Map();
  const typed = [];
  for (const room of joined) {
    room.on("message", ({ data }) => heard.set(room.id, [...(heard.get(room.id) ?? []), data.n]));
    room.on("typing", () => typed.push(room.id));
  }
  for (let n = 0; n < 3; n += 1) {
    for (const room of joined) await (await bob.join(room.id)).trigger("message", { n });
  }
  await until(() => joined.every((room) => heard.get(room.id)?.length === 3));
  for (const room of joined) assert.deepEqual(heard.get(room.id), [0, 1, 2]);
  const before = streams();
  await until(() => streams() > before + 3); // polls go on

  const last = joined.at(-1);
  for (const room of joined.slice(0, 4)) await room.leave();
  // An ephemeral event comes by a stream alone.
  const theirs = bob.getRoom(last.id);
  await until(async () => {
    await theirs.trigger("typing", { is_typing: true });
    return typed.includes(last.id);
  });
  await theirs.trigger("message", { n: 3 });
  await until(() => heard.get(last.id).length === 4);
  assert.deepEqual(heard.get(last.id), [0, 1, 2, 3]);
  assert.deepEqual(ann.errors, []);
});

test("subscriptions are widened and narrowed as over a WebSocket", async (t) => {
  const ann = await connected(t, "ann", sse);
  const bob = await connected(t, "bob");
  const room = await ann.join(newRoom(), { events: "message" });
  const theirs = await bob.join(room.id);
  const heard = [];
  room.onAny(({ event, data }) => heard.push([event, data]));
  await theirs.trigger("note", "too early");
  await Promise.all([theirs.trigger("message", 1), room.subscribe("note")]);
  await theirs.trigger("note", 2);
  await until(() => heard.length === 2);
  await assert.rejects(room.subscribe("no such event"), { code: "EVENT_NOT_ALLOWED" });
  await room.unsubscribe("message");
  assert.deepEqual(room.subscriptions, ["note"]);
  await theirs.trigger("message", "too late");
  await theirs.trigger("note", 3);
  await until(() => heard.length === 3);
  await room.unsubscribe("*");
  assert.deepEqual(room.subscriptions, []);
  await theirs.trigger("note", "for nobody");
  ann.network.cut();
  await room.subscribeAll();
  await theirs.trigger("message", 4);
  await until(() => heard.length === 4);
  assert.deepEqual(heard, [["message", 1], ["note", 2], ["note", 3], ["message", 4]]);
  await assert.rejects(room.unsubscribe("note"), { code: "INVALID_REQUEST" });
  await room.trigger("message", 5);
  await until(() => heard.length === 5);
});

test("what cannot be told any more resets the room", async (t) => {
  const ann = await connected(t, "ann", { ...sse, backoffSeconds: 0.1, random: () => 1 });
  const bob = await connected(t, "bob");
  const room = await ann.join(newRoom());
  const theirs = await bob.join(room.id);
  const resets = [];
  const brought = [];
  room.onReset(() => resets.push(1));
  ann.onHistory((_, events) => brought.push(events.length));
  ann.network.isDown = true;
  ann.network.cut();
  await until(() => ann.state === "resuming");
  // More than a resume may bring.
  await Promise.all(Array.from({ length: 60 }, (_, n) => theirs.trigger("message", { n })));
  ann.network.isDown = false;
  await until(() => resets.length);
  await until(() => room.joined);
  assert.deepEqual(resets, [1]);
  assert.equal(brought.length, 1);
  const heard = [];
  room.onAny(({ data }) => heard.push(data));
  await theirs.trigger("message", "after");
  await until(() => heard.length);
  assert.deepEqual(heard, ["after"]);
});

test("a stream on which nothing is heard is opened again", async (t) => {
  const ann = await connected(t, "ann", sse);
  const bob = await connected(t, "bob");
  const room = await ann.join(newRoom());
  const heard = [];
  room.onAny(({ data }) => heard.push(data));
  ann.network.isMute = true; // half open: no byte comes, and nothing says so
  await (await bob.join(room.id)).trigger("message", "into the void");
  await until(() => !room.joined);
  ann.network.isMute = false;
  await until(() => heard.length);
  assert.deepEqual(heard, ["into the void"]);
});

test("where streams are held back rooms are polled", async (t) => {
  const ann = makeClient(t, "ann", { ...sse, requestTimeoutSeconds: 0.4 });
  ann.network.isSlow = true;
  await ann.connect();
  const room = await ann.join(newRoom());
  const bob = await connected(t, "bob");
  const heard = [];
  room.onAny(({ data }) => heard.push(data));
  await (await bob.join(room.id)).trigger("message", "polled");
  await until(() => heard.length);
  assert.deepEqual(heard, ["polled"]);
  const other = await ann.join(newRoom());
  await other.trigger("message", 1);
  assert.deepEqual(ann.errors, []);
});

test("a room that one is taken out of is left, streamed and polled alike", async (t) => {
  const ann = await connected(t, "ann", sse);
  const bob = await connected(t, "bob");
  for (let number = 0; number < 3; number += 1) await ann.join(newRoom());
  const left = [];
  for (const roomId of ["club-1", "club-2"]) {
    await bob.createRoom(roomId, "Club");
    const room = await ann.join(roomId);
    room.onLeft((reason) => left.push([roomId, reason]));
  }
  await bob.deleteRoom("club-2"); // polled, for all streams are taken
  await until(() => left.length === 1);
  await bob.deleteRoom("club-1");
  await until(() => left.length === 2);
  assert.deepEqual(left, [["club-2", "ROOM_NOT_FOUND"], ["club-1", "the room was deleted"]]);
  assert.equal(ann.getRoom("club-1"), undefined);
});

test("typing is read, not told; auth that cannot be sent is told of once; who gives none stays one user", async (t) => {
  const ann = await connected(t, "ann", { ...sse, auth: { user_id: "ann", team: 7, colour: "red" } });
  const bob = await connected(t, "bob");
  const room = await ann.join(newRoom());
  const theirs = await bob.join(room.id);
  const typing = room.typingUsers();
  const seen = [];
  theirs.on("typing", () => seen.push(1));
  await room.setTyping();
  await theirs.setTyping();
  await until(() => typing.getSnapshot().length);
  assert.deepEqual(typing.getSnapshot(), ["bob"]);
  await theirs.trigger("message", 1);
  await until(() => typing.getSnapshot().length === 0);
  assert.deepEqual(seen, []);
  ann.lose();
  await until(() => ann.state === "resuming");
  await until(() => ann.connected);
  assert.deepEqual(ann.errors.map(({ code }) => code), ["AUTH_FAILED"]);
  assert.match(ann.errors[0].message, /not team, colour$/);

  const nobody = await connected(t, null, { ...sse, auth: undefined });
  const own = await nobody.join(room.id);
  const from = [];
  own.on("message", (event) => from.push(event.from));
  await own.trigger("message", 2);
  await until(() => from.length);
  assert.deepEqual(from, [nobody.userId]);
});

test("a page that comes back looks whether its streams are alive", async (t) => {
  const handlers = new Map();
  globalThis.addEventListener = (type, fn) => handlers.set(type, fn);
  globalThis.removeEventListener = (type) => handlers.delete(type);
  t.after(() => {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  });
  const ann = await connected(t, "ann", { ...sse, pollSeconds: 1000 });
  const room = await ann.join(newRoom());
  ann.network.isMute = true;
  const at = Date.now();
  t.mock.method(Date, "now", () => at + 300_000);
  handlers.get("focus")({ type: "focus" });
  await until(() => !room.joined);
  ann.network.isMute = false;
  await until(() => room.joined);
  assert.equal(ann.state, "connected");
  handlers.get("pageshow")({ type: "pageshow", persisted: true });
  assert.equal(ann.state, "resuming");
  await until(() => room.joined);
  ann.disconnect();
});

test("credentials that end are asked for again; refused ones are the end", async (t) => {
  const tokens = ["ann soon gone", "ann"];
  const options = { ...sse, url: process.env.DIALOGUE_GUARDED_URL, auth: () => ({ token: tokens.shift() }) };
  const ann = makeClient(t, null, options);
  const closed = [];
  ann.onDisconnect((info) => closed.push(info));
  await ann.connect();
  assert.equal(ann.userId, "ann");
  const room = await ann.join("general");
  await until(() => closed.length);
  await until(() => room.joined);
  assert.deepEqual([closed[0].code, closed[0].willReconnect, tokens.length], [4001, true, 0]);
  assert.deepEqual(ann.errors, []);
  await room.trigger("message", 1);

  const eve = makeClient(t, null, { ...options, auth: { token: "eve" } });
  await assert.rejects(eve.connect(), { code: "UNAUTHENTICATED", message: "log in again" });
  assert.equal(eve.state, "offline");
});

test("while neither comes through both are tried in turn, without end", async (t) => {
  const ann = makeClient(t, "ann", { transports: undefined });
  ann.network.isBlocked = ann.network.isDown = true;
  const connecting = ann.connect();
  await until(() => ann.network.requests.length === 5);
  assert.ok(ann.errors.length >= 6); // the sockets
  assert.deepEqual([...new Set(ann.network.requests)], ["GET /me"]);
  assert.equal(ann.state, "connecting");
  ann.network.isBlocked = false;
  await connecting;
  assert.equal(ann.transport, "websocket");
});

test("all events are subscribed to where one was", async (t) => {
  const ann = await connected(t, "ann", sse);
  const room = await ann.join(newRoom(), { events: "message" });
  await room.subscribeAll();
  assert.equal(room.subscriptions, "*");
  const heard = [];
  room.on("note", ({ data }) => heard.push(data));
  await room.trigger("note", 1);
  await until(() => heard.length);
  assert.deepEqual(heard, [1]);
});

/** Holds up what is published until the function that it returns is called. */
function holdPublishes(network) {
  let release;
  const held = new Promise((resolve) => (release = resolve));
  network.answer = (method) => (method === "POST" ? held : null);
  return release;
}

test("a room that was left while its join waited is not followed", async (t) => {
  const ann = await connected(t, "ann", sse);
  const first = await ann.join(newRoom());
  const release = holdPublishes(ann.network);
  const triggered = first.trigger("message", 1);
  await first.leave();
  ann.network.requests = [];
  const joining = assert.rejects(ann.join(first.id), { code: "NOT_JOINED" });
  await ann.getRoom(first.id).leave(); // while the join is in line behind the trigger
  await joining;
  release();
  await triggered;
  await ann.join(newRoom());
  assert.ok(!ann.network.requests.includes(`GET /rooms/${first.id}/events`));
});

test("a change of the subscription that waits while the stream breaks is made when the room is back", async (t) => {
  const ann = await connected(t, "ann", sse);
  const room = await ann.join(newRoom(), { events: "message" });
  const release = holdPublishes(ann.network);
  const triggered = room.trigger("message", 1);
  const subscribed = room.subscribe("note");
  ann.network.cut();
  await until(() => !room.joined);
  release();
  await Promise.all([triggered, subscribed]);
  assert.deepEqual(room.subscriptions, ["message", "note"]);
});

test("many rooms that are polled leave time for presence and unread counts", async (t) => {
  const ann = await connected(t, "ann", sse);
  const bob = await connected(t, "bob");
  const joined = await Promise.all(Array.from({ length: 16 }, () => ann.join(newRoom())));
  const unread = [];
  ann.onUnread((counts) => unread.push(counts));
  const last = joined.at(-1);
  const present = last.presentUsers();
  const theirs = await bob.join(last.id);
  await until(() => present.getSnapshot().users.includes("bob"));
  await (await connected(t, "ann")).join(last.id); // a member, for whom is counted
  await theirs.trigger("message", 1);
  await until(() => unread.some((counts) => counts[last.id] === 1));
});

test("what no room can be named is refused, and so is what something in between refuses", async (t) => {
  const ann = await connected(t, "ann", { ...sse, maxTriggerAttempts: 3 });
  const states = [];
  ann.onState((state) => states.push(state));
  for (const name of ["a/b", "..", ""]) {
    await assert.rejects(ann.join(name), { name: "DialogueError" });
    assert.equal(ann.getRoom(name), undefined);
    await assert.rejects(ann.deleteRoom(name), { name: "DialogueError" });
  }
  const room = await ann.join(newRoom());
  let tries = 0;
  ann.network.answer = (method) => {
    if (method !== "POST" || ++tries > 3) return null;
    return new Response("<h1>Forbidden</h1>", { status: 403, headers: { "content-type": "text/html" } });
  };
  await assert.rejects(room.trigger("message", "suspicious"), { code: "INTERNAL" });
  await room.trigger("message", "harmless");
  assert.deepEqual((await log(room)).map(([, data]) => data), ["harmless"]);
  assert.deepEqual(states, []);
});

test("a browser's own fetch can be given, and no rooms have no unread counts", async (t) => {
  async function fetch(...parts) {
    assert.equal(this, undefined, "Illegal invocation");
    return globalThis.fetch(...parts);
  }
  const ann = await connected(t, "ann", { ...sse, fetch });
  await (await ann.join(newRoom())).trigger("message", 1);
  assert.deepEqual(await ann.unread([]), {});
});

test("auth that hangs while a WebSocket is tried does not end the trying", async (t) => {
  let hangs = false;
  const auth = () => (hangs ? new Promise(() => {}) : { user_id: "ann" });
  const ann = makeClient(t, "ann", { transports: undefined, auth, connectTimeoutSeconds: 0.2, probeSeconds: 0.02 });
  ann.network.isBlocked = true;
  await ann.connect();
  hangs = true;
  ann.network.isBlocked = false;
  for (let turn = 0; turn < 10; turn += 1) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(ann.transport, "sse");
  hangs = false;
  await until(() => ann.transport === "websocket");
});
