/** Names of events and their data; `any` data of any name unless told otherwise. */
export type EventMap = Record<string, any>;

export type ConnectionState = "connecting" | "connected" | "resuming" | "offline";

export type EventKind = "event" | "command" | "system" | "notification" | "presence" | (string & {});

/** Takes the handler away again. */
export type Unsubscribe = () => void;

export interface DialogueEvent<Data = any, Name extends string = string> {
  readonly roomId: string;
  readonly event: Name;
  /** The log's position; null for ephemeral events and rows of an archive without it. */
  readonly id: number | null;
  /** The room's counter; null for ephemeral events and rows of an archive without it. */
  readonly seq: number | null;
  readonly from: string;
  /** Milliseconds since the epoch, set by the server. */
  readonly timestamp: number;
  readonly data: Data;
  readonly meta: Readonly<Record<string, unknown>>;
  readonly kind: EventKind;
  /** The publisher's idempotency key; only on the publisher's own connections. */
  readonly key?: string;
  readonly edited?: true;
  readonly deleted?: true;
}

/** Any of the events of a map, told apart by its `event`. */
export type AnyEvent<Events extends EventMap = EventMap> = {
  [Name in keyof Events & string]: DialogueEvent<Events[Name], Name>;
}[keyof Events & string];

export type ErrorCode =
  | "INVALID_REQUEST"
  | "UNAUTHENTICATED"
  | "ROOM_NOT_FOUND"
  | "ROOM_EXISTS"
  | "ROOM_FULL"
  | "JOIN_DENIED"
  | "NOT_JOINED"
  | "PERMISSION_DENIED"
  | "EVENT_NOT_ALLOWED"
  | "VALIDATION_FAILED"
  | "BLOCKED"
  | "MESSAGE_TOO_LARGE"
  | "RATE_LIMITED"
  | "BACKPRESSURE"
  | "STORE_UNAVAILABLE"
  | "INTERNAL"
  /** Of the client: disconnected, or ended for good. */
  | "DISCONNECTED"
  /** Of the client: no answer in time. */
  | "TIMEOUT"
  /** Of the client: too many requests wait for an answer already. */
  | "PENDING_FULL"
  /** Of the client: the server speaks another protocol. */
  | "PROTOCOL"
  /** Of the client: the `auth` function threw; see `cause`. */
  | "AUTH_FAILED"
  | (string & {});

export class DialogueError extends Error {
  constructor(
    code: ErrorCode,
    message: string,
    options?: { details?: unknown; retryAfterSeconds?: number | null; cause?: unknown },
  );
  readonly name: "DialogueError";
  readonly code: ErrorCode;
  readonly details: any;
  readonly retryAfterSeconds: number | null;
  readonly cause?: unknown;
}

export type Auth = Record<string, unknown>;

/** How the server is reached: a WebSocket, or server-sent events with plain requests where those are blocked. */
export type Transport = "websocket" | "sse";

export interface ClientOptions {
  /** The router's base: http(s), ws(s) or relative to the page. The socket is at `<base>/ws`. */
  url: string;
  /** Sent with every connect; a function is called each time. */
  auth?: Auth | (() => Auth | undefined | Promise<Auth | undefined>);
  /** Default: the platform's own. In Node pass the one of the npm package `ws`. */
  WebSocket?: new (url: string) => any;
  /**
   * What may be used, the preferred one first. Default: `["websocket", "sse"]`: where no WebSocket
   * comes through, the client goes on over server-sent events and tries WebSockets again later.
   */
  transports?: readonly Transport[];
  /** For the transport "sse". Default: the platform's own. */
  fetch?: typeof fetch;
  /** Of the requests of "sse". Default: "same-origin"; "include" sends cookies to another origin. */
  credentials?: RequestCredentials;
  /**
   * How often "sse" asks what no stream tells: who is present, and the events of rooms that have
   * no stream of their own; unread counts five times more seldom. Default: 3.
   */
  pollSeconds?: number;
  /** How long it takes at most until a client that has come down to "sse" tries a WebSocket again. Default: 300. */
  probeSeconds?: number;
  /** In [0, 1); spreads the delays. Default: Math.random. */
  random?: () => number;
  /** Triggers not yet acked, over all rooms; one more is refused. Default: 1000. */
  maxPendingTriggers?: number;
  /** The same for reads and the rest. Default: 1000. */
  maxPendingRequests?: number;
  /** How often a trigger with unknown outcome is sent on working connections. Default: 6. */
  maxTriggerAttempts?: number;
  /** Counted only while connected. Default: 30. */
  requestTimeoutSeconds?: number;
  /** From the attempt's start to the server's `connected`. Default: 15. */
  connectTimeoutSeconds?: number;
  /** Delays are drawn from 0 to this, doubled at each failure … Default: 0.5. */
  backoffSeconds?: number;
  /** … up to this. Default: 20. */
  maxBackoffSeconds?: number;
}

