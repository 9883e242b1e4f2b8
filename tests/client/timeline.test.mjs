// The browser client's timeline against a model of a room's log, under random calls and events.
// Run by test_timeline_js.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import { createDialogueClient } from "../../dialogue/static/dialogue.js";

const PAGE_SIZE = 4;

/** A small generator with a seed, so that a failure can be looked at again. */
function randomFrom(seed) {
  let state = seed >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return Object.assign(random, {
    below: (limit) => Math.floor(random() * limit),
    chance: (probability) => random() < probability,
    pick: (list) => list[Math.floor(random() * list.length)],
  });
}

async function turns(count = 3) {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

/**
 * A room's log, and a server that reads it as `dialogue/server/history.py` does.
 *
 * Each event has a place, which is its timestamp too: its seq, or 0 and below for what came before
 * the first seq. What lies below `floor` has left the log: `past` says what has become of it.
 */
class World {
  epoch = "e1";
  log = []; // by seq - 1
  rows; // of an archive that keeps no seq, oldest first, at places 0 and below
  floor = 0;
  keys = new Map();
  connections = [];
  /** Reads that are not answered yet; see `answer`. */
  reads = [];
  repliesAt = 4;

  /**
   * @param names What the timeline shows; of several, a page holds the other events, too.
   * @param past What becomes of events that leave the log: "log" (none does), "rows" or "gone".
   */
  constructor({ rows = 0, past = "log", names = ["message"] } = {}) {
    this.past = past;
    this.names = names;
    this.rows = Array.from({ length: rows }, (_, index) => ({
      ...this.item(names[0], `row ${index}`, index - rows + 1),
      id: null,
      seq: null,
    }));
    const world = this;
    this.WebSocket = class {
      outbox = [];
      isOpen = true;
      isIn = false;
      constructor() {
        world.connections.push(this);
        queueMicrotask(() => this.onopen?.());
      }
      send(text) {
        const commands = JSON.parse(text);
        for (const command of Array.isArray(commands) ? commands : [commands]) world.take(this, command);
      }
      close() {
        this.isOpen = false;
      }
    };
  }

  item(name, data, place, from = "bob") {
    return { type: "event", room: "general", event: name, id: place, seq: place, from, timestamp: place, data };
  }

  get connection() {
    return this.connections.at(-1);
  }

  shows({ event }) {
    return this.names.includes(event);
  }

  append(name, data, { from, key } = {}) {
    const event = this.item(name, data, this.log.length + 1, from);
    if (key) this.keys.set(key, Object.assign(event, { key }));
    this.log.push(event);
    if (this.connection.isIn) this.connection.outbox.push({ ...event });
    return event;
  }

  edit(seq, data) {
    const target = this.log[seq - 1];
    if (target.deleted) return;
    for (const event of this.log) {
      if (event.event === "$edit" && event.data.target_seq === seq) event.data = { target_seq: seq };
    }
    Object.assign(target, { data, edited: true });
    this.append("$edit", { target_seq: seq, data });
  }

  delete(seq) {
    if (this.log[seq - 1].deleted) return;
    Object.assign(this.log[seq - 1], { data: null, deleted: true });
    this.append("$delete", { target_seq: seq });
  }

  begin(epoch) {
    this.epoch = epoch;
    this.log = [];
    this.rows = [];
    this.floor = 0;
  }

  take(connection, command) {
    const { type, ref, room } = command;
    const say = (message) => connection.outbox.push({ ref, ...message });
    if (type === "connect") say({ type: "connected", client_id: "c", user_id: "ann", ping_seconds: 0 });
    else if (type === "join") {
      const { since } = command;
      const missed = since && since.epoch === this.epoch ? this.log.slice(since.seq) : null;
      const recovered = since ? missed !== null && missed.length <= this.repliesAt : null;
      connection.isIn = true;
      say({
        type: "joined",
        room,
        name: room,
        seq: this.log.length,
        epoch: this.epoch,
        subscriptions: "*",
        events: recovered ? structuredClone(missed) : [],
        has_more: false,
        next: null,
        recovered,
      });
    } else if (type === "trigger") {
      const known = this.keys.get(command.key);
      const event = known ?? this.append(command.event, command.data, { from: "ann", key: command.key });
      say({ type: "ok", room, seq: event.seq, id: event.id, timestamp: event.timestamp, duplicate: Boolean(known) });
    } else if (type === "history") this.reads.push({ connection, command, page: null });
  }

  /** Reads the page of a read that waits; it is sent by `answer`. */
  read(waiting, { isUnavailable = false } = {}) {
    waiting.page ??= structuredClone(this.page(waiting.command, isUnavailable));
  }

  answer(waiting, options) {
    this.read(waiting, options);
    this.reads.splice(this.reads.indexOf(waiting), 1);
    const { connection, command, page } = waiting;
    const fields = { event: command.event ?? null, epoch: this.epoch, has_more: page.next !== null };
    if (connection.isOpen) connection.outbox.push({ type: "history", ref: command.ref, ...fields, ...page });
  }

  refuse(waiting, code = "STORE_UNAVAILABLE") {
    this.reads.splice(this.reads.indexOf(waiting), 1);
    const { connection, command } = waiting;
    if (connection.isOpen) connection.outbox.push({ type: "error", ref: command.ref, code, message: "no" });
  }

  page({ event, before, after, cursor, epoch, limit }, isUnavailable) {
    if (cursor !== undefined) {
      const [direction, place, of] = cursor.split("/");
      epoch = of;
      if (direction === "older") return this.older(event, Number(place), limit, isUnavailable, epoch);
      after = Number(place);
    }
    if (epoch !== undefined && epoch !== this.epoch) return { events: [], next: null };
    if (after !== undefined) return this.newer(event, after, limit, isUnavailable);
    if (before !== undefined && before <= this.floor && this.past === "rows") {
      return { events: [], next: null, gap: { from_seq: 1, through_seq: before - 1, reason: "no_seq" } };
    }
    return this.older(event, before ?? this.log.length + 1, limit, isUnavailable, this.epoch);
  }

  token(direction, place) {
    return `${direction}/${place}/${this.epoch}`;
  }

  /** Everything that can be read below a place, oldest first, as the server gives it. */
  all() {
    const archived = this.log.slice(0, this.floor).map((event) => ({ ...event, id: null, seq: null }));
    const past = { log: this.log.slice(0, this.floor), rows: archived, gone: [] }[this.past];
    return [...this.rows, ...past, ...this.log.slice(this.floor)];
  }

  older(name, place, limit, isUnavailable, epoch) {
    if (epoch !== this.epoch) return { events: [], next: null };
    const matching = this.all().filter((event) => isNamed(event, name) && event.timestamp < place);
    let events = matching.slice(-limit);
    if (isUnavailable) {
      events = events.slice(events.length >> 1);
      const from = events[0]?.timestamp ?? place;
      const gap = { from_seq: 1, through_seq: Math.max(1, from - 1), reason: "tier_unavailable" };
      return { events, next: this.token("older", from), gap };
    }
    const isEnd = events.length === matching.length;
    const isGone = isEnd && this.past === "gone" && this.floor > 0 && place > 1;
    const through = Math.min(place - 1, this.floor);
    return {
      events,
      next: isEnd ? null : this.token("older", events[0].timestamp),
      previous: events.some((event) => event.seq !== null) ? this.token("newer", events.at(-1).seq) : null,
      ...(isGone ? { gap: { from_seq: 1, through_seq: through, reason: "retention" } } : {}),
    };
  }

  newer(name, after, limit, isUnavailable) {
    const last = this.log.length;
    if (isUnavailable && after < last) {
      const gap = { from_seq: after + 1, through_seq: last, reason: "tier_unavailable" };
      return { events: [], next: this.token("newer", after), gap };
    }
    const from = this.past === "log" ? after : Math.max(after, this.floor);
    const reason = this.past === "rows" ? "no_seq" : "retention";
    const matching = this.log.slice(from).filter((event) => isNamed(event, name));
    const events = matching.slice(0, limit);
    const below = events[0]?.seq ?? after + 1;
    return {
      events,
      next: events.length < matching.length ? this.token("newer", events.at(-1).seq) : null,
      previous: below > 1 ? this.token("older", below) : null,
      ...(from > after ? { gap: { from_seq: after + 1, through_seq: from, reason } } : {}),
    };
  }

  /** Hands *count* messages to the client, in one frame or several. */
  async deliver(count = Infinity, perFrame = Infinity) {
    const { connection } = this;
    while (count > 0 && connection.isOpen && connection.outbox.length) {
      const frame = connection.outbox.splice(0, Math.min(count, perFrame));
      count -= frame.length;
      connection.onmessage?.({ data: JSON.stringify(frame) });
    }
    await turns();
  }

  async lose() {
    const { connection } = this;
    const { length } = this.connections;
    connection.isOpen = connection.isIn = false;
    this.reads = [];
    connection.onclose?.({ code: 1006, reason: "" });
    while (this.connections.length === length) await new Promise((resolve) => setTimeout(resolve, 0));
    await turns();
    await this.deliver(); // connected: the client joins
  }

  /** Everything is delivered and every read answered. */
  async quiet() {
    await turns();
    while (this.connection.outbox.length || this.reads.length) {
      for (const waiting of [...this.reads]) this.answer(waiting);
      await this.deliver();
    }
  }
}

function isNamed({ event }, name) {
  return name === undefined || event === name;
}

async function start(options, timelineOptions = {}) {
  const world = new World(options);
  const client = createDialogueClient({ url: "http://server", WebSocket: world.WebSocket, random: () => 0 });
  const connecting = client.connect();
  await turns();
  await world.deliver();
  await connecting;
  const joining = client.join("general");
  await turns();
  await world.deliver();
  const room = await joining;
  const timeline = room.timeline(world.names, { pageSize: PAGE_SIZE, maxEntries: 16, ...timelineOptions });
  return { world, client, room, timeline };
}

const isLost = (gap) => gap.reason === "retention" || gap.reason === "no_seq";

/** What must hold whenever one looks. */
function check(world, timeline, epoch) {
  const snapshot = timeline.getSnapshot();
  assert.equal(timeline.getSnapshot(), snapshot);
  assert.ok(Object.isFrozen(snapshot) && Object.isFrozen(snapshot.entries) && Object.isFrozen(snapshot.gaps));
  const uids = new Set(snapshot.entries.map((entry) => entry.uid));
  assert.equal(uids.size, snapshot.entries.length, "a uid twice");
  for (const gap of snapshot.gaps) {
    assert.ok(Object.isFrozen(gap));
    assert.ok(gap.afterUid === null || uids.has(gap.afterUid), "a gap behind nothing");
    assert.ok(gap.fromSeq <= gap.throughSeq, "an empty gap");
    const isInside = ({ seq, status }) => status === "recorded" && gap.fromSeq <= seq && seq <= gap.throughSeq;
    // Of rows below the first seq the server tells no range.
    if (!isLost(gap) && gap.afterUid === null) continue;
    assert.ok(!snapshot.entries.some(isInside), "a gap where an entry is");
  }
  let end = snapshot.entries.findIndex((entry) => entry.status !== "recorded");
  if (end < 0) end = snapshot.entries.length;
  assert.ok(snapshot.entries.slice(end).every((entry) => entry.seq === null || entry.status === "recorded"));
  const recorded = snapshot.entries.slice(0, end);
  if (epoch !== world.epoch) return { snapshot, recorded }; // of a log that is no more
  const places = new Map(snapshot.gaps.map((gap) => [gap.afterUid, []]));
  for (const gap of snapshot.gaps) places.get(gap.afterUid).push(gap);
  const all = [...world.rows, ...world.log].filter((event) => world.shows(event));
  const index = new Map(all.map((event, at) => [event.timestamp, at]));
  for (let at = 1; at < recorded.length; at += 1) {
    const [one, other] = [recorded[at - 1], recorded[at]];
    assert.ok(one.timestamp < other.timestamp, `${one.timestamp} before ${other.timestamp}`);
    const between = all.slice(index.get(one.timestamp) + 1, index.get(other.timestamp));
    const named = places.get(one.uid) ?? [];
    for (const { seq } of between) {
      assert.ok(
        named.some((gap) => gap.fromSeq <= seq && seq <= gap.throughSeq),
        `${seq} is missing between ${one.timestamp} and ${other.timestamp}`,
      );
    }
  }
  for (const { seq, uid } of recorded) {
    if (seq !== null && !uid.startsWith("key:")) assert.equal(uid, `${epoch}:${seq}`);
  }
  return { snapshot, recorded, all };
}

/** What must hold when nothing is on its way. */
function checkQuiet(world, timeline, epoch) {
  const { snapshot, recorded, all } = check(world, timeline, epoch);
  assert.equal(snapshot.loading, false);
  for (const entry of recorded) {
    const { data, edited, deleted } = all.find((event) => event.timestamp === entry.timestamp);
    // Without a seq nobody can tell of a change; after an error what was missed is read with the next load.
    if (entry.seq === null || snapshot.error) continue;
    if (world.past === "log" || entry.seq > world.floor) {
      assert.deepEqual([entry.data, entry.edited, entry.deleted], [data, edited, deleted], `entry ${entry.seq}`);
    }
  }
  if (!snapshot.hasNewer && !snapshot.error) {
    const newest = recorded.at(-1)?.timestamp;
    assert.equal(newest, world.all().findLast((event) => world.shows(event))?.timestamp ?? newest);
  }
}

async function walk(world, timeline, { next, has }, see) {
  for (let pages = 0; timeline.getSnapshot()[has]; pages += 1) {
    assert.ok(pages < 2000, "it goes on for ever");
    const done = timeline[next]();
    assert.equal(timeline.getSnapshot().loading, true);
    assert.equal(timeline[next](), done);
    await turns();
    await world.quiet();
    await done;
    see(check(world, timeline, world.epoch));
  }
}

async function fillAll(world, timeline, see) {
  for (let pages = 0; ; pages += 1) {
    const gap = timeline.getSnapshot().gaps.find((one) => !isLost(one));
    if (!gap) return;
    assert.ok(pages < 2000, "a gap is never filled");
    const filling = timeline.fill(gap);
    assert.equal(timeline.fill(gap), filling);
    await turns();
    await world.quiet();
    await filling;
    see(check(world, timeline, world.epoch));
  }
}

const SET_UPS = [
  { name: "a log", options: { past: "log" }, floors: false },
  { name: "several names", options: { names: ["message", "other"] }, floors: false },
  { name: "a log above rows without seq", options: { past: "log", rows: 23 }, floors: false },
  { name: "memory above an archive without seq", options: { past: "rows" }, floors: true, changes: false },
  { name: "memory alone", options: { past: "gone" }, floors: true },
];

async function run(seed, setUp) {
  const random = randomFrom(seed);
  const maxEntries = random.pick([8, 16, 40]);
  const held = random.pick([2, 12]); // of the newest, in memory, where that is all there is
  const { world, client, timeline } = await start(setUp.options, { maxEntries });
  const sent = new Map();
  let known = world.epoch;
  let notified = 0;
  timeline.subscribe(() => (notified += 1));
  let changes = 0;
  const publish = (count) => {
    for (let one = 0; one < count; one += 1) {
      world.append(random.chance(0.7) ? "message" : random.pick(["other", "third"]), { number: world.log.length });
    }
    if (!setUp.floors) return;
    const oldest = world.log.filter((event) => world.shows(event)).at(-held);
    if (oldest) world.floor = oldest.seq - 1;
  };
  const someSeq = () => {
    const from = setUp.floors ? world.floor : 0;
    const targets = world.log.slice(from).filter((event) => world.shows(event));
    return targets.length ? random.pick(targets).seq : null;
  };
  const steps = {
    publish: [10, () => publish(1 + random.below(3))],
    burst: [1, () => publish(random.below(40))],
    edit: [
      setUp.changes === false ? 0 : 3,
      () => {
        const seq = someSeq();
        if (seq !== null) world.edit(seq, { number: seq - 1, changes: (changes += 1) });
      },
    ],
    delete: [
      setUp.changes === false ? 0 : 0.5,
      () => {
        const seq = someSeq();
        if (seq !== null) world.delete(seq);
      },
    ],
    deliver: [8, () => world.deliver(1 + random.below(6), 1 + random.below(4))],
    read: [4, () => world.reads.length && world.read(random.pick(world.reads), { isUnavailable: random.chance(0.1) })],
    answer: [8, () => world.reads.length && world.answer(world.reads[0], { isUnavailable: random.chance(0.1) })],
    refuse: [0.7, () => world.reads.length && world.refuse(world.reads[0])],
    loadOlder: [7, () => void timeline.loadOlder()],
    loadNewer: [5, () => void timeline.loadNewer()],
    loadNewest: [0.5, () => void timeline.loadNewest()],
    fill: [
      4,
      () => {
        const { gaps } = timeline.getSnapshot();
        if (gaps.length) timeline.fill(random.pick(gaps));
      },
    ],
    follow: [1, () => timeline.setFollowing(random.chance(0.5))],
    send: [1, () => sent.set(timeline.send({ own: sent.size }, { event: "message" }), sent.size)],
    lose: [
      1,
      async () => {
        const { connection } = world;
        if (!connection.isIn) return;
        connection.isIn = false; // what happens from here on is not told
        if (random.chance(0.7)) publish(random.below(12));
        const seq = someSeq();
        if (seq !== null && setUp.changes !== false && random.chance(0.5)) {
          world.edit(seq, { number: seq - 1, changes: (changes += 1) });
        }
        await world.lose();
      },
    ],
    epoch: [
      0.1,
      async () => {
        world.connection.isIn = false;
        world.begin(`${world.epoch}+`);
        await world.lose();
        await world.deliver();
        known = world.epoch;
      },
    ],
    quiet: [
      1,
      async () => {
        await world.quiet();
        checkQuiet(world, timeline, known);
      },
    ],
  };
  const total = Object.values(steps).reduce((sum, [weight]) => sum + weight, 0);
  const done = [];
  try {
    for (let step = 0; step < 150; step += 1) {
      let at = random() * total;
      const [name, [, act]] = Object.entries(steps).find(([, [weight]]) => (at -= weight) < 0);
      done.push(name);
      const before = timeline.getSnapshot();
      const told = notified;
      await act();
      await turns(1);
      const after = timeline.getSnapshot();
      assert.ok(after === before || notified > told, "a change nobody was told of");
      check(world, timeline, known);
    }
    timeline.setFollowing(true);
    await world.quiet();
    checkQuiet(world, timeline, known);
    const readable = world.all().filter((event) => world.shows(event));
    const seen = new Set();
    const see = ({ recorded }) => recorded.forEach(({ timestamp }) => seen.add(timestamp));
    see(check(world, timeline, known));
    await walk(world, timeline, { next: "loadOlder", has: "hasOlder" }, see);
    const { recorded: first, snapshot } = check(world, timeline, known);
    if (snapshot.gaps.some((gap) => gap.afterUid === null)) assert.equal(setUp.floors, true);
    else assert.ok(!(first[0]?.timestamp > readable[0]?.timestamp), "the beginning");
    await fillAll(world, timeline, see);
    await walk(world, timeline, { next: "loadNewer", has: "hasNewer" }, see);
    await fillAll(world, timeline, see);
    checkQuiet(world, timeline, known);
    const { recorded: last } = check(world, timeline, known);
    assert.equal(last.at(-1)?.timestamp, readable.at(-1)?.timestamp, "the end");
    if (setUp.floors) return;
    assert.deepEqual(timeline.getSnapshot().gaps, []);
    assert.deepEqual(
      readable.filter(({ timestamp }) => !seen.has(timestamp)),
      [],
      "never shown",
    );
    if (setUp.options.rows) return; // more is held than could be found again
    assert.ok(last.length <= maxEntries, `${last.length} of ${maxEntries} held`);
  } catch (error) {
    error.message = `seed ${seed}, ${setUp.name}, after ${done.slice(-12).join(" ")}: ${error.message}`;
    throw error;
  } finally {
    timeline.close();
    client.disconnect();
  }
}

const FIRST_SEED = Number(process.env.TIMELINE_SEED ?? 1);
const SEEDS = Number(process.env.TIMELINE_SEEDS ?? 12);

for (const setUp of SET_UPS) {
  test(`whatever happens, the list is the log: ${setUp.name}`, async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed += 1) await run(seed, setUp);
  });
}

