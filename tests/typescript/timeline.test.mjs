// `useTimeline` of both examples, and their chats, in a DOM and against a real server. Run by test_examples.py, beside
// what the compiler has made of the examples.

import assert from "node:assert/strict";
import { after, test } from "node:test";

import { Window } from "happy-dom";

import { createDialogueClient } from "./dialogue.js";

const { WebSocket, fetch } = globalThis;
const URL = process.env.DIALOGUE_URL;

const window = new Window({ url: "http://localhost/" });
for (const name of ["window", "document", "navigator", "Node", "Element", "HTMLElement", "SVGElement"]) {
  const value = name === "window" ? window : window[name];
  Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
}
for (const name of ["Document", "HTMLIFrameElement", "HTMLInputElement", "MathMLElement", "ShadowRoot"]) {
  globalThis[name] = window[name];
}
after(() => window.happyDOM.close());

const { StrictMode, createElement } = await import("react");
const { createRoot } = await import("react-dom/client");
const { flushSync } = await import("react-dom");
const { renderToString } = await import("react-dom/server");
const vue = await import("vue");
const react = {
  ...(await import("./out/react/useTimeline.js")),
  ...(await import("./out/react/Chat.js")),
};
const vueTimeline = await import("./out/vue/useTimeline.js");
const { default: VueChat } = await import("./out/vue/Chat.vue.js");

async function until(condition) {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 2));
}

/** A client that counts the joins that succeeded, the leaves, and the timelines that are open. */
async function connect(userId) {
  const client = createDialogueClient({ url: URL, auth: { user_id: userId }, WebSocket });
  const { join } = client;
  client.joins = client.leaves = client.open = 0;
  client.join = async (...wanted) => {
    const room = await join.apply(client, wanted);
    client.joins += 1;
    if (!Object.hasOwn(room, "leave")) {
      const { leave, timeline } = room;
      room.timeline = (...wanted) => {
        const opened = timeline.apply(room, wanted);
        const { close } = opened;
        let isOpen = true;
        client.open += 1;
        opened.close = () => {
          if (isOpen) client.open -= 1;
          isOpen = false;
          close.call(opened);
        };
        return opened;
      };
      room.leave = () => {
        client.leaves += 1;
        return leave.call(room);
      };
    }
    return room;
  };
  await client.connect();
  return client;
}

async function publish(roomId, event, data) {
  const answer = await fetch(`${URL}/rooms/${roomId}/events?user_id=bob`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ event, data }),
  });
  assert.equal(answer.status, 201);
  return answer.json();
}

/** How many connections are in a room, by the server's own account. */
async function size(roomId) {
  const { rooms } = await (await fetch(`${URL}/rooms?user_id=bob`)).json();
  return rooms.find(({ id }) => id === roomId).size;
}

function place() {
  const element = window.document.createElement("div");
  window.document.body.append(element);
  return element;
}

const OPTIONS = { pageSize: 20 };

/** Shows a room by a framework's `useTimeline`; `seen` is all that was ever rendered. */
const frameworks = {
  react: {
    /** StrictMode runs each effect twice. */
    joinsPerMount: 2,
    show(client, roomId) {
      const seen = [];
      function Probe({ roomId }) {
        const found = react.useTimeline(client, roomId, ["message"], { ...OPTIONS });
        seen.push({ roomId, ...found });
        return null;
      }
      const root = createRoot(place());
      const render = (roomId) =>
        flushSync(() => root.render(createElement(StrictMode, null, createElement(Probe, { roomId }))));
      render(roomId);
      return { seen, last: () => seen.at(-1), render, unmount: () => root.unmount() };
    },
    chat(client) {
      const element = place();
      const root = createRoot(element);
      const props = { client, roomId: "general", username: "Ann" };
      flushSync(() => root.render(createElement(StrictMode, null, createElement(react.Chat, props))));
      return { element, unmount: () => root.unmount() };
    },
  },
  vue: {
    joinsPerMount: 1,
    show(client, first) {
      const seen = [];
      const roomId = vue.shallowRef(first);
      const app = vue.createApp({
        setup() {
          const found = vueTimeline.useTimeline(client, roomId, ["message"], { ...OPTIONS });
          const now = () => Object.fromEntries(Object.entries(found).map(([name, { value }]) => [name, value]));
          return () => {
            seen.push({ roomId: roomId.value, ...now() });
            return null;
          };
        },
      });
      app.mount(place());
      const render = (next) => {
        roomId.value = next;
      };
      return { seen, last: () => seen.at(-1), render, unmount: () => app.unmount() };
    },
    chat(client) {
      const element = place();
      const app = vue.createApp(VueChat, { client, roomId: "general", username: "Ann" });
      app.mount(element);
      return { element, unmount: () => app.unmount() };
    },
  },
};

