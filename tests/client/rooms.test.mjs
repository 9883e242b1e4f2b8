// Rooms, presence, typing and unread counts of the browser client, against a real server. Run by test_dialogue_js.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import { connected, until } from "./support.mjs";

test("typing is told, ends with a message, with silence and with leaving; one's own is not shown", async (t) => {
  const ann = await connected(t, "ann");
  const bob = await connected(t, "bob");
  const room = await ann.join("general");
  const theirs = await bob.join("general");
  const typing = room.typingUsers();
  const own = theirs.typingUsers();
  const heard = [];
  room.on("typing", ({ data }) => heard.push(data.is_typing));

  for (const _ of "hello") await theirs.setTyping();
  await until(() => typing.getSnapshot().length);
  assert.deepEqual(typing.getSnapshot(), ["bob"]);
  await theirs.trigger("message", { n: 1 });
  await until(() => typing.getSnapshot().length === 0);
  assert.deepEqual(heard, [true]);

  await theirs.setTyping();
  await until(() => typing.getSnapshot().length);
  await theirs.setTyping(false);
  await theirs.setTyping(false);
  await until(() => typing.getSnapshot().length === 0);
  await until(() => heard.length === 3);
  assert.deepEqual(heard, [true, true, false]);

  const short = room.typingUsers({ seconds: 0.05 });
  await theirs.setTyping();
  await until(() => short.getSnapshot().length);
  await until(() => short.getSnapshot().length === 0);
  assert.deepEqual(typing.getSnapshot(), ["bob"]);
  await theirs.leave();
  await until(() => typing.getSnapshot().length === 0);
  assert.deepEqual(own.getSnapshot(), []);
  assert.throws(() => room.typingUsers({ seconds: 0 }), TypeError);

  await theirs.setTyping(); // in no room any more: nothing is said
  await room.setTyping();
  ann.lose();
  await until(() => !ann.connected);
  await room.setTyping(); // without a connection nothing is said, and nothing is made up for
  await until(() => room.joined);
  assert.equal(heard.length, 4);
});