export interface JoinOptions<Events extends EventMap = EventMap> {
  /** How many of the newest events per type to bring. Default: the room's own choice. */
  sync?: number;
  /** What to subscribe to. Default: the room's own choice. */
  events?: EventNames<Events>;
}

/** One name, several, or "*" for all. */
export type EventNames<Events extends EventMap = EventMap> =
  | "*"
  | (keyof Events & string)
  | readonly (keyof Events & string)[];

export interface RoomInfo {
  id: string;
  name: string;
  description: string | null;
  size: number;
  maxSize: number | null;
  createdById: string | null;
}

export interface ConnectInfo {
  /** The connection's name; null over "sse", which has no connection of its own. */
  clientId: string | null;
  userId: string;
  /** Whether this client was connected before. */
  resumed: boolean;
}

export interface DisconnectInfo {
  code: number;
  reason: string;
  willReconnect: boolean;
}

export interface CreateRoomOptions {
  description?: string;
  /** Most connections at once. Default: what the server's declaration says. */
  maxSize?: number;
}

/** Who is in a room: at most as many names as the server tells, and how many there are. */
export interface Presence {
  readonly users: readonly string[];
  readonly count: number;
}

export interface PresenceChange {
  readonly joined: readonly string[];
  readonly left: readonly string[];
  readonly count: number;
}

/** Something that changes: the shape that `useSyncExternalStore` and its like take. */
export interface Live<Value> {
  /** Called after changes, once per microtask. */
  subscribe(fn: () => void): Unsubscribe;
  /** Frozen; the same object until something changes. */
  getSnapshot(): Value;
  /** No changes from now on. */
  close(): void;
}

/**
 * *Events* is the data that comes, *Sent* the data that is sent: they differ where the server fills in defaults, or
 * lets clients trigger some events only. `dialogue types` writes both.
 */
export interface DialogueClient<Events extends EventMap = EventMap, Sent extends EventMap = Events> {
  readonly state: ConnectionState;
  readonly connected: boolean;
  /** What the present connection uses; null while there is none. */
  readonly transport: Transport | null;
  /** Null before the first connection. */
  readonly userId: string | null;
  /** The connection's name; null before the first one and over "sse". */
  readonly clientId: string | null;

  /** Resolves when connected; rejects only if refused for good or disconnected meanwhile. */
  connect(): Promise<void>;
  disconnect(): void;
  /** Joins, or returns the room joined already; each join needs a `leave()` of its own. */
  join<In extends EventMap = Events, SentIn extends EventMap = Pick<Sent, keyof Sent & keyof In>>(
    roomId: string,
    options?: JoinOptions<Events>,
  ): Promise<Room<In, SentIn>>;
  getRoom(roomId: string): Room<Events, Sent> | undefined;
  listRooms(): Promise<RoomInfo[]>;
  /** Makes a room, where the server lets clients; it is not joined by that. */
  createRoom(roomId: string, name: string, options?: CreateRoomOptions): Promise<void>;
  /** Deletes a room that this user has made, with its history. */
  deleteRoom(roomId: string): Promise<void>;
  /** Unread counts by room; without *rooms* of all rooms in the user's inbox, joined or not. */
  unread(rooms?: readonly string[]): Promise<Record<string, number>>;