async function isGone(client, roomId) {
  await until(() => client.joins === client.leaves);
  assert.equal(client.open, 0);
  await until(() => client.getRoom(roomId) === undefined);
  await until(async () => (await size(roomId)) === 0);
}

for (const [name, { show, chat, joinsPerMount }] of Object.entries(frameworks)) {
  test(`${name}: a mounted room shows pages, live events and what is sent; unmounted it is left`, async () => {
    const client = await connect("ann");
    const view = show(client, "general");
    assert.equal(view.last().snapshot.entries.length, 0);
    assert.equal(view.last().snapshot.loading, true);
    assert.equal(view.last().timeline, null);
    await until(() => view.last().snapshot.entries.length === 20);
    await until(() => client.joins === joinsPerMount && client.leaves === joinsPerMount - 1);
    assert.equal(client.open, 1);
    assert.equal(await size("general"), 1);

    const { seq } = await publish("general", "message", { text: "live", username: "Bob" });
    await until(() => view.last().snapshot.entries.at(-1).seq === seq);
    await view.last().timeline.loadOlder();
    await until(() => view.last().snapshot.entries.length === 41);
    const seqs = view.last().snapshot.entries.map((entry) => entry.seq);
    assert.deepEqual(seqs, Array.from(seqs, (_, index) => seqs[0] + index));

    const uid = view.last().timeline.send({ text: "mine", username: "Ann" });
    const mine = () => view.last().snapshot.entries.filter((entry) => entry.uid === uid);
    await until(() => mine()[0]?.status === "recorded");
    assert.equal(mine().length, 1);
    assert.ok(view.seen.some(({ snapshot }) => snapshot.entries.at(-1)?.status === "sending"));

    const { timeline } = view.last();
    const renderings = view.seen.length;
    view.unmount();
    await isGone(client, "general");
    assert.equal(client.joins, joinsPerMount);
    await publish("general", "message", { text: "unseen", username: "Bob" });
    assert.equal(timeline.getSnapshot().entries.length, 42, "it is closed");
    assert.equal(view.seen.length, renderings);
    client.disconnect();
  });

  test(`${name}: another room takes the place of the first, and is never shown with its events`, async () => {
    const client = await connect("ann");
    const view = show(client, "general");
    await until(() => view.last().snapshot.entries.length === 20);
    for (const roomId of ["other", "general", "other"]) view.render(roomId);
    await until(() => view.last().roomId === "other" && view.last().snapshot.entries.length > 0);
    for (const { roomId, room, snapshot } of view.seen) {
      assert.ok(snapshot.entries.every((entry) => entry.roomId === roomId));
      assert.ok(room === null || room.id === roomId);
    }
    await until(() => client.joins - client.leaves === 1 && client.getRoom("general") === undefined);
    assert.equal(client.open, 1);
    await until(async () => (await size("general")) === 0);
    assert.equal(await size("other"), 1);
    view.unmount();
    await isGone(client, "other");
    client.disconnect();
  });

  test(`${name}: two components share a room, and the last one to go leaves it`, async () => {
    const client = await connect("ann");
    const [first, second] = [show(client, "other"), show(client, "other")];
    await until(() => [first, second].every((view) => view.last().snapshot.entries.length > 0));
    first.unmount();
    await until(() => client.joins - client.leaves === 1);
    const { seq } = await publish("other", "message", { text: "still", username: "Bob" });
    await until(() => second.last().snapshot.entries.at(-1).seq === seq);
    assert.equal(await size("other"), 1);
    second.unmount();
    await isGone(client, "other");
    client.disconnect();
  });

  test(`${name}: a component that is gone before the room is joined leaves it all the same`, async () => {
    const client = await connect("ann");
    const view = show(client, "general");
    view.unmount();
    await until(() => client.joins === joinsPerMount);
    await isGone(client, "general");
    assert.ok(view.seen.every(({ timeline }) => timeline === null));
    client.disconnect();
  });

  test(`${name}: a room that refuses is told of, and another one can be shown`, async () => {
    const client = await connect("ann");
    const view = show(client, "nowhere");
    await until(() => view.last().error !== null);
    assert.equal(view.last().error.code, "ROOM_NOT_FOUND");
    assert.equal(view.last().room, null);
    view.render("other");
    await until(() => view.last().snapshot.entries.length > 0);
    assert.equal(view.last().error, null);
    view.unmount();
    await isGone(client, "other");
    client.disconnect();
  });

  test(`${name}: who is taken out of the room is told, and leaves nothing behind`, async () => {
    const client = await connect(`${name} kicked`);
    const view = show(client, "general");
    await until(() => view.last().snapshot.entries.length === 20);
    await publish("general", "kick", `${name} kicked`);
    await until(() => view.last().error !== null);
    assert.equal(view.last().error.message, "out");
    assert.equal(view.last().snapshot.entries.length, 20);
    view.unmount();
    await isGone(client, "general");
    client.disconnect();
  });

  test(`${name}: the chat shows messages and sends what is typed`, async () => {
    const client = await connect("ann");
    const { onState } = client;
    let watches = 0;
    client.onState = (fn) => {
      watches += 1;
      return onState.call(client, fn);
    };
    const { element, unmount } = chat(client);
    await until(() => element.querySelectorAll("li.recorded").length > 0);
    assert.equal(element.querySelector("[role=status]").textContent.trim(), "connected");
    const input = element.querySelector("input");
    // As a user does: React looks at the value's own setter.
    Object.getOwnPropertyDescriptor(window.HTMLInputElement.prototype, "value").set.call(input, `typed in ${name}`);
    input.dispatchEvent(new window.Event("input", { bubbles: true }));
    await until(() => !element.querySelector("form button").disabled);
    const submit = new window.Event("submit", { bubbles: true, cancelable: true });
    element.querySelector("form").dispatchEvent(submit);
    const last = () => [...element.querySelectorAll("li")].at(-1);
    await until(() => last().textContent.includes(`typed in ${name}`) && last().className === "recorded");
    assert.equal(last().querySelector("b").textContent, "Ann");
    await until(() => input.value === "");
    unmount();
    await isGone(client, "general");
    client.disconnect();
    assert.equal(watches, joinsPerMount); // not one for each rendering
  });

  test(`${name}: the chat names what was missed, and shows it when it is asked to`, async () => {
    const client = await connect("ann");
    const { element, unmount } = chat(client);
    await until(() => element.querySelectorAll("li.recorded").length > 0);
    client.disconnect();
    // Two pages of the default size, and the first of the next.
    const texts = Array.from({ length: 101 }, (_, index) => `missed by ${name} ${index}`);
    for (const text of texts) await publish("general", "message", { text, username: "Bob" });
    await client.connect();
    const shown = () => [...element.querySelectorAll("li.recorded")].map((li) => li.textContent.trim());
    await until(() => shown().at(-1).includes(texts.at(-1)));
    assert.ok(!shown().some((text) => text.endsWith(texts[0])));
    for (let gap; (gap = element.querySelector("li.gap")); ) {
      const before = shown().length;
      gap.querySelector("button").click();
      await until(() => shown().length > before || !element.querySelector("li.gap"));
    }
    assert.deepEqual(shown().slice(-texts.length), texts.map((text) => `Bob ${text}`));
    unmount();
    await isGone(client, "general");
    client.disconnect();
  });
}

test("react: on a server nothing is joined", async () => {
  const client = await connect("ann");
  const html = renderToString(createElement(react.Chat, { client, roomId: "general", username: "Ann" }));
  assert.match(html, /connected/);
  assert.equal(client.joins, 0);
  assert.equal(client.getRoom("general"), undefined);
  client.disconnect();
});
