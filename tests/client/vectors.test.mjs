// The browser client against the files in tests/vectors (see the README there). Run by test_vectors.py.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { createDialogueClient } from "../../dialogue/static/dialogue.js";

const FOLDER = new URL("../vectors/", import.meta.url);
const READ = [];

function load(name) {
  READ.push(name);
  const content = JSON.parse(readFileSync(new URL(name, FOLDER), "utf8"));
  assert.equal(content.format, 1, `${name} has another format than the one that is read here`);
  return content;
}

const MESSAGES = load("messages.json");
const RESUME = load("resume.json");
const TIMELINE = load("timeline.json");

test("every file is read here", () => {
  assert.deepEqual(READ.sort(), readdirSync(FOLDER).filter((name) => name.endsWith(".json")).sort());
});

async function turns(count = 4) {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** Until it is so: delays of the client are timers. */
async function until(condition) {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 0));
}

/** A client on sockets that a script opens, feeds and closes. */
class Wire {
  sockets = [];
  commands = [];
  refs = new Map();

  constructor() {
    const wire = this;
    this.WebSocket = class {
      constructor() {
        wire.sockets.push(this);
      }
      send(text) {
        const commands = JSON.parse(text);
        wire.commands.push(...(Array.isArray(commands) ? commands : [commands]));
      }
      close() {}
    };
    this.client = createDialogueClient({
      url: "http://server",
      auth: { user_id: "ann" },
      WebSocket: this.WebSocket,
      random: () => 0,
    });
  }

  get socket() {
    return this.sockets.at(-1);
  }

  async say(...messages) {
    this.socket.onmessage?.({ data: JSON.stringify(messages) });
    await turns();
  }

  /** Joins the room "general" of the epoch e1, where nothing has happened yet. */
  async join() {
    const connecting = this.client.connect();
    await turns();
    this.socket.onopen();
    await turns();
    const connected = { type: "connected", client_id: "c", user_id: "ann", protocol: 1, ping_seconds: 0 };
    await this.answer(connected);
    await connecting;
    const joining = this.client.join("general");
    await turns();
    const joined = { type: "joined", room: "general", name: "General", seq: 0, epoch: "e1", subscriptions: "*" };
    await this.answer({ ...joined, events: [], has_more: false, next: null, recovered: null });
    this.commands = [];
    return joining;
  }

  answer(message) {
    return this.say({ ...message, ref: this.commands.at(-1).ref });
  }
}

function over(list, use) {
  return async () => {
    for (const vector of list) {
      const wire = new Wire();
      try {
        await use(vector, wire);
      } catch (error) {
        error.message = `${vector.name ?? JSON.stringify(vector)}: ${error.message}`;
        throw error;
      } finally {
        wire.client.disconnect();
        await turns();
      }
    }
  };
}

// ---- messages

function asVector({ roomId, edited = false, deleted = false, key = null, ...event }) {
  return { room: roomId, ...event, key, edited, deleted };
}

function gapAsVector(gap) {
  return gap && { from_seq: gap.fromSeq, through_seq: gap.throughSeq, reason: gap.reason };
}

test(
  "events",
  over(MESSAGES.events, async ({ wire: message, event }, wire) => {
    const room = await wire.join();
    const received = [];
    room.onAny((one) => received.push(one));
    await wire.say(message);
    assert.deepEqual(received.map(asVector), [event]);
    assert.ok(Object.isFrozen(received[0]));
  }),
);

test(
  "pages",
  over(MESSAGES.pages, async ({ answer, page }, wire) => {
    const room = await wire.join();
    const reading = room.page();
    await turns();
    await wire.answer(answer);
    const { events, hasMore, next, previous, gap } = await reading;
    const seqs = events.map((event) => event.seq);
    assert.deepEqual({ seqs, has_more: hasMore, next, previous, gap: gapAsVector(gap) }, page);
  }),
);

test(
  "rooms",
  over(MESSAGES.rooms, async ({ record, room }, wire) => {
    await wire.join();
    const listing = wire.client.listRooms();
    await turns();
    await wire.answer({ type: "rooms", rooms: [record] });
    const [{ maxSize, createdById, ...rest }] = await listing;
    assert.deepEqual({ ...rest, max_size: maxSize, created_by_id: createdById }, room);
  }),
);

test(
  "acks",
  over(MESSAGES.acks, async ({ answer, ack }, wire) => {
    const room = await wire.join();
    const sending = room.trigger("message", "x");
    await turns();
    await wire.answer(answer);
    assert.deepEqual(await sending, ack);
  }),
);

test(
  "errors",
  over(MESSAGES.errors, async ({ answer, error }, wire) => {
    const room = await wire.join();
    const reading = room.page();
    const caught = assert.rejects(reading, (one) => {
      const { code, message, details, retryAfterSeconds } = one;
      assert.deepEqual({ code, message, details, retry_after_seconds: retryAfterSeconds }, error);
      return true;
    });
    await turns();
    await wire.answer(answer);
    await caught;
  }),
);