  /** Data that the server sent to this client alone. */
  on(event: string, fn: (data: any, event: string) => void): Unsubscribe;
  /** What a join brought, newest first. Not called for resumed events. */
  onHistory(fn: (roomId: string, events: AnyEvent<Events>[]) => void): Unsubscribe;
  onConnect(fn: (info: ConnectInfo) => void): Unsubscribe;
  onDisconnect(fn: (info: DisconnectInfo) => void): Unsubscribe;
  onError(fn: (error: DialogueError) => void): Unsubscribe;
  onState(fn: (state: ConnectionState) => void): Unsubscribe;
  /** The server has put this client into a room that it did not ask for. */
  onJoined(fn: (room: Room<Events, Sent>) => void): Unsubscribe;
  /** Not repeated: after a lost connection `listRooms` tells. */
  onRoomCreated(fn: (room: RoomInfo) => void): Unsubscribe;
  onRoomUpdated(fn: (room: RoomInfo) => void): Unsubscribe;
  onRoomDeleted(fn: (roomId: string) => void): Unsubscribe;
  /** Unread counts that changed, by room, also of rooms not joined. All of them after a reconnect. */
  onUnread(fn: (counts: Record<string, number>) => void): Unsubscribe;
}

export interface TriggerOptions {
  meta?: Record<string, unknown>;
  /** Idempotency key. Default: a new one for every trigger. */
  key?: string;
}

export interface Ack {
  /** Null, as `id`, for an ephemeral event. */
  seq: number | null;
  id: number | null;
  timestamp: number;
  /** The key was known: this is the first one's answer. */
  duplicate: boolean;
}

export interface PageQuery<Name extends string = string> {
  event?: Name;
  kind?: EventKind;
  /** Seqs; at most one of these three, or a `cursor`. */
  before?: number;
  after?: number;
  around?: number;
  /** A `next` or `previous` of an earlier page. */
  cursor?: string;
  limit?: number;
}

export interface Gap {
  readonly fromSeq: number | null;
  readonly throughSeq: number | null;
  readonly reason: "retention" | "tier_unavailable" | "no_seq";
}

/** A hole in a timeline. */
export interface TimelineGap {
  readonly fromSeq: number | null;
  readonly throughSeq: number | null;
  /** "missed": happened while this client was away for too long; `fill` brings it. */
  readonly reason: Gap["reason"] | "missed";
  /** The entry below which the hole is; null: above the first one. */
  readonly afterUid: string | null;
}

export interface Page<Event = DialogueEvent> {
  /** Oldest first. */
  events: Event[];
  hasMore: boolean;
  /** Opaque; only null means the end. */
  next: string | null;
  previous: string | null;
  gap: Gap | null;
}

export interface Room<Events extends EventMap = EventMap, Sent extends EventMap = Events> {
  readonly id: string;
  readonly name: string | null;
  /** As last confirmed by the server. */
  readonly subscriptions: "*" | readonly string[];
  /** Whether events are coming in now. */
  readonly joined: boolean;

  /** Live and resumed events, in room order, each once. Never what a join brings. */
  on<Name extends keyof Events & string>(
    event: Name,
    fn: (event: DialogueEvent<Events[Name], Name>) => void,
  ): Unsubscribe;
  onAny(fn: (event: AnyEvent<Events>) => void): Unsubscribe;
  /** Events may have been missed: whatever was built from events is void. */
  onReset(fn: () => void): Unsubscribe;
  /** Removed from the room by the server. */
  onLeft(fn: (reason: string) => void): Unsubscribe;

  trigger<Name extends keyof Sent & string>(
    event: Name,
    data: Sent[Name],
    options?: TriggerOptions,
  ): Promise<Ack>;

  /** Replaces the data of an event; resolves with the ack of the `$edit`. */
  edit(seq: number, data: unknown, options?: { key?: string }): Promise<Ack>;
  /** Deletes an event; resolves with the ack of the `$delete`. */
  delete(seq: number, options?: { key?: string }): Promise<Ack>;

