// Every member of dialogue.d.ts as an application uses it, and mistakes that the compiler must find.
// Type-checked by test_types.py; never run.

import {
  type Ack,
  type AnyEvent,
  type Auth,
  type ClientOptions,
  type ConnectInfo,
  type ConnectionState,
  type CreateRoomOptions,
  type DialogueClient,
  DialogueError,
  type DialogueEvent,
  type DisconnectInfo,
  type ErrorCode,
  type EventKind,
  type EventMap,
  type EventNames,
  type Gap,
  type JoinOptions,
  type Live,
  type Page,
  type PageQuery,
  type Presence,
  type PresenceChange,
  type Room,
  type RoomInfo,
  type Timeline,
  type TimelineEntry,
  type TimelineGap,
  type TimelineOptions,
  type TimelineSnapshot,
  type Transport,
  type TriggerOptions,
  type Unsubscribe,
  createDialogueClient,
} from "./dialogue.js";

interface Events {
  message: { text: string; replyTo: number | null };
  typing: { is_typing: boolean };
  notice: string;
}

interface Sent {
  message: { text: string; replyTo?: number };
  typing: { is_typing: boolean };
}

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function is<_ extends true>() {}

const options: Required<Omit<ClientOptions, "WebSocket" | "fetch" | "auth">> & ClientOptions = {
  url: "/dialogue",
  transports: ["websocket", "sse"],
  credentials: "include",
  random: () => 0.5,
  maxPendingTriggers: 1,
  maxPendingRequests: 1,
  maxTriggerAttempts: 1,
  requestTimeoutSeconds: 1,
  connectTimeoutSeconds: 1,
  backoffSeconds: 1,
  maxBackoffSeconds: 1,
  pollSeconds: 1,
  probeSeconds: 1,
};
const auth: Auth = { token: "x" };
createDialogueClient({ ...options, auth, WebSocket, fetch });
createDialogueClient({ url: "", auth: () => auth });
createDialogueClient({ url: "", auth: async () => undefined });
// @ts-expect-error: where to connect to is not known otherwise
createDialogueClient({});
// @ts-expect-error: no such transport
createDialogueClient({ url: "", transports: ["carrier pigeon"] });
// @ts-expect-error: a misspelt option
createDialogueClient({ url: "", backoff: 1 });

const client: DialogueClient<Events, Sent> = createDialogueClient<Events, Sent>({ url: "" });

export async function ofTheClient() {
  is<Equal<typeof client.state, ConnectionState>>();
  is<Equal<typeof client.connected, boolean>>();
  is<Equal<typeof client.transport, Transport | null>>();
  is<Equal<typeof client.userId, string | null>>();
  is<Equal<typeof client.clientId, string | null>>();
  // @ts-expect-error: the client's own
  client.state = "connected";
  // @ts-expect-error: no such state
  const state: ConnectionState = "closed";

  await client.connect();
  const join: JoinOptions<Events> = { sync: 5, events: ["message"] };
  const names: EventNames<Events> = "*";
  const room: Room<Events, Sent> = await client.join("general", join);
  await client.join("general", { events: names });
  // @ts-expect-error: no such event
  await client.join("general", { events: ["massage"] });
  const found: Room<Events, Sent> | undefined = client.getRoom("general");
  const rooms: RoomInfo[] = await client.listRooms();
  for (const { id, name, description, size, maxSize, createdById } of rooms) {
    is<Equal<typeof id, string>>();
    is<Equal<typeof name, string>>();
    is<Equal<typeof description, string | null>>();
    is<Equal<typeof size, number>>();
    is<Equal<typeof maxSize, number | null>>();
    is<Equal<typeof createdById, string | null>>();
  }
  const made: CreateRoomOptions = { description: "ours", maxSize: 5 };
  await client.createRoom("club", "The club", made);
  // @ts-expect-error: a room has a name
  await client.createRoom("club");
  await client.deleteRoom("club");
  const counts: Record<string, number> = await client.unread();
  await client.unread(["general"]);

  const stops: Unsubscribe[] = [
    client.on("hello", (data, event) => is<Equal<typeof event, string>>()),
    client.onHistory((roomId, events) => {
      is<Equal<typeof roomId, string>>();
      for (const event of events) narrowed(event);
    }),
    client.onConnect(({ clientId, userId, resumed }: ConnectInfo) => {
      is<Equal<typeof clientId, string | null>>(); // which "sse" has not
      is<Equal<typeof userId, string>>();
      is<Equal<typeof resumed, boolean>>();
    }),
    client.onDisconnect(({ code, reason, willReconnect }: DisconnectInfo) => is<Equal<typeof code, number>>()),
    client.onError((error) => failed(error)),
    client.onState((state) => is<Equal<typeof state, ConnectionState>>()),
    client.onJoined((joined) => is<Equal<typeof joined, Room<Events, Sent>>>()),
    client.onRoomCreated((info) => info.name),
    client.onRoomUpdated((info) => info.name),
    client.onRoomDeleted((roomId) => is<Equal<typeof roomId, string>>()),
    client.onUnread((unread) => is<Equal<(typeof unread)[string], number>>()),
  ];
  for (const stop of stops) stop();
  client.disconnect();
  return [found, counts, room];
}