const messages = (world, count) => {
  for (let one = 0; one < count; one += 1) world.append("message", { number: world.log.length });
};
const seqs = (timeline) => timeline.getSnapshot().entries.map((entry) => entry.seq);
const range = (from, through) => Array.from({ length: through - from + 1 }, (_, index) => from + index);

async function one(options, use) {
  const setUp = await start({}, options);
  try {
    await setUp.world.quiet();
    await use(setUp);
  } finally {
    setUp.timeline.close();
    setUp.client.disconnect();
  }
}

test("a reader who follows keeps the newest, and what was dropped comes again as it was", () =>
  one({ maxEntries: 16 }, async ({ world, timeline }) => {
    const uids = new Map();
    for (let number = 0; number < 100; number += 1) {
      messages(world, 1);
      await world.quiet();
      for (const { seq, uid } of timeline.getSnapshot().entries) {
        assert.equal(uids.get(seq) ?? uid, uid);
        uids.set(seq, uid);
      }
      assert.ok(timeline.getSnapshot().entries.length <= 16);
    }
    assert.equal(timeline.getSnapshot().hasOlder, true);
    while (timeline.getSnapshot().hasOlder) {
      timeline.loadOlder();
      await world.quiet();
      for (const { seq, uid } of timeline.getSnapshot().entries) assert.equal(uids.get(seq), uid);
    }
    assert.deepEqual(seqs(timeline), range(1, 16));
    assert.equal(timeline.getSnapshot().hasNewer, true);
    timeline.loadNewest();
    assert.deepEqual(seqs(timeline), range(1, 16), "held until the newest page is here");
    await world.quiet();
    assert.deepEqual(seqs(timeline), range(97, 100));
    assert.equal(timeline.getSnapshot().hasNewer, false);
  }));