  /** Marks everything through *seq* (default: the newest event that has come) as read; resolves with what is left. */
  markRead(seq?: number): Promise<number>;
  /** Who is in the room now. */
  presence(): Promise<Presence>;
  /** Who has come and who has gone. */
  onPresence(fn: (change: PresenceChange) => void): Unsubscribe;
  /** Who is in the room, kept up to date, over lost connections too. */
  presentUsers(): Live<Presence>;
  /**
   * Says that one is typing, or no more; call it at every stroke. It triggers the ephemeral *event*
   * with `{is_typing}` when that changes and every few seconds; without a connection it says nothing.
   */
  setTyping(isTyping?: boolean, options?: { event?: string; meta?: Record<string, unknown> }): Promise<void>;
  /** Who else is typing, kept up to date; an entry ends by itself after *seconds* (default: 6). */
  typingUsers(options?: { event?: string; seconds?: number }): Live<readonly string[]>;

  subscribe(events: EventNames<Events>): Promise<void>;
  unsubscribe(events: EventNames<Events>): Promise<void>;
  subscribeAll(): Promise<void>;

  /** From *start* (included) to *end* (excluded), counted back from the newest. Newest first. */
  getHistory<Name extends keyof Events & string>(
    event: Name,
    start: number,
    end: number,
  ): Promise<DialogueEvent<Events[Name], Name>[]>;
  page<Name extends keyof Events & string = keyof Events & string>(
    query?: PageQuery<Name>,
  ): Promise<Page<DialogueEvent<Events[Name], Name>>>;
  timeline<Name extends keyof Events & string = keyof Events & string>(
    events?: Name | readonly Name[] | "*",
    options?: TimelineOptions,
  ): Timeline<Events[Name], Name, Sent[Name & keyof Sent]>;

  /** Gives up one `join`; with the last one the room is left. */
  leave(): Promise<void>;
}

export interface TimelineOptions {
  /** Events asked for at a time. Default: 50. */
  pageSize?: number;
  /**
   * Most recorded entries held, at least two pages; what is far from where one reads is dropped and
   * loaded again. More are held only where what is dropped could not be found again. Default: 1000.
   */
  maxEntries?: number;
}

export interface TimelineEntry<Data = any, Name extends string = string> extends DialogueEvent<Data, Name> {
  /** Stable, also from sending to recorded and where seq is null. */
  readonly uid: string;
  readonly status: "recorded" | "sending" | "failed";
  /** Only with the status "failed". */
  readonly error?: DialogueError;
}

export interface TimelineSnapshot<Data = any, Name extends string = string> {
  /** Oldest first; those not recorded (yet) at the end. */
  readonly entries: readonly TimelineEntry<Data, Name>[];
  readonly hasOlder: boolean;
  /** Whether newer entries were dropped for the bound; new events are not shown until they are loaded again. */
  readonly hasNewer: boolean;
  /** Entries are being read: asked for, missed, or held ones that may have changed in a long absence. */
  readonly loading: boolean;
  /** Why the last load failed; the same call tries again. */
  readonly error: Error | null;
  readonly gaps: readonly TimelineGap[];
}

export interface Timeline<Data = any, Name extends string = string, Sent = Data> {
  /** Called after changes, once per microtask. */
  subscribe(fn: () => void): Unsubscribe;
  /** The same object until something changes. */
  getSnapshot(): TimelineSnapshot<Data, Name>;
  /** Never rejects: see `error` and `gaps` of the snapshot. While it loads, the same promise again. */
  loadOlder(): Promise<void>;
  /** The same towards newer entries that were dropped, until the list has joined the live end. */
  loadNewer(): Promise<void>;
  /** Begins again with the newest page, for a "jump to the newest"; at the live end, if there is no gap, there is nothing to do. */
  loadNewest(): Promise<void>;
  /** Loads a page into a hole with the reason "missed", or tries a "tier_unavailable" one again. */
  fill(gap: TimelineGap): Promise<void>;
  /**
   * Whether one reads at the newest end (the default). Past `maxEntries` new events push the oldest
   * entries out if so; else new events are not added (`hasNewer`), so that what one reads stays.
   */
  setFollowing(isFollowing: boolean): void;
  /** Returns the uid of the entry that it shows at once. */
  send(data: Sent, options?: { event?: Name; meta?: Record<string, unknown> }): string;
  retry(uid: string): void;
  discard(uid: string): void;
  close(): void;
}

export function createDialogueClient<Events extends EventMap = EventMap, Sent extends EventMap = Events>(
  options: ClientOptions,
): DialogueClient<Events, Sent>;
