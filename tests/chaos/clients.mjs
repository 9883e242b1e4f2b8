// The browser's clients of a chaos run, in one process: the same as `PythonFleet` does. Commands come as
// lines on stdin, answers go as lines to stdout.

import assert from "node:assert/strict";
import { createInterface } from "node:readline";

import { createDialogueClient } from "../../dialogue/static/dialogue.js";
import { WebSocket } from "../client/websocket.mjs";

const MAX_ENTRIES = 20;
const options = JSON.parse(process.argv[2]);

/** mulberry32: small, seeded, good enough to choose rooms. */
function chanceOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const markOf = (event) => (event.event === "$edit" ? `edit ${event.data.target_seq}` : event.data.mark);
const rowOf = ({ seq, data }) => [seq, data.mark, data.text];
const lastOf = (view) => view.heard.findLast((item) => item !== null)?.[0] ?? view.base;

class Member {
  acks = { recorded: {}, edited: [] };
  views = new Map();
  timelines = new Map();
  /** Timelines that hold few entries, of which most leave again. */
  windows = new Map();
  fills = [];
  isStopping = false;

  constructor(part) {
    this.part = part;
    this.chance = chanceOf(part.seed);
    this.client = createDialogueClient({
      url: options.url,
      auth: { user_id: part.name },
      WebSocket,
      transports: ["websocket"],
      backoffSeconds: 0.05,
      maxBackoffSeconds: 0.5,
      connectTimeoutSeconds: 2,
    });
    const bases = new Map();
    this.client.onHistory((roomId, events) => {
      if (!bases.has(roomId)) bases.set(roomId, events[0]?.seq ?? 0);
    });
    this.bases = bases;
  }

  async run() {
    await this.client.connect();
    const rooms = [];
    for (const roomId of this.part.rooms) rooms.push(await this.join(roomId));
    const numbers = new Map(this.part.rooms.map((roomId) => [roomId, 0]));
    const sending = new Set();
    // Once in each room at least: what a client has heard of its own ends the search for where its view begins.
    const chosen = [...rooms];
    while (chosen.length || !this.isStopping) {
      const room = chosen.pop() ?? rooms[Math.floor(this.chance() * rooms.length)];
      if (sending.size >= options.mostInFlight) await Promise.race(sending);
      const number = numbers.get(room.id);
      numbers.set(room.id, number + 1);
      const sent = this.send(room, `${this.part.name}.${room.id}.${number}`, this.chance() < 0.1);
      sending.add(sent);
      sent.then(() => sending.delete(sent));
      // The pace of the load; nothing is waited for.
      await sleep(-Math.log(1 - this.chance()) * options.pauseSeconds * 1000);
    }
    await Promise.all(sending);
  }

  async join(roomId) {
    const room = await this.client.join(roomId, { sync: 1 });
    const view = { client: this.part.name, room: roomId, base: this.bases.get(roomId) ?? 0 };
    Object.assign(view, { heard: [], filled: {}, timeline: null, window: null });
    this.views.set(roomId, view);
    room.onAny((event) => view.heard.push([event.seq, markOf(event)]));
    room.onReset(() => {
      view.heard.push(null);
      this.fills.push(this.fill(room, view));
    });
    if (this.timelines.size < 2) {
      const timeline = room.timeline("message", { pageSize: options.pageSize, maxEntries: 1_000_000 });
      this.timelines.set(roomId, timeline);
    } else this.windows.set(roomId, room.timeline("message", { pageSize: 5, maxEntries: MAX_ENTRIES }));
    return room;
  }

  /** Reads what a reset has left out: everything after what was heard before it, up to now. */
  async fill(room, view) {
    let after = lastOf(view);
    for (;;) {
      const { events } = await room.page({ after, limit: options.pageSize });
      if (!events.length) return;
      for (const event of events) view.filled[event.seq] = markOf(event);
      after = events.at(-1).seq;
    }
  }

  async send(room, mark, isEdited) {
    const { seq } = await room.trigger("message", { mark, text: "first" }, { key: mark });
    this.acks.recorded[mark] = seq;
    if (isEdited) {
      const edit = await room.edit(seq, { mark, text: "second" });
      this.acks.edited.push([room.id, edit.seq]);
    }
  }

  async finish(heads) {
    for (const view of this.views.values()) {
      while (Math.max(lastOf(view), ...Object.keys(view.filled).map(Number)) < heads[view.room]) await sleep(5);
    }
    await Promise.all(this.fills);
    for (const [roomId, timeline] of this.timelines) {
      await complete(timeline);
      const entries = timeline.getSnapshot().entries;
      this.views.get(roomId).timeline = entries.map(rowOf);
    }
    for (const [roomId, timeline] of this.windows) {
      // Up to a hole, if there is one: what is above it was missed and nobody has asked for it.
      const { entries, gaps } = timeline.getSnapshot();
      // More than its bound while it looks for how to come back to what it would drop.
      assert.ok(entries.length > 0 && entries.length <= 3 * MAX_ENTRIES, `${entries.length} entries`);
      const afterUids = gaps.map((gap) => gap.afterUid);
      const first = entries.findLastIndex(({ uid }) => afterUids.includes(uid)) + 1;
      this.views.get(roomId).window = entries.slice(first).map(rowOf);
    }
    return [...this.views.values()];
  }
}

/** Loads everything that a timeline can still have. */
async function complete(timeline) {
  for (;;) {
    const { gaps, hasNewer, hasOlder, loading, error } = timeline.getSnapshot();
    const missed = gaps.find((gap) => gap.reason === "missed");
    if (error) throw error;
    if (loading) await sleep(1);
    else if (missed) await timeline.fill(missed);
    else if (hasNewer) await timeline.loadNewer();
    else if (hasOlder) await timeline.loadOlder();
    else return;
  }
}

const members = options.parts.map((part) => new Member(part));
const running = members.map((member) => member.run());
/** Resolves when it is written: the process must not end before. */
const answer = (value) =>
  new Promise((resolve) => process.stdout.write(`${JSON.stringify(value)}\n`, () => resolve()));

for await (const line of createInterface({ input: process.stdin })) {
  const question = JSON.parse(line);
  if (question.do === "stop") {
    for (const member of members) member.isStopping = true;
    await Promise.all(running);
    const recorded = Object.assign({}, ...members.map((member) => member.acks.recorded));
    await answer({ recorded, edited: members.flatMap((member) => member.acks.edited) });
  } else {
    const views = [];
    for (const member of members) views.push(...(await member.finish(question.heads)));
    await answer(views);
    for (const member of members) member.client.disconnect();
    break;
  }
}
process.exit(0);