test("a first page that comes after more live events than are held leaves the newest", async () => {
  const { world, client, timeline } = await start({}, { maxEntries: 16 });
  messages(world, 20);
  await world.deliver();
  while (!world.reads[0].command.cursor) {
    world.answer(world.reads[0]); // nothing that has not come live: the page below is asked for, too
    await world.deliver();
  }
  messages(world, 20);
  await world.quiet();
  messages(world, 3);
  await world.quiet();
  const { hasNewer, hasOlder } = timeline.getSnapshot();
  assert.deepEqual([seqs(timeline).at(-1), hasNewer, hasOlder], [43, false, true]);
  assert.deepEqual(seqs(timeline), range(44 - seqs(timeline).length, 43));
  await walk(world, timeline, { next: "loadOlder", has: "hasOlder" }, () => {});
  assert.deepEqual(seqs(timeline)[0], 1);
  timeline.close();
  client.disconnect();
});

test("a reader who does not follow keeps what is being read", () =>
  one({ maxEntries: 8 }, async ({ world, timeline }) => {
    timeline.setFollowing(false);
    messages(world, 8);
    await world.quiet();
    const before = timeline.getSnapshot();
    assert.deepEqual([seqs(timeline), before.hasNewer], [range(1, 8), false]);
    messages(world, 30);
    await world.quiet();
    const after = timeline.getSnapshot();
    assert.deepEqual([seqs(timeline), after.hasNewer], [range(1, 8), true]);
    after.entries.forEach((entry, at) => assert.equal(entry, before.entries[at]));
    // Long absences change nothing of it either.
    world.connection.isIn = false;
    messages(world, 30);
    await world.lose();
    await world.quiet();
    assert.deepEqual([seqs(timeline), timeline.getSnapshot().gaps], [range(1, 8), []]);
  }));

