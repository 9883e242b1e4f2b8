// The browser client's timeline on a real server: node --experimental-websocket … URL KIND
// KIND is what becomes of events that leave memory: "log", "archive" (without seqs) or "gone".
// Run by test_timeline_js.py.

import assert from "node:assert/strict";

import { createDialogueClient } from "../../dialogue/static/dialogue.js";

const [url, kind] = process.argv.slice(2);
const sockets = [];
let isDown = false;

/** Connections of the reader can be cut, and stay down for as long as the test says. */
function Cuttable(address) {
  if (isDown) throw new Error("no network");
  sockets.push(new WebSocket(address));
  return sockets.at(-1);
}

async function until(condition) {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}

async function joined(options) {
  const client = createDialogueClient({ url, backoffSeconds: 0.01, maxBackoffSeconds: 0.02, ...options });
  await client.connect();
  return { client, room: await client.join("general") };
}

const writer = await joined({ auth: { user_id: "bob" }, WebSocket });
// No other transport: the cut is one of sockets.
const reader = await joined({ auth: { user_id: "ann" }, WebSocket: Cuttable, transports: ["websocket"] });
const timeline = reader.room.timeline("message", { pageSize: 20, maxEntries: 60 });
const snapshot = () => timeline.getSnapshot();
const newest = () => snapshot().entries.at(-1)?.data.n;
let published = 0;

async function publish(count) {
  const acks = [];
  for (; count > 0; count -= 1) acks.push(writer.room.trigger("message", { n: published++ }));
  return Promise.all(acks);
}

/** In order, none twice, and none missing but where a gap says so. */
const seen = new Set();
function look() {
  const { entries, gaps } = snapshot();
  const named = new Set(gaps.map((gap) => gap.afterUid));
  for (const [at, { data, uid }] of entries.entries()) {
    seen.add(data.n);
    const next = entries[at + 1];
    if (!next) continue;
    if (named.has(uid)) assert.ok(data.n < next.data.n, `${data.n}, a gap, ${next.data.n}`);
    else assert.equal(next.data.n, data.n + 1);
  }
}

async function walk(call, has) {
  for (let pages = 0; snapshot()[has]; pages += 1) {
    assert.ok(pages < 100, "it goes on for ever");
    await timeline[call]();
    assert.equal(snapshot().error, null);
    look();
  }
}

/** From the newest to the oldest that the server has. */
async function walkAll() {
  seen.clear();
  await timeline.loadNewest();
  look();
  await walk("loadOlder", "hasOlder");
  const lost = snapshot().gaps.find((gap) => gap.afterUid === null);
  if (kind === "gone") assert.equal(lost.reason, "retention");
  else {
    assert.equal(lost, undefined);
    assert.equal(seen.size, published);
  }
}

for (let batch = 0; batch < 10; batch += 1) {
  await publish(10);
  await until(() => newest() === published - 1);
  look();
}
// Marks are asked for now and then: all of it is bounded once they are here.
await until(() => !snapshot().loading && snapshot().entries.length <= 60);
await walkAll();
if (kind !== "archive") {
  assert.ok(snapshot().entries.length <= 60);
  await walk("loadNewer", "hasNewer");
} else await timeline.loadNewest();
assert.equal(newest(), published - 1);

// A long absence: the newest page comes below what is held, and an edit of that is not missed.
const target = snapshot().entries.at(-1);
let resets = 0;
reader.room.onReset(() => (resets += 1));
isDown = true;
sockets.at(-1).close();
await until(() => reader.client.state === "resuming");
await writer.room.edit(target.seq, { n: target.data.n, edited: true }).catch(() => assert.equal(kind, "archive"));
await publish(45);
isDown = false;
await until(() => resets === 1 && newest() === published - 1 && !snapshot().loading);
look();
if (kind === "log") await until(() => snapshot().entries.find(({ uid }) => uid === target.uid)?.edited);
for (let pages = 0; ; pages += 1) {
  assert.ok(pages < 100, "a gap is never filled");
  const missed = snapshot().gaps.find((gap) => gap.reason === "missed");
  if (!missed) break;
  await timeline.fill(missed);
  look();
}
if (kind === "log") assert.deepEqual(snapshot().gaps, []);
await walk("loadNewer", "hasNewer");
assert.equal(newest(), published - 1);
await publish(1);
await until(() => newest() === published - 1);
look();
await walkAll();
console.log(`${published} events, ${seen.size} seen`);
reader.client.disconnect();
writer.client.disconnect();