const CALLS = {
  join: ({ client }, _, { room, ...options }) => client.join(room, options),
  trigger: (_, room, { event, data, ...options }) => room.trigger(event, data, options),
  edit: (_, room, { seq, data, ...options }) => room.edit(seq, data, options),
  delete: (_, room, { seq, ...options }) => room.delete(seq, options),
  subscribe: (_, room, { events }) => room.subscribe(events),
  unsubscribe: (_, room, { events }) => room.unsubscribe(events),
  page: (_, room, query) => room.page(query),
  get_history: (_, room, { event, start, end }) => room.getHistory(event, start, end),
  list_rooms: ({ client }) => client.listRooms(),
  create_room: ({ client }, _, { room, name, description, max_size: maxSize }) =>
    client.createRoom(room, name, { description, maxSize }),
  delete_room: ({ client }, _, { room }) => client.deleteRoom(room),
  unread: ({ client }, _, { rooms }) => client.unread(rooms),
  mark_read: (_, room, { seq }) => room.markRead(seq),
  presence: (_, room) => room.presence(),
  leave: (_, room) => room.leave(),
};

test(
  "commands",
  over(MESSAGES.commands, async ({ call, args, command }, wire) => {
    const room = await wire.join();
    CALLS[call](wire, room, args).catch(() => {}); // ends with the connection
    await turns();
    const [{ ref, ...sent }, ...more] = wire.commands;
    assert.equal(typeof ref, "number");
    assert.deepEqual([sent, more], [command, []]);
  }),
);

// ---- resume

class Resume {
  room = null;
  told = [];
  resets = 0;
  left = 0;
  settled = {};
  opened = 0;

  constructor(wire) {
    this.wire = wire;
  }

  async do(step) {
    const { wire } = this;
    if (step.do === "connect") wire.client.connect().catch(() => {});
    else if (step.do === "open") {
      await until(() => wire.sockets.length > this.opened);
      this.opened = wire.sockets.length;
      wire.socket.onopen();
    } else if (step.do === "lose") wire.socket.onclose({ code: step.code, reason: "" });
    else if (step.do === "join") {
      wire.client.join(step.room).catch(() => {});
      this.room = wire.client.getRoom(step.room);
      this.room.onAny((event) => this.told.push([event.seq, event.data]));
      this.room.onReset(() => (this.resets += 1));
      this.room.onLeft(() => (this.left += 1));
    } else if (step.do === "trigger") {
      this.room.trigger(step.event, step.data, { key: step.key }).then(
        ({ seq, duplicate }) => (this.settled[step.id] = { seq, duplicate }),
        ({ code }) => (this.settled[step.id] = { error: code }),
      );
    } else assert.fail(`what is ${step.do}?`);
    await turns();
  }

  async expectSent(expected) {
    const { commands, refs } = this.wire;
    const index = () => commands.findIndex((command) => command.type === expected.type);
    await until(() => index() >= 0);
    const [command] = commands.splice(index(), 1);
    if (expected.ref) refs.set(expected.ref, command.ref);
    assert.deepEqual({ ...command, ref: expected.ref }, { ...expected, ref: expected.ref });
  }

  async run(steps) {
    const { wire } = this;
    for (const step of steps) {
      if (step.do) await this.do(step);
      else if (step.receives) {
        await wire.say(
          ...step.receives.map((message) => (message.ref ? { ...message, ref: wire.refs.get(message.ref) } : message)),
        );
      } else if (step.sends) for (const command of step.sends) await this.expectSent(command);
      else if (step.state) assert.equal(wire.client.state, step.state);
      else {
        const [[name, value]] = Object.entries(step);
        assert.deepEqual(this[name], value, name);
      }
    }
    await turns();
    assert.deepEqual(wire.commands, []);
  }
}

test(
  "resume",
  over(RESUME.scripts, ({ steps }, wire) => new Resume(wire).run(steps)),
);

// ---- timelines

test(
  "timelines",
  over(TIMELINE.scripts, async ({ steps }, wire) => {
    const room = await wire.join();
    const timeline = room.timeline("message", { pageSize: 3 });
    await turns();
    let asked = 0;
    for (const step of steps) {
      if (step.asks) {
        asked += 1;
        assert.equal(wire.commands.length, asked);
        const { ref, ...command } = wire.commands.at(-1);
        assert.ok(ref);
        assert.deepEqual(command, step.asks);
      } else if (step.answer) await wire.answer(step.answer);
      else if (step.live) await wire.say(...step.live);
      else if (step.load_older) {
        timeline.loadOlder();
        await turns();
      } else {
        const { entries, hasOlder, gaps } = timeline.getSnapshot();
        const shows = entries.map((entry) => [entry.seq, entry.data]);
        assert.deepEqual({ shows, has_older: hasOlder, gaps: gaps.map(gapAsVector) }, step);
      }
    }
    assert.equal(wire.commands.length, asked);
  }),
);