test("live events that come with the last newer page are shown once", () =>
  one({ maxEntries: 8 }, async ({ world, timeline }) => {
    timeline.setFollowing(false);
    messages(world, 11);
    await world.quiet();
    timeline.loadNewer();
    await turns();
    messages(world, 2); // before it is read: 12 is in the page, 12 and 13 come live
    await world.deliver();
    world.read(world.reads[0]);
    messages(world, 2); // after it
    await world.deliver();
    await world.quiet();
    await walk(world, timeline, { next: "loadNewer", has: "hasNewer" }, () => {});
    assert.deepEqual(seqs(timeline).slice(-6), range(10, 15));
  }));

test("two long absences leave two holes, each filled from its older side", () =>
  one({ maxEntries: 100 }, async ({ world, timeline }) => {
    messages(world, 3);
    await world.quiet();
    for (let absence = 0; absence < 2; absence += 1) {
      world.connection.isIn = false;
      messages(world, 12);
      world.edit(1, { edited: absence });
      await world.lose();
      await world.quiet();
    }
    const { gaps, entries } = timeline.getSnapshot();
    assert.deepEqual(entries[0].data, { edited: 1 }, "what is held is read again");
    assert.deepEqual(gaps, [
      { fromSeq: 4, throughSeq: 11, reason: "missed", afterUid: "e1:3" },
      { fromSeq: 17, throughSeq: 24, reason: "missed", afterUid: "e1:15" },
    ]);
    timeline.fill(gaps[1]);
    await world.quiet();
    assert.deepEqual(timeline.getSnapshot().gaps[1], { ...gaps[1], fromSeq: 21, afterUid: "e1:20" });
    timeline.fill(gaps[1]); // of an earlier snapshot: what is left of it
    await world.quiet();
    assert.deepEqual(timeline.getSnapshot().gaps, [gaps[0]]);
    await fillAll(world, timeline, () => {});
    assert.deepEqual(seqs(timeline), [...range(1, 15), ...range(17, 28)]); // 16 and 29 are the edits
  }));