export function failed(error: DialogueError) {
  const code: ErrorCode = error.code;
  if (code === "RATE_LIMITED") is<Equal<typeof error.retryAfterSeconds, number | null>>();
  is<Equal<typeof error.name, "DialogueError">>();
  const own = new DialogueError("TIMEOUT", "no answer", { details: [], retryAfterSeconds: null, cause: error });
  // @ts-expect-error: what went wrong is not known otherwise
  new DialogueError("TIMEOUT");
  return [own.message, own.details, own.cause] as const;
}

export function narrowed(event: AnyEvent<Events>) {
  switch (event.event) {
    case "message":
      is<Equal<typeof event.data, Events["message"]>>();
      return event.data.text;
    case "typing":
      return String(event.data.is_typing);
    case "notice":
      return event.data;
    // @ts-expect-error: no such event
    case "massage":
      return "";
  }
}

export async function ofARoom(room: Room<Events, Sent>) {
  is<Equal<typeof room.id, string>>();
  is<Equal<typeof room.name, string | null>>();
  is<Equal<typeof room.subscriptions, "*" | readonly string[]>>();
  is<Equal<typeof room.joined, boolean>>();

  room.on("message", (event) => {
    is<Equal<typeof event, DialogueEvent<Events["message"], "message">>>();
    is<Equal<typeof event.data.text, string>>();
    // @ts-expect-error: no such field
    event.data.nope;
    const { roomId, event: name, id, seq, from, timestamp, meta, kind, key, edited, deleted } = event;
    is<Equal<typeof name, "message">>();
    is<Equal<typeof id, number | null>>();
    is<Equal<typeof seq, number | null>>();
    is<Equal<typeof edited, true | undefined>>();
    is<Equal<typeof deleted, true | undefined>>();
    const ofKind: EventKind = kind;
    // @ts-expect-error: an event is nobody's to change
    event.seq = 1;
    return [roomId, from, timestamp, meta["x"], ofKind, key] as never;
  });
  // @ts-expect-error: no such event
  room.on("massage", () => {});
  room.onAny((event) => void narrowed(event));
  room.onReset(() => {});
  room.onLeft((reason) => is<Equal<typeof reason, string>>());

  const how: TriggerOptions = { meta: { a: 1 }, key: "k" };
  const ack: Ack = await room.trigger("message", { text: "hello" }, how);
  is<Equal<typeof ack.seq, number | null>>();
  is<Equal<typeof ack.id, number | null>>();
  is<Equal<typeof ack.timestamp, number>>();
  is<Equal<typeof ack.duplicate, boolean>>();
  // @ts-expect-error: a text is a string
  await room.trigger("message", { text: 1 });
  // @ts-expect-error: no such field
  await room.trigger("message", { text: "", nope: 1 });
  // @ts-expect-error: an event for the server alone
  await room.trigger("notice", "x");
  const edited: Ack = await room.edit(1, { text: "" }, { key: "k" });
  const deleted: Ack = await room.delete(1, { key: "k" });

  const left: number = await room.markRead();
  await room.markRead(5);
  const presence: Presence = await room.presence();
  is<Equal<typeof presence.users, readonly string[]>>();
  is<Equal<typeof presence.count, number>>();
  room.onPresence(({ joined, left, count }: PresenceChange) => is<Equal<typeof count, number>>());
  const present: Live<Presence> = room.presentUsers();
  present.subscribe(() => {})();
  is<Equal<ReturnType<typeof present.getSnapshot>, Presence>>();
  present.close();
  await room.setTyping();
  await room.setTyping(false, { event: "typing", meta: {} });
  const typing: Live<readonly string[]> = room.typingUsers({ event: "typing", seconds: 3 });

  await room.subscribe("message");
  await room.subscribe(["message", "typing"]);
  await room.unsubscribe("*");
  await room.subscribeAll();
  // @ts-expect-error: no such event
  await room.subscribe("massage");

  const newest = await room.getHistory("message", 0, 20);
  is<Equal<(typeof newest)[number]["data"], Events["message"]> extends boolean ? true : never>();
  const query: PageQuery<"message"> = { event: "message", kind: "event", before: 5, limit: 10 };
  const page: Page<DialogueEvent<Events["message"], "message">> = await room.page(query);
  const { events, hasMore, next, previous } = page;
  is<Equal<typeof next, string | null>>();
  is<Equal<typeof previous, string | null>>();
  is<Equal<typeof hasMore, boolean>>();
  if (next !== null) await room.page({ cursor: next });
  await room.page({ after: 1 });
  await room.page({ around: 1 });
  // @ts-expect-error: a seq is a number
  await room.page({ before: "5" });
  const gap: Gap | null = page.gap;
  if (gap) is<Equal<typeof gap.reason, "retention" | "tier_unavailable" | "no_seq">>();

  await room.leave();
  return [edited, deleted, left, typing, events];
}