for (const transport of ["websocket", "sse"]) {
  const transports = [transport];

  test(`a room is made, listed, announced and deleted (${transport})`, async (t) => {
    const ann = await connected(t, "ann", { transports });
    const bob = await connected(t, "bob");
    const told = [];
    bob.onRoomCreated((room) => told.push(room));
    bob.onRoomUpdated((room) => told.push(room));
    bob.onRoomDeleted((roomId) => told.push(roomId));
    await ann.createRoom("club", "The club", { description: "ours", maxSize: 1 });
    const made = { id: "club", name: "The club", description: "ours", size: 0, maxSize: 1, createdById: "ann" };
    await until(() => told.length === 1);
    assert.deepEqual(told[0], made);
    assert.deepEqual((await bob.listRooms()).find(({ id }) => id === "club"), made);
    await assert.rejects(bob.createRoom("club", "Mine"), { code: "ROOM_EXISTS" });
    await assert.rejects(bob.deleteRoom("club"), { code: "PERMISSION_DENIED" });
    await assert.rejects(ann.deleteRoom("general"), { code: "PERMISSION_DENIED" });

    const room = await ann.join("club");
    if (transport === "websocket") await assert.rejects(bob.join("club"), { code: "ROOM_FULL" });
    assert.equal(bob.getRoom("club"), undefined);
    const reasons = [];
    room.onLeft((reason) => reasons.push(reason));
    await ann.deleteRoom("club");
    await until(() => told.length === 2 && reasons.length);
    assert.equal(told[1], "club");
    await assert.rejects(room.trigger("message", 1), { code: "NOT_JOINED" });
    await assert.rejects(ann.deleteRoom("club"), { code: "ROOM_NOT_FOUND" });
    assert.deepEqual([...ann.errors, ...bob.errors], []);
  });

  test(`presence is asked for, its changes are told, and a live set follows over a lost connection (${transport})`, async (t) => {
    const ann = await connected(t, "ann", { transports });
    const room = await ann.join("lobby");
    const changes = [];
    room.onPresence((change) => changes.push(change));
    const present = room.presentUsers();
    const users = () => [...present.getSnapshot().users].sort().join();
    // Who follows a room without a WebSocket is not in it.
    const own = transport === "sse" ? [] : ["ann"];
    const names = (...others) => [...own, ...others].join();
    await until(() => transport === "sse" || users() === "ann");
    assert.equal(present.getSnapshot(), present.getSnapshot());
    let calls = 0;
    present.subscribe(() => (calls += 1));

    const bob = await connected(t, "bob");
    await bob.join("lobby");
    await until(() => users() === names("bob"));
    await until(() => changes.some(({ joined, count }) => joined.includes("bob") && count === own.length + 1));
    assert.ok(calls > 0);
    assert.equal((await room.presence()).count, own.length + 1);

    // What happens meanwhile is not told later: it has to be asked for.
    ann.lose();
    await until(() => !ann.connected);
    bob.disconnect();
    const cyd = await connected(t, "cyd");
    const theirs = await cyd.join("lobby");
    await until(async () => ann.connected && [...(await theirs.presence()).users].sort().join() === names("cyd"));
    await until(() => users() === names("cyd"));
    present.close();
    const last = present.getSnapshot();
    await theirs.leave();
    await until(async () => (await room.presence()).count === own.length);
    assert.equal(present.getSnapshot(), last);
    assert.deepEqual(ann.errors, []);
  });

  test(`a room that does not tell who is in it says so, once (${transport})`, async (t) => {
    const ann = await connected(t, "ann", { transports });
    const room = await ann.join("quiet");
    await assert.rejects(room.presence(), { code: "PERMISSION_DENIED" });
    const present = room.presentUsers();
    await until(() => ann.errors.length);
    assert.deepEqual(ann.errors.map(({ code }) => code), ["PERMISSION_DENIED"]);
    assert.deepEqual(present.getSnapshot(), { users: [], count: 0 });
  });

  test(`unread counts are asked for, pushed, told again after a lost connection, and marked as read (${transport})`, async (t) => {
    const dan = await connected(t, `dan ${transport}`, { transports });
    const eve = await connected(t, `eve ${transport}`);
    const room = await dan.join("inbox");
    const theirs = await eve.join("inbox");
    const told = [];
    dan.onUnread((counts) => told.push(counts.inbox));
    const acks = [];
    for (let n = 1; n <= 3; n += 1) acks.push(await theirs.trigger("message", { n }));
    await until(() => told.at(-1) === 3);
    assert.deepEqual(await dan.unread(), { inbox: 3 });
    assert.deepEqual(await dan.unread(["inbox", "nowhere"]), { inbox: 3 });
    assert.equal(await room.markRead(acks[1].seq), 1);
    assert.equal(await room.markRead(), 0);
    assert.deepEqual(await dan.unread("inbox"), { inbox: 0 });

    dan.lose();
    await until(() => !dan.connected);
    await theirs.trigger("message", { n: 4 });
    const before = told.length;
    await until(() => told.length > before && told.at(-1) === 1);
    assert.deepEqual(dan.errors, []);
  });

  test(`what a narrower subscription left out does not come with a resume (${transport})`, async (t) => {
    const ann = await connected(t, "ann", { transports });
    const bob = await connected(t, "bob");
    const room = await ann.join("general", { events: ["message"] });
    const theirs = await bob.join("general");
    const heard = [];
    room.onAny(({ event, data }) => heard.push([event, data]));
    await theirs.trigger("note", "too early");
    await room.subscribe("note");
    ann.lose();
    await until(() => !ann.connected);
    await theirs.trigger("note", "in time");
    await until(() => heard.length);
    assert.deepEqual(heard, [["note", "in time"]]);
    assert.deepEqual(room.subscriptions, ["message", "note"]);
  });

  test(`a join that gets no subscription gives its share of the room back (${transport})`, async (t) => {
    const ann = await connected(t, "ann", { transports });
    const room = await ann.join("general", { events: ["message"] });
    await assert.rejects(ann.join("general", { events: ["no such event"] }));
    await room.leave();
    assert.equal(ann.getRoom("general"), undefined);
  });

  test(`both of two joins at once are refused; leaving while joining, and joining again, keep their order (${transport})`, async (t) => {
    const ann = await connected(t, "ann", { transports });
    const refused = await Promise.allSettled([ann.join("no such room"), ann.join("no such room")]);
    assert.deepEqual(refused.map(({ reason }) => reason?.code), ["ROOM_NOT_FOUND", "ROOM_NOT_FOUND"]);

    const first = ann.join("general");
    const left = ann.getRoom("general").leave();
    const second = ann.join("general");
    await assert.rejects(first, { code: "NOT_JOINED" });
    const room = await second;
    await left;
    assert.equal(ann.getRoom("general"), room);
    const again = room.leave();
    const [one, two] = await Promise.all([ann.join("general"), ann.join("general")]);
    await again;
    assert.equal(one, two);
    assert.notEqual(one, room);
    await one.leave();
    const heard = [];
    two.on("message", ({ data }) => heard.push(data.n));
    await two.trigger("message", { n: 7 });
    await until(() => heard.length);
    assert.deepEqual(heard, [7]);
    assert.deepEqual(ann.errors, []);
  });
}