test("what is sent keeps its uid, whatever becomes of it", () =>
  one({ maxEntries: 8 }, async ({ world, timeline }) => {
    const uid = timeline.send({ text: "mine" });
    messages(world, 1);
    await world.deliver(1);
    assert.deepEqual(timeline.getSnapshot().entries.at(-1).uid, uid);
    await world.quiet();
    const mine = timeline.getSnapshot().entries.find((entry) => entry.uid === uid);
    assert.deepEqual([mine.status, mine.data], ["recorded", { text: "mine" }]);

    const take = world.take;
    world.take = (connection, { ref }) =>
      connection.outbox.push({ type: "error", ref, code: "BLOCKED", message: "no" });
    const refused = timeline.send({ text: "again" });
    await world.quiet();
    assert.deepEqual(timeline.getSnapshot().entries.at(-1).status, "failed");
    assert.equal(timeline.getSnapshot().entries.at(-1).error.code, "BLOCKED");
    world.take = take;
    messages(world, 1);
    await world.quiet();
    assert.equal(timeline.getSnapshot().entries.at(-1).uid, refused, "it stays at the end");
    timeline.retry(refused);
    assert.equal(timeline.getSnapshot().entries.at(-1).error, undefined);
    await world.quiet();
    const again = timeline.getSnapshot().entries.at(-1);
    assert.deepEqual([again.uid, again.status, again.seq], [refused, "recorded", 4]);
  }));