export async function ofATimeline(room: Room<Events, Sent>) {
  const options: TimelineOptions = { pageSize: 50, maxEntries: 500 };
  const timeline: Timeline<Events["message"], "message", Sent["message"]> = room.timeline("message", options);
  const stop: Unsubscribe = timeline.subscribe(() => {});
  const snapshot: TimelineSnapshot<Events["message"], "message"> = timeline.getSnapshot();
  const { entries, hasOlder, hasNewer, loading, error, gaps } = snapshot;
  is<Equal<typeof hasOlder, boolean>>();
  is<Equal<typeof hasNewer, boolean>>();
  is<Equal<typeof loading, boolean>>();
  is<Equal<typeof error, Error | null>>();
  // @ts-expect-error: a snapshot is nobody's to change
  entries.push();
  for (const entry of entries) {
    const same: TimelineEntry<Events["message"], "message"> = entry;
    is<Equal<typeof same.uid, string>>();
    is<Equal<typeof same.status, "recorded" | "sending" | "failed">>();
    if (same.error) failed(same.error);
    same.data.text.trim();
    // @ts-expect-error: no such field
    same.data.nope;
  }
  for (const gap of gaps) {
    const same: TimelineGap = gap;
    if (same.reason === "missed") await timeline.fill(same);
    is<Equal<typeof same.afterUid, string | null>>();
    is<Equal<typeof same.fromSeq, number | null>>();
    is<Equal<typeof same.throughSeq, number | null>>();
  }
  await timeline.loadOlder();
  await timeline.loadNewer();
  await timeline.loadNewest();
  timeline.setFollowing(false);
  const uid: string = timeline.send({ text: "hello" }, { event: "message", meta: {} });
  // @ts-expect-error: a text is a string
  timeline.send({ text: 1 });
  timeline.retry(uid);
  timeline.discard(uid);
  stop();
  timeline.close();

  const several = room.timeline(["message", "notice"]);
  for (const entry of several.getSnapshot().entries) is<Equal<typeof entry.event, "message" | "notice">>();
  room.timeline("*");
  room.timeline();
  // @ts-expect-error: no such event
  room.timeline("massage");
}

export async function untyped(any: EventMap) {
  const client = createDialogueClient({ url: "" });
  const room = await client.join("general");
  room.on("whatever", (event) => event.data.anything.at.all);
  await room.trigger("whatever", any);
  const plain: Room = room;
  const asAny: DialogueClient = client;
  plain.timeline("whatever").send(1);
  return asAny;
}