test("a page that fails is told of, and asked for again by the same call", () =>
  one({ maxEntries: 16 }, async ({ world, timeline }) => {
    messages(world, 10);
    world.connection.outbox = [];
    timeline._reset(null);
    const loading = timeline.loadOlder();
    await turns();
    world.refuse(world.reads[0]);
    await world.deliver();
    await loading;
    assert.equal(timeline.getSnapshot().error.code, "STORE_UNAVAILABLE");
    timeline.loadOlder();
    assert.equal(timeline.getSnapshot().error, null);
    await turns();
    world.answer(world.reads[0], { isUnavailable: true });
    await world.deliver();
    const { gaps, hasOlder } = timeline.getSnapshot();
    assert.deepEqual([seqs(timeline), hasOlder], [[9, 10], true]);
    assert.deepEqual(gaps, [{ fromSeq: 1, throughSeq: 8, reason: "tier_unavailable", afterUid: null }]);
    timeline.fill(gaps[0]);
    await world.quiet();
    assert.deepEqual([seqs(timeline), timeline.getSnapshot().gaps], [range(5, 10), []]);
  }));

test("many live events at once are one change, however many are held", () =>
  one({ maxEntries: 100_000, pageSize: 50 }, async ({ world, timeline }) => {
    let calls = 0;
    timeline.subscribe(() => (calls += 1));
    messages(world, 20_000);
    await world.deliver();
    assert.equal(timeline.getSnapshot().entries.length, 20_000);
    assert.equal(calls, 1, "one frame, one microtask, one call");
  }));
