/**
 * The browser client of Dialogue: rooms with live events, exact resume and history.
 *
 * One ES module without dependencies. It runs in browsers and, given a `WebSocket` constructor,
 * in Node. The file reads from the bottom layer up:
 *
 *   Link      one connection: a WebSocket (SocketLink), or server-sent events and requests
 *             (HttpLink) that look like one; nothing of what rooms are
 *   Client    connecting again and again, requests matched to answers, rooms
 *   Room      handlers, subscription, cursor, triggers, reads
 *   Timeline  one ordered list of older pages, live events and unsent ones; no I/O of its own
 *
 * Three invariants hold the whole together:
 *
 *   1. A room is `live` only from the answer to the join that this client sent on the present
 *      connection. Events that come for a room that is not live are dropped, because the coming
 *      `joined` carries them; taking them would move the cursor past events not yet seen.
 *   2. A request keeps its place in one ordered map until it is answered. What a lost connection
 *      left unanswered is sent again from there, in order, triggers with the same key.
 *   3. An event whose seq is not above the room's cursor has been delivered already.
 */

const CLOSE_UNAUTHENTICATED = 4001;
const CLOSE_PROTOCOL = 4002;
const CLOSE_FRAME_TOO_BIG = 1009;
const CLOSE_TOO_FAST = 4009;

/** Commands that record something: sent in order, and again with their key. */
const PUBLISHES = new Set(["trigger", "edit", "delete"]);

/** Commands about what comes of a room: over "sse" they open its stream. */
const FOLLOWS = new Set(["join", "subscribe", "unsubscribe"]);

/** The server may or may not have recorded the trigger: only the same key makes a retry safe. */
const OUTCOME_UNKNOWN = new Set(["STORE_UNAVAILABLE", "INTERNAL", "TIMEOUT"]);

/** The server has not looked at it: nothing to do with what was asked, but with how much of it. */
const TOO_FAST = new Set(["RATE_LIMITED", "BACKPRESSURE"]);

/** What a server's refusal of `connect` says about any further try with the same credentials. */
const FINAL_REFUSALS = new Set(["UNAUTHENTICATED", "INVALID_REQUEST", "PERMISSION_DENIED"]);

/** Reasons that pass: what was refused for one is asked for again, not given up. */
const PASSING = new Set([...OUTCOME_UNKNOWN, ...TOO_FAST]);

/**
 * Rooms that are resumed at a time. All at once, those of many rooms could cost more errors than
 * a server allows: it would close this connection and every further one.
 */
const RESUMES_AT_ONCE = 50;

/** The same after one was refused as too fast, until every room is back. */
const RESUMES_AFTER_REFUSAL = 5;

/** How long the client stays away when the server has closed because it was too fast. */
const TOO_FAST_MS = 2000;

/** Commands are joined into frames of about this size; a larger command travels alone. */
const BATCH_CHARACTERS = 16 * 1024;

/** … and of at most so many, fewer if the server says so: what is past its limit is not read. */
const BATCH_COMMANDS = 100;

/** A connection that lasted this long was a good one: the next loss starts with short delays. */
const STABLE_MS = 5000;

/** A connection that stood at all takes the delay back to this many doublings. */
const FAILURES_ONCE_CONNECTED = 3;

/** After a sleep or a change of networks a connection that says nothing for so long is given up. */
const CHECK_MS = 5000;

/** The longest that a timer takes: a longer one would end at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

const TRANSPORTS = ["websocket", "sse"];

/** Failed openings in a row after which the other transport is tried, too, in turn. */
const OPENINGS_BEFORE_FALLBACK = 2;

/** What a WebSocket that has never opened is given while there is something to fall back to. */
const FIRST_OPENING_MS = 5000;

/** Over "sse" a WebSocket is tried again after this, then after four times as long, … */
const FIRST_PROBE_MS = 1000;

/** Browsers allow some six connections to a host over HTTP/1.1, all tabs together: streams … */
const MAX_STREAMS = 4;

/** … and requests share them. */
const MAX_CONNECTIONS = 6;

/** A stream without its first message by then is being held back by something in between. */
const STREAM_OPENS_MS = 10_000;

/** Longest message of a stream: it is as large as what a resume may bring, and then some. */
const MAX_STREAM_CHARACTERS = 64 * 1024 * 1024;

const WAKE_EVENTS = ["online", "offline", "focus", "pageshow", "visibilitychange"];

/** How long someone is taken to be typing who says nothing more of it. */
const TYPING_SECONDS = 6;

/** How often it is said at most while it goes on: one that is lost, or late, does no harm. */
const TYPING_REPEAT_MS = 3000;

/** Of a room in which more users type at a time, those that began first are left out. */
const MAX_TYPISTS = 1000;

/** Names kept of those in a room, unless the server tells more at once. */
const MAX_PRESENT = 1000;

/**
 * What went wrong, as a code.
 *
 * Codes of the server are those of the protocol (`JOIN_DENIED`, `VALIDATION_FAILED`, …). The
 * client adds `DISCONNECTED` (disconnected, or ended for good), `TIMEOUT` (no answer in time),
 * `PENDING_FULL` (too many requests wait already), `PROTOCOL` (the server speaks something else)
 * and `AUTH_FAILED` (the `auth` function threw; see `cause`).
 */
export class DialogueError extends Error {
  constructor(code, message, { details = null, retryAfterSeconds = null, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "DialogueError";
    this.code = code;
    this.details = details;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

function errorFrom(message) {
  return new DialogueError(message.code ?? "INTERNAL", message.message ?? "Unknown error", {
    details: message.details ?? null,
    retryAfterSeconds: message.retry_after_seconds ?? null,
  });
}

// ---------------------------------------------------------------------------------- small parts

/** An application's mistake is shown where its developer looks, and goes no further. */
function report(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else console.error(error);
}

/** Handlers in the order added. One that throws (or rejects) stops neither the others nor us. */
class Listeners {
  #entries = new Set();

  get size() {
    return this.#entries.size;
  }

  add(fn) {
    if (typeof fn !== "function") throw new TypeError("a handler must be a function");
    const entry = { fn };
    this.#entries.add(entry);
    return () => void this.#entries.delete(entry);
  }

  emit(...values) {
    for (const entry of [...this.#entries]) {
      if (!this.#entries.has(entry)) continue; // removed by a handler before it
      try {
        const result = entry.fn(...values);
        if (typeof result?.then === "function") result.then(undefined, report);
      } catch (error) {
        report(error);
      }
    }
  }
}

class NamedListeners {
  #byName = new Map();

  add(name, fn) {
    let listeners = this.#byName.get(name);
    if (!listeners) this.#byName.set(name, (listeners = new Listeners()));
    return listeners.add(fn);
  }

  emit(name, ...values) {
    this.#byName.get(name)?.emit(...values);
  }
}

/** Something that changes: `subscribe(fn)`, `getSnapshot()`, `close()`. */
class Live {
  #listeners = new Listeners();
  #onClose;
  #snapshot = null;
  #isNotifying = false;

  _closed = false;

  constructor(onClose) {
    this.#onClose = onClose;
  }

  /** `fn()` is called after changes, once per microtask however many there were. */
  subscribe(fn) {
    return this.#listeners.add(() => fn());
  }

  /** Frozen; the same object until something changes. */
  getSnapshot() {
    this.#snapshot ??= Object.freeze(this._value());
    return this.#snapshot;
  }

  /** No changes from now on. */
  close() {
    this._closed = true;
    this._stop();
    this.#onClose();
  }

  _changed() {
    this.#snapshot = null;
    if (this.#isNotifying) return;
    this.#isNotifying = true;
    queueMicrotask(() => {
      this.#isNotifying = false;
      this.#listeners.emit();
    });
  }
}

/**
 * A request that is made until it is answered: one at a time, with growing pauses while the server
 * cannot answer.
 */
class Question {
  #source;
  #isAsking = false;
  #isWanted = false;
  #failures = 0;
  #timer = null;

  /**
   * @param source `request()` and its promise, `retryMs(error, failures)`, and `onError(error)` for
   *   a refusal that no further try would change
   */
  constructor(source) {
    this.#source = source;
  }

  /** Asks now. One that is on its way already goes again with what a lost connection left. */
  ask() {
    this.#isWanted = true;
    clearTimeout(this.#timer);
    if (this.#isAsking) return;
    this.#isAsking = true;
    this.#source.request().then(
      () => {
        this.#isAsking = false;
        this.#failures = 0;
      },
      (error) => {
        this.#isAsking = false;
        this.#failed(error);
      },
    );
  }

  #failed(error) {
    if (!this.#isWanted || ["DISCONNECTED", "NOT_JOINED"].includes(error.code)) return;
    if (PASSING.has(error.code)) {
      this.#timer = later(() => this.ask(), this.#source.retryMs(error, this.#failures++));
    } else this.#source.onError(error);
  }

  /** No further try; what is on its way may still be answered. */
  stop() {
    this.#isWanted = false;
    clearTimeout(this.#timer);
  }
}

function deferred() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  // Whoever waits has a promise derived from this one; nobody waiting is not an error.
  parts.promise.catch(() => {});
  return parts;
}

/** A timer that no number of a server's or an application's makes end at once. */
function later(fn, milliseconds) {
  return setTimeout(fn, Math.min(milliseconds, MAX_TIMER_MS));
}

/** A task of its own, so that all promise reactions of the present one have run before it. */
function nextTask(fn) {
  if (typeof globalThis.setImmediate === "function") {
    globalThis.setImmediate(fn);
    return;
  }
  // Not setTimeout: a hidden tab delays that by up to a minute.
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    fn();
  };
  port2.postMessage(null);
}

/**
 * Milliseconds and 80 random bits; `randomUUID` is missing on plain http pages other than localhost. The
 * time first: keys that grow are next to each other in the log's index, random ones all over it.
 */
function newKey() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(10));
  const random = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return Date.now().toString(16).padStart(12, "0") + random;
}

/** Where the server's paths begin; for requests. */
function serverUrl(base) {
  const page = globalThis.document?.baseURI ?? globalThis.location?.href;
  let url;
  try {
    // "" means the page's folder; resolved as it stands it would name the page itself.
    url = new URL(base === "" ? "./" : base, page);
  } catch {
    throw new TypeError(`url ${JSON.stringify(base)} is not valid here; give an absolute one`);
  }
  if (!["http:", "https:", "ws:", "wss:"].includes(url.protocol)) {
    throw new TypeError(`url must be http(s), ws(s) or relative to the page, not ${url.protocol}`);
  }
  url.protocol = url.protocol.replace("ws", "http");
  url.hash = "";
  return url;
}

/** A path under the server's own. */
function urlOf(server, path) {
  const url = new URL(server);
  url.pathname = `${url.pathname.replace(/\/+$/, "")}/${path}`;
  return url;
}

function socketUrl(server) {
  const url = urlOf(server, "ws");
  url.protocol = url.protocol.replace("http", "ws");
  return url.href;
}

/** The transports that are wanted and possible here, the preferred one first. */
function usable(transports, { WebSocket, fetch }) {
  const unknown = transports.find((transport) => !TRANSPORTS.includes(transport));
  if (unknown !== undefined || transports.length === 0) {
    throw new TypeError(`transports are ${TRANSPORTS.join(" and ")}, not ${JSON.stringify(unknown ?? [])}`);
  }
  const means = { websocket: WebSocket, sse: fetch };
  const possible = [...new Set(transports)].filter((transport) => typeof means[transport] === "function");
  if (possible.length === 0) {
    throw new TypeError("no WebSocket here; pass one, for example { WebSocket } from the npm package ws");
  }
  return possible;
}

const NO_META = Object.freeze({});

function eventFrom(wire, roomId) {
  const event = {
    roomId,
    event: wire.event,
    id: wire.id ?? null,
    seq: wire.seq ?? null,
    from: wire.from,
    timestamp: wire.timestamp,
    data: wire.data,
    meta: wire.meta ?? NO_META,
    kind: wire.kind ?? "event",
  };
  if (wire.key != null) event.key = wire.key;
  if (wire.edited) event.edited = true;
  if (wire.deleted) event.deleted = true;
  return Object.freeze(event);
}

function gapFrom(wire) {
  const { from_seq: fromSeq = null, through_seq: throughSeq = null, reason } = wire;
  return Object.freeze({ fromSeq, throughSeq, reason });
}

function roomInfoFrom(wire) {
  return {
    id: wire.id,
    name: wire.name,
    description: wire.description ?? null,
    size: wire.size ?? 0,
    maxSize: wire.max_size ?? null,
    createdById: wire.created_by_id ?? null,
  };
}

/** Whether a page ends where a tier cannot be read now: the same may be asked for again. */
function isUnreadable(gap) {
  return gap?.reason === "tier_unavailable";
}

function notReadable() {
  return new DialogueError("STORE_UNAVAILABLE", "a part of the history cannot be read now");
}

function presenceFrom(wire) {
  return Object.freeze({ users: Object.freeze([...wire.users]), count: wire.count ?? wire.users.length });
}

function namesFrom(events) {
  const list = typeof events === "string" ? [events] : [...events];
  return list.includes("*") ? "*" : list;
}

// ----------------------------------------------------------------------------------------- link

/**
 * One connection from opening to its end.
 *
 * `onGone` is called at most once, for whatever ends it first: a close frame, an error, silence.
 * After `close()` nothing is called any more, so that an old connection cannot disturb its
 * successor. What has been received and not yet handled is dropped with the link; resuming
 * brings it again.
 */
class Link {
  #callbacks;
  /** Bounded by what arrives during one task, the longest that `hold` lasts. */
  #inbox = [];
  #next = 0;
  #held = false;
  #draining = false;

  alive = true;
  hasHeard = false;
  commandsPerFrame = BATCH_COMMANDS;
  /** Set by the client when the server has said `connected`. */
  connectedAt = null;
  /** Joins sent on this link and not yet answered, by ref. At most one per room. */
  joins = new Map();
  /** Rooms that are still to be resumed on this link, in this order. */
  resumes = new Set();
  /** While it runs no further room is resumed. */
  resumePause = null;

  constructor(callbacks) {
    this.#callbacks = callbacks;
  }

  _opened() {
    if (this.alive) this.#callbacks.onOpen();
  }

  /** Takes messages in, in order. */
  _take(messages) {
    if (!this.alive) return;
    this.hasHeard = true;
    for (const message of messages) this.#inbox.push(message);
    this.#drain();
  }

  #drain() {
    if (this.#draining) return;
    this.#draining = true;
    try {
      while (this.alive && !this.#held && this.#next < this.#inbox.length) {
        this.#callbacks.onMessage(this.#inbox[this.#next++]);
      }
    } catch (error) {
      report(error);
      this.fail(1006, "a message could not be handled");
    } finally {
      this.#draining = false;
    }
    if (this.#next === this.#inbox.length) {
      this.#inbox = [];
      this.#next = 0;
    }
  }

  /**
   * Handles no further message in this task.
   *
   * `await client.join(…)` goes on in a microtask, and only then does the application add its
   * handlers. An event in the same frame as `joined` would otherwise come before them and be lost.
   */
  hold() {
    if (this.#held) return;
    this.#held = true;
    nextTask(() => {
      this.#held = false;
      this.#drain();
    });
  }

  /** Ends the link now, without waiting for a close handshake that a dead network never answers. */
  fail(code, reason = "") {
    if (!this.alive) return;
    this.close();
    this.#callbacks.onGone({ code, reason });
  }

  close() {
    if (!this.alive) return;
    this.alive = false;
    clearTimeout(this.resumePause);
    this.#inbox = [];
    this.#next = 0;
    this._shut();
  }
}

/** A WebSocket. */
class SocketLink extends Link {
  transport = "websocket";
  #socket = null;
  #outgoing = [];
  #heardAt = Date.now();
  #silenceMs = 0;
  #silenceTimer = null;
  #checkTimer = null;

  constructor(WebSocket, url, callbacks) {
    super(callbacks);
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.onopen = () => this._opened();
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.fail(code, reason);
    // A close event always follows. The handler must be there: without one Node's `ws` throws.
    socket.onerror = () => {};
  }

  /** Sends a command, encoded; those of one microtask share a frame. */
  send(text) {
    if (!this.alive) return;
    this.#outgoing.push(text);
    if (this.#outgoing.length === 1) queueMicrotask(() => this.#flush());
  }

  #flush() {
    const commands = this.#outgoing;
    this.#outgoing = [];
    if (!this.alive) return;
    let batch = [];
    let size = 0;
    const ship = () => {
      if (batch.length) this.#socket.send(batch.length === 1 ? batch[0] : `[${batch.join(",")}]`);
      batch = [];
      size = 0;
    };
    for (const text of commands) {
      if (size + text.length > BATCH_CHARACTERS || batch.length >= this.commandsPerFrame) ship();
      batch.push(text);
      size += text.length;
    }
    ship();
  }

  #receive(data) {
    if (!this.alive) return;
    this.#heardAt = Date.now();
    let messages;
    try {
      messages = JSON.parse(data);
    } catch {
      messages = null;
    }
    if (!Array.isArray(messages)) {
      // Passing over a frame could pass over an event: start again from the cursor instead.
      this.fail(1006, "not a frame of this protocol");
      return;
    }
    this._take(messages);
  }

  /** Ends the link when nothing has been heard for twice as long as the server's pings take. */
  watchSilence(pingMs) {
    clearTimeout(this.#silenceTimer);
    this.#silenceMs = pingMs * 2;
    if (pingMs > 0) this.#watch(this.#silenceMs);
  }

  #watch(delay) {
    this.#silenceTimer = later(() => {
      const left = this.#silenceMs - this.#silentMs;
      if (left > 0) this.#watch(left);
      else this.fail(1006, "nothing heard");
    }, delay);
  }

  /** Wall clock, not `performance.now()`: that one may stand still while a laptop sleeps. */
  get #silentMs() {
    return Math.max(0, Date.now() - this.#heardAt);
  }

  /** The page is back, or its network has changed: what timers would find late is found now. */
  wakeUp() {
    if (this.#silenceMs > 0 && this.#silentMs > this.#silenceMs * 0.75) {
      this.fail(1006, "nothing heard"); // a ping is overdue
      return;
    }
    if (this.#checkTimer !== null || this.#silentMs < CHECK_MS) return;
    // Half open it would look the same until the next pings are overdue. Anything heard will do.
    const heardAt = this.#heardAt;
    this.send('{"type":"unread","ref":0,"rooms":[]}');
    this.#checkTimer = later(() => {
      this.#checkTimer = null;
      if (this.#heardAt === heardAt) this.fail(1006, "nothing heard");
    }, CHECK_MS);
  }

  _shut() {
    clearTimeout(this.#silenceTimer);
    clearTimeout(this.#checkTimer);
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    try {
      socket.close(1000);
    } catch {
      // Already closed, or never opened: either way there is nothing left to close.
    }
  }
}

// ------------------------------------------------------------------------- without WebSockets

/** Of a message that no server sends: a room's stream has ended, and `refs` got no answer. */
const LOST = Symbol("lost");

/** An answer of the server that says no; `wire` are the fields of an `error` message. */
class Refusal extends Error {
  constructor(wire) {
    super(wire.message);
    this.wire = wire;
  }
}

function leftMeanwhile() {
  return new Refusal({ code: "NOT_JOINED", message: "the room was left meanwhile" });
}

/** Nothing that this protocol's server would answer with, or (without a status) no answer at all. */
class Unreachable extends Error {
  constructor(message, status = null) {
    super(message);
    this.status = status;
  }

  /** Whether it is of the request rather than of the moment: sent again it would fare no better. */
  get isOfRequest() {
    return this.status >= 400 && this.status < 500;
  }
}

/** What a response that is not the answer asked for says. */
function refusalFrom(response, text) {
  const { status } = response;
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // Of something in between, which may still say what kind of no it is.
  }
  const retryAfter = Number(response.headers.get("retry-after")) || undefined;
  if (typeof body?.code === "string") return new Refusal({ retry_after_seconds: retryAfter, ...body });
  const wire = { message: `the server answered with status ${status}`, retry_after_seconds: retryAfter };
  if (status === 401) return new Refusal({ ...wire, code: "UNAUTHENTICATED" });
  if (status === 413) return new Refusal({ ...wire, code: "MESSAGE_TOO_LARGE" });
  if (status === 429) return new Refusal({ ...wire, code: "RATE_LIMITED" });
  return new Unreachable(wire.message, status);
}

function pathOf(roomId, path) {
  return `rooms/${encodeURIComponent(roomId)}/${path}`;
}

/** The request that does what a command asks for; `answer` is the type of the message it is answered with. */
function requestFor({ type, ref: _, room, seq, ...fields }) {
  switch (type) {
    case "trigger":
      return { method: "POST", path: pathOf(room, "events"), body: fields };
    case "edit":
      return { method: "PATCH", path: pathOf(room, `events/${seq}`), body: fields };
    case "delete":
      return { method: "DELETE", path: pathOf(room, `events/${seq}`), query: fields };
    case "history":
      return { path: pathOf(room, "history"), query: fields, answer: type };
    case "presence":
      return { path: pathOf(room, "presence"), answer: type };
    case "mark_read":
      return { method: "POST", path: pathOf(room, "read"), body: { seq } };
    case "unread":
      return { path: "unread", query: { room: fields.rooms }, answer: type };
    case "rooms":
      return { path: "rooms", answer: type };
    case "create_room":
      return { method: "POST", path: "rooms", body: { room, ...fields } };
    case "delete_room":
      return { method: "DELETE", path: `rooms/${encodeURIComponent(room)}` };
    default:
      throw new Refusal({ code: "INVALID_REQUEST", message: `${type} needs a WebSocket` });
  }
}

/**
 * The messages of server-sent events. Each has its whole message in its data, which says the
 * type and the seq, too. `onHeard` is called for whatever comes, comments included.
 */
async function* messagesFrom(stream, onHeard) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let text = "";
  let data = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      onHeard();
      const seen = text.length;
      text += decoder.decode(value, { stream: true });
      if (text.length + data.length > MAX_STREAM_CHARACTERS) throw new Unreachable("a message without end");
      let start = 0;
      for (let end; (end = text.indexOf("\n", Math.max(start, seen))) >= 0; start = end + 1) {
        const line = text.slice(start, text[end - 1] === "\r" ? end - 1 : end);
        if (line.startsWith("data:")) data += line.slice(5);
        else if (line === "" && data !== "") {
          const message = JSON.parse(data);
          data = "";
          yield message;
        }
      }
      text = text.slice(start);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Tabs that cannot agree (pages over plain http have no locks) take one stream each. */
function mostStreams() {
  return globalThis.document && !globalThis.navigator?.locks ? 1 : MAX_STREAMS;
}

/** A right to one of the streams that all tabs have together; null if none is free. */
async function takeShare(host) {
  const { locks } = globalThis.navigator ?? {};
  if (!locks) return () => {};
  for (let number = 0; number < MAX_STREAMS; number += 1) {
    const release = await new Promise((resolve) => {
      const held = (lock) => lock && new Promise((end) => resolve(end));
      locks.request(`dialogue stream ${number} ${host}`, { ifAvailable: true }, held).then(
        () => resolve(null),
        () => resolve(null),
      );
    });
    if (release) return release;
  }
  return null;
}

/**
 * A room's place on an HttpLink.
 *
 * `seq` and `epoch` are the cursor of what has been passed on, and `names` the subscription. It
 * has a `stream`, or is polled, or (with no names at all) neither.
 */
class Followed {
  stream = null;
  isPolled = false;
  isOver = false;
  polledAt = 0;
  seq = 0;
  epoch = null;
  /** The newest seq that may have been passed on when it was last opened. */
  passed = 0;
  /** Who was in it when that was last told; null: nobody wants to know, or it was not told yet. */
  present = null;
  presenceAt = 0;

  constructor(id, names) {
    this.id = id;
    this.names = names;
    this.since = Date.now();
  }

  took(joined) {
    // What was there before may have passed on more than this knows of.
    this.passed = Math.max(this.seq, joined.seq);
    this.seq = joined.seq;
    this.epoch = joined.epoch;
    this.names = joined.subscriptions;
  }

  /** Takes in who is in it; returns messages: what has changed since that was last told. */
  presenceChanges({ users, count }) {
    const before = this.present;
    this.present = new Set(users);
    if (!before) return [];
    const joined = [...this.present].filter((user) => !before.has(user));
    const left = [...before].filter((user) => !this.present.has(user));
    if (joined.length + left.length === 0) return [];
    return [{ type: "presence", room: this.id, joined, left, count }];
  }

  end() {
    this.isOver = true;
    this.stream?.end();
  }
}

/** An event of an answer, as the message that would have brought it alone. */
function eventIn(roomId, event) {
  return { ...event, type: "event", room: roomId };
}

function isWantedBy(names, event) {
  if (names === "*") return true;
  return names.includes(event) || (names.length > 0 && (event === "$edit" || event === "$delete"));
}

/**
 * Server-sent events and requests that look like a connection.
 *
 * Commands become requests and their answers messages. A room that is joined has a stream, read
 * by `fetch` (an EventSource sends no headers); rooms beyond MAX_STREAMS are polled in turn.
 * Commands that change a room, and publishes, go one after another for each room, as they would
 * on a socket.
 *
 * What goes wrong with one stream, or is not told by any (`recovered: false` after a poll), ends
 * the room's place here with a LOST message: the client joins it again from its own cursor. What
 * goes wrong with a request, or with everything, ends the link.
 */
class HttpLink extends Link {
  transport = "sse";
  #source;
  #headers = {};
  #query = {};
  #pingMs = 0;
  #heardAt = Date.now();

  /** Joined rooms by id. */
  #rooms = new Map();
  /** The refs of joins that are in line, by room; one that is not here was left meanwhile. */
  #joins = new Map();
  /** By room: the end of what is being done for it, one after another. */
  #queues = new Map();
  /** Commands being dealt with: one that its sender thinks lost is not done twice at a time. */
  #refs = new Set();
  #streams = 0;
  #mostStreams = mostStreams();
  /** When a polled room was last to get a stream, and how many there were. */
  #promotion = { streams: -1, at: 0 };
  #requests = 0;
  /** Requests that wait for others. Bounded by the client's own bounds. */
  #waiting = [];
  #controllers = new Set();

  #ticker = null;
  #isPolling = false;
  #isChecking = false;
  #unread = null;
  #unreadAt = 0;

  constructor(source) {
    super(source);
    this.#source = source;
    queueMicrotask(() => this._opened());
  }

  // ---- commands

  send(text) {
    if (!this.alive) return;
    const command = JSON.parse(text);
    const { type, ref, room } = command;
    if (type === "pong" || this.#refs.has(ref)) return;
    this.#refs.add(ref);
    const work = () => this.#answer(command);
    if (type === "join") this.#joins.set(room, ref);
    if (type === "leave") {
      // Not in line: a join that hangs or waits there is what is to be ended.
      this.#joins.delete(room);
      this.#end(room);
      this.#refs.delete(ref);
      queueMicrotask(() => this._take([{ type: "ok", ref, room }]));
    } else if (PUBLISHES.has(type) || FOLLOWS.has(type)) {
      this.#inLine(room, work);
    } else work();
  }

  #inLine(roomId, work) {
    const done = (this.#queues.get(roomId) ?? Promise.resolve())
      .then(work)
      .catch(report)
      .then(() => {
        if (this.#queues.get(roomId) === done) this.#queues.delete(roomId);
      });
    this.#queues.set(roomId, done);
  }

  /** Never rejects. */
  async #answer(command) {
    const { ref, room } = command;
    try {
      const messages = await this.#carryOut(command);
      this.#refs.delete(ref);
      this._take(messages.map((message, index) => (index < messages.length - 1 ? message : { ...message, ref })));
      // Not before: an event that has come with `joined` must not be passed on before it.
      this.#read(this.#rooms.get(room));
    } catch (error) {
      this.#refs.delete(ref);
      if (!this.alive) return;
      if (error instanceof Refusal) this.#refused(error, ref);
      else if (error.isOfRequest && command.type !== "connect") {
        this.#refused(new Refusal({ code: "INTERNAL", message: error.message }), ref);
        this.#check(); // unless nothing is as it should be
      } else if (FOLLOWS.has(command.type)) this.#lose(room, [ref]);
      else this.fail(1006, "the server cannot be reached");
    }
  }

  #refused(error, ref) {
    if (error.wire.code === "UNAUTHENTICATED" && this.connectedAt !== null) {
      this.fail(CLOSE_UNAUTHENTICATED, error.message);
    } else this._take([{ ...error.wire, type: "error", ref }]);
  }

  /** Returns messages, of which the last is the answer. */
  async #carryOut(command) {
    const { type, room } = command;
    if (type === "connect") return [await this.#connect(command.auth ?? {})];
    if (type === "join") return [await this.#join(room, command)];
    if (type === "subscribe" || type === "unsubscribe") return this.#resubscribe(room, type, command.events);
    // A query could not tell it from all.
    if (type === "unread" && command.rooms?.length === 0) return [{ type, unread: {} }];
    const request = requestFor(command);
    const answer = await this.#call(request);
    if (type === "unread" && command.rooms === undefined) this.#unread = answer.unread;
    const told = { ...answer, type: request.answer ?? "ok" };
    if (type !== "presence") return [told];
    return [...(this.#rooms.get(room)?.presenceChanges(answer) ?? []), told];
  }

  async #connect({ token, user_id, userId = user_id, ...others }) {
    if (Object.keys(others).length) this.#source.onUnsendable(Object.keys(others));
    if (token !== undefined) this.#headers.Authorization = `Bearer ${token}`;
    if (userId !== undefined) this.#query.user_id = userId;
    const me = await this.#call({ path: "me" });
    if (typeof me.user_id !== "string") throw new Unreachable("no answer of this protocol");
    // In development mode each request would have a user of its own; elsewhere it is passed over.
    if (token === undefined && userId === undefined) this.#query.user_id = me.user_id;
    return { ...me, type: "connected", client_id: null };
  }

  // ---- requests

  #url(path, query = {}) {
    const url = urlOf(this.#source.url, path);
    for (const [name, value] of Object.entries({ ...this.#query, ...query })) {
      for (const one of Array.isArray(value) ? value : [value]) {
        if (one !== undefined && one !== null) url.searchParams.append(name, one);
      }
    }
    return url.href;
  }

  /** Returns a response and what ends it; both count until then. */
  async #fetch({ method = "GET", path, query, body, timeoutMs }) {
    const controller = new AbortController();
    const timer = later(() => controller.abort(), timeoutMs);
    const end = () => {
      clearTimeout(timer);
      this.#controllers.delete(controller);
      controller.abort();
    };
    this.#controllers.add(controller);
    const headers = { ...this.#headers };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    try {
      const { fetch } = this.#source; // as a method of anything a browser's own refuses
      const response = await fetch(this.#url(path, query), {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        credentials: this.#source.credentials,
        cache: "no-store",
        signal: controller.signal,
      });
      return { response, end, opened: () => clearTimeout(timer) };
    } catch (error) {
      end();
      throw error;
    }
  }

  async #call({ timeoutMs = this.#source.timeoutMs, ...request }) {
    while (this.alive && this.#requests >= Math.max(2, MAX_CONNECTIONS - this.#streams)) {
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
    if (!this.alive) throw new Unreachable("closed");
    this.#requests += 1;
    try {
      const { response, end } = await this.#fetch({ ...request, timeoutMs });
      try {
        const text = await response.text();
        this.#heardAt = Date.now();
        if (!response.ok) throw refusalFrom(response, text);
        const answer = JSON.parse(text);
        if (typeof answer !== "object" || answer === null) throw new Unreachable("no answer of this protocol");
        return answer;
      } finally {
        end();
      }
    } finally {
      this.#requests -= 1;
      this.#waiting.shift()?.();
    }
  }

  // ---- rooms

  async #join(roomId, { ref, since, sync, events }) {
    if (this.#joins.get(roomId) !== ref) throw leftMeanwhile();
    this.#joins.delete(roomId);
    this.#end(roomId);
    const room = new Followed(roomId, events);
    this.#rooms.set(roomId, room);
    const query = since ? { after: since.seq, epoch: since.epoch } : { sync };
    let joined;
    try {
      joined = await this.#follow(room, query);
    } catch (error) {
      if (this.#rooms.get(roomId) === room) this.#end(roomId);
      throw error;
    }
    return { ...joined, type: "joined" };
  }

  /**
   * Opens the way by which a room's events come from now on, and returns its `joined`.
   *
   * What was there before goes on until then, and is ended with that.
   */
  async #follow(room, query) {
    const { names } = room;
    const isSilent = Array.isArray(names) && names.length === 0;
    const wanted = { ...query, events: names };
    const stream = isSilent ? null : await this.#openStream(room, wanted);
    const joined = stream?.joined ?? (await this.#callEvents(room, wanted));
    if (isSilent) Object.assign(joined, { events: [], subscriptions: [] }); // which a query cannot ask for
    this.#replace(room, { stream, isPolled: !stream && !isSilent });
    room.took(joined);
    room.polledAt = Date.now();
    return joined;
  }

  #callEvents(room, query) {
    return this.#call({ path: pathOf(room.id, "events"), query: { ...query, wait_seconds: 0 } });
  }

  #replace(room, { stream, isPolled }) {
    if (room.isOver) {
      stream?.end();
      throw leftMeanwhile();
    }
    room.stream?.end();
    Object.assign(room, { stream, isPolled });
  }

  /** Returns a stream whose `joined` has come, or null if there can be none now. */
  async #openStream(room, query) {
    if (this.#streams >= this.#mostStreams) return null;
    this.#streams += 1;
    let release = null;
    let request = null;
    let isEnded = false;
    const end = () => {
      if (isEnded) return;
      isEnded = true;
      this.#streams -= 1;
      release?.();
      request?.end();
      this.#waiting.shift()?.();
    };
    const timeoutMs = Math.min(STREAM_OPENS_MS, this.#source.timeoutMs / 2);
    const since = Date.now();
    try {
      release = await takeShare(this.#source.url.host);
      if (release === null || !this.alive) {
        end();
        return null;
      }
      request = await this.#fetch({ path: pathOf(room.id, "events"), query, timeoutMs });
      const { response } = request;
      if (!response.ok) throw refusalFrom(response, await response.text());
      const kind = response.headers.get("content-type") ?? "";
      if (!kind.startsWith("text/event-stream")) throw new Unreachable("not a stream");
      const stream = { end, heardAt: Date.now() };
      stream.messages = messagesFrom(response.body, () => (stream.heardAt = this.#heardAt = Date.now()));
      const { value: joined } = await stream.messages.next();
      if (joined?.type !== "joined") throw new Unreachable("a stream that does not begin with joined");
      request.opened();
      stream.joined = joined;
      return stream;
    } catch (error) {
      end();
      // One that stands and says nothing is held back: streams are of no use here. Polls are, or
      // the request that follows will tell.
      if (error instanceof Refusal || Date.now() - since < timeoutMs) throw error;
      this.#mostStreams = 0;
      return null;
    }
  }

  /** Passes on what comes on a room's stream, from here on. */
  async #read(room) {
    const stream = room?.stream;
    if (!stream || stream.isRead) return;
    stream.isRead = true;
    const isCurrent = () => this.alive && !room.isOver && room.stream === stream;
    try {
      for await (const message of stream.messages) {
        if (!isCurrent()) return;
        this.#pass(room, message);
      }
    } catch {
      // Broken off, or not what it should be: either way it goes on from the cursor.
    } finally {
      stream.end();
    }
    if (isCurrent()) this.#lose(room.id);
  }

  #pass(room, message) {
    if (message.type === "left") this.#end(room.id);
    else if (message.type === "event" && message.seq != null) room.seq = message.seq;
    this._take([message]);
  }

  /** What brings a room from its cursor to now. */
  #passAll(room, { events, seq }) {
    for (const event of events) this.#pass(room, eventIn(room.id, event));
    room.seq = seq;
  }

  #end(roomId) {
    const room = this.#rooms.get(roomId);
    this.#rooms.delete(roomId);
    room?.end();
  }

  #lose(roomId, refs = []) {
    const since = this.#rooms.get(roomId)?.since ?? Date.now();
    this.#end(roomId);
    this._take([{ type: LOST, room: roomId, refs, stoodMs: Date.now() - since }]);
    this.#check();
  }

  async #resubscribe(roomId, type, events) {
    const room = this.#rooms.get(roomId);
    if (!room) throw new Unreachable("it has to be joined again");
    const before = room.names;
    let names;
    if (type === "subscribe") names = events === "*" || before === "*" ? "*" : [...new Set([...before, ...events])];
    else if (events === "*") names = [];
    else if (before === "*") {
      const message = "without WebSockets no single names can be taken out of all: join with those that are wanted";
      throw new Refusal({ code: "INVALID_REQUEST", message });
    } else names = before.filter((name) => !events.includes(name));
    if (names === before || (names !== "*" && names.length === before.length)) {
      return [{ type: "ok", room: roomId, subscriptions: before, seq: room.seq }];
    }
    const { seq, epoch } = room;
    room.names = names;
    let joined;
    try {
      joined = await this.#follow(room, { after: seq, epoch });
    } catch (error) {
      room.names = before;
      throw error;
    }
    if (joined.recovered !== true) throw new Unreachable("it has to be joined again");
    // As on a socket the wider subscription begins here, not where the room was resumed.
    const missed = joined.events.filter((event) => isWantedBy(before, event.event));
    const ok = { type: "ok", room: roomId, subscriptions: joined.subscriptions, seq: room.passed };
    return [...missed.map((event) => eventIn(roomId, event)), ok];
  }

  // ---- what no stream tells

  /** `pingMs` is what the server leaves between two signs of life on a stream. */
  watchSilence(pingMs) {
    this.#pingMs = pingMs;
    this.#ticker ??= setInterval(() => this.#tick(), Math.min(Math.max(1, this.#source.pollMs / 6), MAX_TIMER_MS));
  }

  #tick() {
    this.#findSilence(2);
    this.#poll();
  }

  #findSilence(pings) {
    if (!(this.#pingMs > 0)) return;
    const now = Date.now();
    for (const room of [...this.#rooms.values()]) {
      if (room.stream && now - room.stream.heardAt > this.#pingMs * pings) this.#lose(room.id);
    }
    if (now - this.#heardAt > this.#pingMs * pings) this.#check();
  }

  /** The page is back, or its network has changed. */
  wakeUp() {
    this.#findSilence(1.5);
    if (Date.now() - this.#heardAt > CHECK_MS) this.#check();
  }

  /** Ends the link if the server cannot be reached at all. */
  async #check() {
    if (this.#isChecking || !this.alive || this.connectedAt === null) return;
    this.#isChecking = true;
    try {
      await this.#call({ path: "me", timeoutMs: Math.min(2 * CHECK_MS, this.#source.timeoutMs) });
    } catch (error) {
      if (!(error instanceof Refusal)) this.fail(1006, "the server cannot be reached");
      else if (error.wire.code === "UNAUTHENTICATED") this.#refused(error);
    } finally {
      this.#isChecking = false;
    }
  }

  /** One thing at a time, whatever is due for longest: a client of many rooms asks no more often. */
  async #poll() {
    if (this.#isPolling || !this.alive) return;
    this.#isPolling = true;
    try {
      await this.#pollNext();
    } catch (error) {
      if (!(error instanceof Refusal)) this.#check();
      else if (error.wire.code === "UNAUTHENTICATED") this.#refused(error);
      // What else is refused here is asked again when its time comes.
    } finally {
      this.#isPolling = false;
    }
  }

  async #pollNext() {
    const { pollMs } = this.#source;
    const polled = [...this.#rooms.values()].filter((room) => room.isPolled);
    if (polled.length > 0 && this.#streams < this.#mostStreams) {
      // It may be another tab that has it: asked for when this one has let one go, else now and then.
      const { streams, at } = this.#promotion;
      if (streams !== this.#streams || at <= Date.now() - 10 * pollMs) {
        this.#promotion = { streams: this.#streams, at: Date.now() };
        this.#inLine(polled[0].id, () => this.#promote(polled[0]));
        return;
      }
    }
    const [first] = this.#asked().sort((one, other) => one.dueAt - other.dueAt);
    if (first?.dueAt <= Date.now()) await first.ask();
  }

  /** What is asked now and then: `{dueAt, ask}` of each. */
  #asked() {
    const { pollMs } = this.#source;
    const asked = [];
    for (const room of this.#rooms.values()) {
      if (room.isPolled) asked.push({ dueAt: room.polledAt + pollMs, ask: () => this.#pollRoom(room) });
      if (!this.#source.watchesPresence(room.id)) room.present = null;
      else asked.push({ dueAt: room.presenceAt + pollMs, ask: () => this.#pollPresence(room) });
    }
    if (!this.#source.watchesUnread()) this.#unread = null;
    else asked.push({ dueAt: this.#unreadAt + 5 * pollMs, ask: () => this.#pollUnread() });
    return asked;
  }

  async #pollRoom(room) {
    room.polledAt = Date.now();
    const { seq: after, epoch, names: events } = room;
    const isStale = () => room.isOver || !room.isPolled || room.seq !== after || room.names !== events;
    let answer;
    try {
      answer = await this.#callEvents(room, { after, epoch, events });
    } catch (error) {
      const code = error instanceof Refusal ? error.wire.code : null;
      if (isStale() || code === null || code === "UNAUTHENTICATED" || PASSING.has(code)) throw error;
      this.#pass(room, { type: "left", room: room.id, reason: code });
      return;
    }
    if (isStale()) return;
    if (answer.recovered !== true) {
      this.#lose(room.id);
      return;
    }
    this.#passAll(room, answer);
  }

  /** Gives a polled room a stream. */
  async #promote(room) {
    if (room.isOver || !room.isPolled) return;
    const { seq: after, epoch, names: events } = room;
    let stream = null;
    try {
      stream = await this.#openStream(room, { after, epoch, events });
    } catch {
      return; // it is polled on, and that tells what is wrong
    }
    if (!stream) return;
    if (room.isOver || stream.joined.recovered !== true) {
      stream.end();
      return;
    }
    this.#replace(room, { stream, isPolled: false });
    this.#passAll(room, stream.joined);
    if (!room.isOver) this.#read(room); // unless what one of them did has ended it
  }

  async #pollPresence(room) {
    room.presenceAt = Date.now();
    const answer = await this.#call({ path: pathOf(room.id, "presence") });
    if (!room.isOver) this._take(room.presenceChanges(answer));
  }

  async #pollUnread() {
    this.#unreadAt = Date.now();
    const { unread } = await this.#call({ path: "unread" });
    const before = this.#unread;
    this.#unread = unread;
    const changed = Object.entries(unread).filter(([room, count]) => before?.[room] !== count);
    if (changed.length > 0) this._take([{ type: "unread", unread: Object.fromEntries(changed) }]);
  }

  _shut() {
    clearInterval(this.#ticker);
    for (const roomId of [...this.#rooms.keys()]) this.#end(roomId);
    for (const controller of this.#controllers) controller.abort();
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

// --------------------------------------------------------------------------------------- client

/**
 * Makes a client; `connect()` starts it.
 *
 * @param {object} options
 * @param {string} options.url The router's base: http(s), ws(s) or relative to the page.
 *   The socket is at `<base>/ws`.
 * @param {object|Function} [options.auth] Sent with every connect; a function (it may be async)
 *   is called each time, so that it can bring a fresh token.
 * @param {Function} [options.WebSocket] Default: the platform's own.
 * @param {string[]} [options.transports] Which may be used, the preferred one first. Default:
 *   ["websocket", "sse"].
 * @param {Function} [options.fetch] For "sse". Default: the platform's own.
 * @param {string} [options.credentials] Of the requests of "sse". Default: "same-origin".
 * @param {number} [options.pollSeconds] How often "sse" asks what no stream tells; unread counts
 *   five times more seldom. Default: 3.
 * @param {number} [options.probeSeconds] How long it takes at most until a client that has come
 *   down to "sse" tries a WebSocket again. Default: 300.
 * @param {() => number} [options.random] In [0, 1); spreads the delays. Default: Math.random.
 * @param {number} [options.maxPendingTriggers] Triggers not yet acked, over all rooms; one more
 *   is refused with PENDING_FULL. Default: 1000.
 * @param {number} [options.maxPendingRequests] The same for reads and the rest. Default: 1000.
 * @param {number} [options.maxTriggerAttempts] How often a trigger with unknown outcome is sent
 *   on working connections. Default: 6.
 * @param {number} [options.requestTimeoutSeconds] Counted only while connected. Default: 30.
 * @param {number} [options.connectTimeoutSeconds] From the attempt's start, `auth` included, to
 *   the server's `connected`. Default: 15.
 * @param {number} [options.backoffSeconds] Delays are drawn from 0 to this, doubled at each
 *   failure … Default: 0.5.
 * @param {number} [options.maxBackoffSeconds] … up to this. Default: 20.
 */
export function createDialogueClient(options) {
  return new DialogueClient(options);
}

class DialogueClient {
  #url;
  #auth;
  #WebSocket;
  #fetch;
  #credentials;
  /** The usable ones, the preferred one first. */
  #transports;
  /** Openings in a row that nothing was heard on. */
  #deafOpenings = 0;
  #hasOpenedSocket = false;
  #probeTimer = null;
  #probes = 0;
  /** The WebSocket that is being tried while another transport stands. */
  #probing = null;
  #hasToldOfAuth = false;
  #random;
  #limits;

  #state = "offline";
  #wanted = false;
  #everConnected = false;
  #link = null;
  /** Counts attempts to open; what an older attempt still brings is void. */
  #attempt = 0;
  #attemptAt = 0;
  #failures = 0;
  #openNotBefore = 0;
  #resumesAtOnce = RESUMES_AT_ONCE;
  /** How often in a row resumes were too fast; those sent together count once. */
  #resumeRefusals = 0;
  #retryTimer = null;
  #attemptTimer = null;
  #opening = null;
  #connectRef = null;

  #nextRef = 1;
  /** Unanswered requests in the order made, by ref. Bounded by the two maxPending options. */
  #pending = new Map();
  #pendingTriggers = 0;
  #rooms = new Map();

  #messages = new NamedListeners();
  #onHistory = new Listeners();
  #onConnect = new Listeners();
  #onDisconnect = new Listeners();
  #onError = new Listeners();
  #onState = new Listeners();
  #onJoined = new Listeners();
  #onRoomCreated = new Listeners();
  #onRoomUpdated = new Listeners();
  #onRoomDeleted = new Listeners();
  #onUnread = new Listeners();
  /** Pushes are not repeated: after a lost connection all counts are asked for. */
  #allUnread = this._question({ type: "unread" }, { take: ({ unread }) => this.#onUnread.emit(unread) });

  #wake = (event) => this.#wakeUp(event);

  userId = null;
  clientId = null;
  /** Most events in a page, as the server says. */
  _pageEvents = Infinity;

  constructor({
    url,
    auth,
    WebSocket = globalThis.WebSocket,
    transports = TRANSPORTS,
    fetch = globalThis.fetch,
    credentials = "same-origin",
    pollSeconds = 3,
    probeSeconds = 300,
    random = Math.random,
    maxPendingTriggers = 1000,
    maxPendingRequests = 1000,
    maxTriggerAttempts = 6,
    requestTimeoutSeconds = 30,
    connectTimeoutSeconds = 15,
    backoffSeconds = 0.5,
    maxBackoffSeconds = 20,
  }) {
    this.#transports = usable(transports, { WebSocket, fetch });
    this.#url = serverUrl(url);
    this.#auth = auth;
    this.#WebSocket = WebSocket;
    this.#fetch = fetch;
    this.#credentials = credentials;
    this.#random = random;
    this.#limits = {
      maxPendingTriggers,
      maxPendingRequests,
      maxTriggerAttempts,
      requestTimeoutMs: requestTimeoutSeconds * 1000,
      connectTimeoutMs: connectTimeoutSeconds * 1000,
      backoffMs: backoffSeconds * 1000,
      maxBackoffMs: maxBackoffSeconds * 1000,
      pollMs: pollSeconds * 1000,
      probeMs: probeSeconds * 1000,
    };
  }

  /** "connecting" | "connected" | "resuming" | "offline" (not connected and not trying). */
  get state() {
    return this.#state;
  }

  get connected() {
    return this.#state === "connected";
  }

  /** What the present connection uses: "websocket" or "sse"; null while there is none. */
  get transport() {
    return this.#link?.connectedAt == null ? null : this.#link.transport;
  }

  /** Data that the server sent to this client alone: `fn(data, event)`. */
  on(event, fn) {
    return this.#messages.add(event, fn);
  }

  /** What a join brought, newest first: `fn(roomId, events)`. Not called for resumed events. */
  onHistory(fn) {
    return this.#onHistory.add(fn);
  }

  /** `fn({clientId, userId, resumed})`, at every connection; over "sse" clientId is null. */
  onConnect(fn) {
    return this.#onConnect.add(fn);
  }

  /** `fn({code, reason, willReconnect})`, whenever a connection that stood has ended. */
  onDisconnect(fn) {
    return this.#onDisconnect.add(fn);
  }

  /** `fn(error)`, for what belongs to no call: a refused connection, a failed `auth`, … */
  onError(fn) {
    return this.#onError.add(fn);
  }

  onState(fn) {
    return this.#onState.add(fn);
  }

  /** `fn(room)`, when the server has put this client into a room that it did not ask for. */
  onJoined(fn) {
    return this.#onJoined.add(fn);
  }

  /** `fn(room)`, when a room is made that this client may see. Not repeated: `listRooms` tells. */
  onRoomCreated(fn) {
    return this.#onRoomCreated.add(fn);
  }

  /** `fn(room)`, when its name, description or size limit has changed. */
  onRoomUpdated(fn) {
    return this.#onRoomUpdated.add(fn);
  }

  /** `fn(roomId)` */
  onRoomDeleted(fn) {
    return this.#onRoomDeleted.add(fn);
  }

  /**
   * `fn(counts)`: unread counts that have changed, by room, also of rooms not joined.
   *
   * The server does not repeat them, so after a lost connection all are asked for and told.
   */
  onUnread(fn) {
    return this.#onUnread.add(fn);
  }

  /**
   * Connects and stays connected until `disconnect()`.
   *
   * Resolves when the server has answered. Failed attempts are repeated without end; it rejects
   * only if the server refuses this client for good or `disconnect()` is called.
   * After a `disconnect()` it takes up the rooms where they were.
   */
  connect() {
    if (this.#state === "connected") return Promise.resolve();
    this.#opening ??= deferred();
    const { promise } = this.#opening;
    if (!this.#wanted) {
      this.#wanted = true;
      this.#failures = 0;
      for (const type of WAKE_EVENTS) wakeTarget(type)?.addEventListener?.(type, this.#wake);
      this.#open();
    }
    return promise;
  }

  /** Closes the connection; what is unanswered is rejected with DISCONNECTED. */
  disconnect() {
    this.#stop(new DialogueError("DISCONNECTED", "disconnect() was called"), {
      code: 1000,
      reason: "",
    });
  }

  /**
   * Joins a room, or returns the one joined already.
   *
   * Every join needs a `leave()` of its own before the room is really left, so that two parts of
   * an application can share a room. `events` of a later join are added to the subscription.
   *
   * @param {string} roomId
   * @param {object} [options]
   * @param {number} [options.sync] How many of the newest events per type to bring.
   * @param {string[]|"*"} [options.events] What to subscribe to. Default: the room's own choice.
   * @throws {DialogueError} DISCONNECTED before `connect()`, and what the server refuses with.
   */
  async join(roomId, { sync, events } = {}) {
    if (!this.#wanted) throw new DialogueError("DISCONNECTED", "call connect() before join()");
    let room = this.#rooms.get(roomId);
    if (room) {
      room._users += 1;
      await room._firstJoin.promise;
      if (events === undefined || room._covers(events)) return room;
      try {
        await room.subscribe(events);
      } catch (error) {
        // Who gets no room cannot leave it; why it was not to be had is what they are told.
        room.leave().catch(() => {});
        throw error;
      }
      return room;
    }
    room = new Room(this, roomId, { sync, events });
    room._users = 1;
    this.#rooms.set(roomId, room);
    this.#join(room);
    await room._firstJoin.promise;
    return room;
  }

  /** The room if it is joined (or being joined), else undefined. */
  getRoom(roomId) {
    return this.#rooms.get(roomId);
  }

  async listRooms() {
    const { rooms } = await this._request({ type: "rooms" });
    return rooms.map(roomInfoFrom);
  }

  /**
   * Makes a room, which this client's user may delete again; it is not joined by that.
   *
   * @throws {DialogueError} PERMISSION_DENIED where the server lets clients make no such room;
   *   ROOM_EXISTS, which after a lost connection may be this call's own work: `listRooms` tells
   *   who has made it.
   */
  async createRoom(roomId, name, { description, maxSize } = {}) {
    const command = { type: "create_room", room: roomId, name };
    if (description) command.description = description;
    if (maxSize != null) command.max_size = maxSize;
    await this._request(command);
  }

  /** Deletes a room that this user has made, with its history. */
  async deleteRoom(roomId) {
    await this._request({ type: "delete_room", room: roomId });
  }

  /** How many events this user has not read, by room; without *rooms* in all of the inbox. */
  async unread(rooms) {
    const command = { type: "unread" };
    if (rooms !== undefined) command.rooms = typeof rooms === "string" ? [rooms] : [...rooms];
    const { unread } = await this._request(command);
    return unread;
  }

  // ---- connecting

  #setState(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#onState.emit(state);
  }

  async #open() {
    const attempt = ++this.#attempt;
    const isCurrent = () => attempt === this.#attempt;
    clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
    this.#setState(this.#everConnected ? "resuming" : "connecting");
    if (!isCurrent()) return; // a state handler has called disconnect()
    this.#attemptAt = Date.now();
    const transport = this.#nextTransport();
    const isFirst = transport === "websocket" && this.#transports.length > 1 && !this.#hasOpenedSocket;
    const { connectTimeoutMs } = this.#limits;
    const patienceMs = isFirst ? Math.min(connectTimeoutMs, FIRST_OPENING_MS) : connectTimeoutMs;
    this.#attemptTimer = later(() => this.#giveUpAttempt(), patienceMs);
    const ref = this.#nextRef++;
    let greeting;
    try {
      greeting = await this.#greeting(ref);
    } catch (cause) {
      if (!isCurrent()) return;
      this.#onError.emit(new DialogueError("AUTH_FAILED", "the auth function threw", { cause }));
      if (isCurrent()) this.#retryLater();
      return;
    }
    if (!isCurrent()) return;
    try {
      const link = this.#makeLink(transport, {
        onOpen: () => {
          this.#connectRef = ref;
          link.send(greeting);
        },
        onMessage: (message) => this.#handle(message, link),
        onGone: (close) => this.#gone(link, close),
      });
      this.#link = link;
    } catch (cause) {
      // The platform refuses to open it, for example ws: from an https: page.
      this.#deafOpenings += 1;
      this.#onError.emit(new DialogueError("DISCONNECTED", "the socket could not be opened", { cause }));
      if (isCurrent()) this.#retryLater();
    }
  }

  async #greeting(ref) {
    const auth = typeof this.#auth === "function" ? await this.#auth() : this.#auth;
    return JSON.stringify({ type: "connect", ref, auth: auth ?? undefined });
  }

  #makeLink(transport, callbacks) {
    if (transport === "websocket") return new SocketLink(this.#WebSocket, socketUrl(this.#url), callbacks);
    return new HttpLink({
      url: this.#url,
      fetch: this.#fetch,
      credentials: this.#credentials,
      pollMs: this.#limits.pollMs,
      timeoutMs: this.#limits.requestTimeoutMs,
      watchesPresence: (roomId) => this.#rooms.get(roomId)?._watchesPresence === true,
      watchesUnread: () => this.#onUnread.size > 0,
      onUnsendable: (fields) => this.#tellOfAuth(fields),
      ...callbacks,
    });
  }

  #tellOfAuth(fields) {
    if (this.#hasToldOfAuth) return;
    this.#hasToldOfAuth = true;
    const message = `without WebSockets only token and user_id of auth can be sent, not ${fields.join(", ")}`;
    this.#onError.emit(new DialogueError("AUTH_FAILED", message));
  }

  /**
   * The preferred one until it has failed a few times in a row, then both in turn.
   *
   * Who has come down to the other begins with that after a lost connection, too: where nothing
   * else comes through, finding that out again takes long.
   */
  #nextTransport() {
    const [preferred, other = preferred] = this.#transports;
    const failures = this.#deafOpenings - OPENINGS_BEFORE_FALLBACK;
    return failures >= 0 && failures % 2 === 0 ? other : preferred;
  }

  /** Tries a WebSocket now and then beside the transport that stands, and goes over to it. */
  #probeLater() {
    const delay = Math.min(this.#limits.probeMs, FIRST_PROBE_MS * 4 ** Math.min(this.#probes++, 10));
    this.#probeTimer = later(() => this.#probe(), delay * (0.5 + this.#random() / 2));
  }

  async #probe() {
    const standing = this.#link;
    const ref = this.#nextRef++;
    let link = null;
    let isOver = false;
    const again = () => {
      if (isOver || this.#link !== standing) return;
      isOver = true;
      this.#endProbe();
      this.#probeLater();
    };
    this.#probeTimer = later(again, this.#limits.connectTimeoutMs);
    try {
      const greeting = await this.#greeting(ref);
      if (isOver || this.#link !== standing) return;
      link = this.#makeLink("websocket", {
        onOpen: () => link.send(greeting),
        onMessage: (message) => {
          if (link === this.#link) this.#handle(message, link);
          else if (message.type === "connected") this.#goOver(link, message, ref);
          else if (message.type === "error") again();
        },
        onGone: (close) => {
          if (link === this.#link) this.#gone(link, close);
          else again();
        },
      });
      this.#probing = link;
    } catch {
      again();
    }
  }

  #endProbe() {
    clearTimeout(this.#probeTimer);
    this.#probing?.close();
    this.#probing = null;
  }

  /** For the rooms it is a lost connection like any other. */
  #goOver(link, message, ref) {
    this.#probing = null;
    clearTimeout(this.#probeTimer);
    this.#link.close();
    this.#link = link;
    this.#connectRef = ref;
    this.#detach();
    this.#setState("resuming");
    if (link !== this.#link) return;
    this.#onDisconnect.emit({ code: 1000, reason: "a WebSocket comes through", willReconnect: true });
    if (link === this.#link) this.#connected(message, link);
  }

  #backoffMs(failures) {
    const { backoffMs, maxBackoffMs } = this.#limits;
    return this.#random() * Math.min(maxBackoffMs, backoffMs * 2 ** Math.min(failures, 30));
  }

  #retryLater() {
    this.#attempt += 1;
    clearTimeout(this.#attemptTimer);
    clearTimeout(this.#retryTimer);
    const delay = Math.max(this.#backoffMs(this.#failures), this.#openNotBefore - Date.now());
    this.#retryTimer = later(() => this.#open(), delay);
    this.#failures += 1;
    this.#setState(this.#everConnected ? "resuming" : "connecting");
  }

  /**
   * Timers stand still while a machine sleeps or a tab is frozen, so what they would have found
   * is looked for when the page is back, by the wall clock.
   */
  #wakeUp({ type, persisted }) {
    if (type !== "offline" && globalThis.document?.visibilityState === "hidden") return;
    if (this.#retryTimer !== null) {
      if (type === "offline" || Date.now() < this.#openNotBefore) return;
      this.#failures = 0;
      this.#open();
    } else if (this.#link?.connectedAt != null) {
      // A page from the back/forward cache finds its sockets closed, or dead without a sign.
      if (persisted) this.#link.fail(1006, "the page was put away");
      else this.#link.wakeUp();
    } else if (Date.now() - this.#attemptAt > this.#limits.connectTimeoutMs) {
      this.#failures = 0;
      this.#giveUpAttempt();
    }
  }

  #giveUpAttempt() {
    // No link yet means that `auth` is what hangs.
    if (this.#link) this.#link.fail(1006, "no answer to connect");
    else this.#retryLater();
  }

  #gone(link, { code, reason }) {
    if (link !== this.#link) return;
    this.#link = null;
    this.#endProbe();
    const stood = link.connectedAt !== null;
    if (!link.hasHeard && code < 4000) this.#deafOpenings += 1;
    if (code === CLOSE_TOO_FAST) this.#openNotBefore = Date.now() + TOO_FAST_MS;
    else if (stood && Date.now() - link.connectedAt > STABLE_MS) this.#failures = 0;
    this.#detach();
    if (code === CLOSE_FRAME_TOO_BIG) this.#dropLargest();
    // Credentials that have expired meanwhile are asked for again; a try to connect that is refused is the end.
    if ((code === CLOSE_UNAUTHENTICATED && !stood) || code === CLOSE_PROTOCOL) {
      const error =
        code === CLOSE_UNAUTHENTICATED
          ? new DialogueError("UNAUTHENTICATED", reason || "the server does not accept this client")
          : new DialogueError("PROTOCOL", reason || "the server speaks another protocol");
      this.#stop(error, { code, reason, stood });
      this.#onError.emit(error);
      return;
    }
    this.#retryLater();
    if (stood) this.#onDisconnect.emit({ code, reason, willReconnect: this.#wanted });
  }

  /** Rooms and requests forget the connection they were on. */
  #detach() {
    for (const room of this.#rooms.values()) {
      room._live = false;
      clearTimeout(room._joinTimer);
    }
    for (const request of [...this.#pending.values()]) {
      this.#unsend(request);
      if (request.once) {
        // Sent again it would undo a join made since; the end of the connection did its work.
        this.#remove(request);
        request.resolve(null);
      } else if (request.room?._closed) {
        // Its room was left after it was sent: there is no rejoin that would send it again.
        this.#reject(request, notJoined(request.room.id));
      }
    }
  }

  /**
   * Gives up the largest unanswered request after the server has closed with 1009.
   *
   * Sent again it would end every later connection too. Frames hold few commands besides a large
   * one, so the largest is in a frame that was refused unread; each round removes one more.
   */
  #dropLargest() {
    let largest = null;
    for (const request of this.#pending.values()) {
      if (!largest || request.text.length > largest.text.length) largest = request;
    }
    if (largest) {
      this.#reject(largest, new DialogueError("MESSAGE_TOO_LARGE", "the server refuses a frame this big"));
    }
  }

  #stop(error, { code, reason, stood = this.#state === "connected" }) {
    if (!this.#wanted) return;
    this.#wanted = false;
    this.#attempt += 1;
    clearTimeout(this.#attemptTimer);
    clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
    this.#allUnread.stop();
    this.#endProbe();
    for (const type of WAKE_EVENTS) wakeTarget(type)?.removeEventListener?.(type, this.#wake);
    this.#link?.close();
    this.#link = null;
    this.#detach();
    for (const request of [...this.#pending.values()]) this.#reject(request, error);
    for (const room of [...this.#rooms.values()]) {
      clearTimeout(room._pauseTimer);
      room._pauseTimer = null;
      if (room._cursor === null) this.#forget(room, error);
    }
    this.#opening?.reject(error);
    this.#opening = null;
    this.#setState("offline");
    if (stood) this.#onDisconnect.emit({ code, reason, willReconnect: false });
  }

  // ---- messages

  #handle(message, link) {
    switch (message.type) {
      case "event":
        this.#rooms.get(message.room)?._receive(message);
        break;
      case "ok":
      case "history":
      case "rooms":
        this.#settle(message);
        break;
      case "presence":
        if (message.ref != null) this.#settle(message);
        else this.#rooms.get(message.room)?._presenceChanged(message);
        break;
      case "unread":
        if (message.ref != null) this.#settle(message);
        else this.#onUnread.emit(message.unread);
        break;
      case "room_created":
        this.#onRoomCreated.emit(roomInfoFrom(message));
        break;
      case "room_updated":
        this.#rooms.get(message.id)?._renamed(message.name);
        this.#onRoomUpdated.emit(roomInfoFrom(message));
        break;
      case "room_deleted":
        this.#onRoomDeleted.emit(message.room);
        break;
      case "error":
        this.#refused(message, link);
        break;
      case "joined":
        this.#joined(message, link);
        break;
      case "left":
        this.#left(message);
        break;
      case "message":
        this.#messages.emit(message.event, message.data, message.event);
        break;
      case "ping":
        link.send('{"type":"pong"}');
        break;
      case "connected":
        this.#connected(message, link);
        break;
      case LOST:
        this.#lost(message, link);
        break;
      default: // a later server may say more; what is not known is not needed
    }
  }

  #connected(message, link) {
    if (link.connectedAt !== null) return; // the answer to refreshed credentials
    clearTimeout(this.#attemptTimer);
    link.connectedAt = Date.now();
    this.#failures = Math.min(this.#failures, FAILURES_ONCE_CONNECTED);
    link.watchSilence((message.ping_seconds ?? 0) * 1000);
    this._pageEvents = message.limits?.page_events ?? Infinity;
    link.commandsPerFrame = Math.min(BATCH_COMMANDS, message.limits?.commands_per_frame ?? Infinity);
    if (link.transport === "websocket") this.#hasOpenedSocket = true;
    if (link.transport === this.#transports[0]) this.#deafOpenings = 0;
    else {
      this.#deafOpenings = OPENINGS_BEFORE_FALLBACK;
      this.#probes = 0;
      // Where one has opened before, the server was away: it is tried at once.
      if (link.transport === "sse") {
        if (this.#hasOpenedSocket) this.#probe();
        else this.#probeLater();
      }
    }
    this.clientId = message.client_id ?? null;
    this.userId = message.user_id;
    const resumed = this.#everConnected;
    this.#everConnected = true;
    // Before any handler runs: one that joins or triggers must come after what waits already.
    for (const room of this.#rooms.values()) {
      if (room._cursor === null) this.#join(room);
      else link.resumes.add(room);
    }
    this.#resumeMore();
    this.#flush(null);
    this.#opening?.resolve();
    this.#opening = null;
    link.hold();
    if (resumed && this.#onUnread.size > 0) this.#allUnread.ask();
    this.#setState("connected");
    this.#onConnect.emit({ clientId: this.clientId, userId: this.userId, resumed });
  }

  #refused(message, link) {
    const error = errorFrom(message);
    if (message.ref === this.#connectRef && link.connectedAt === null) {
      if (FINAL_REFUSALS.has(error.code)) {
        // Now: the close code that says the same may get lost in a proxy.
        this.#stop(error, { code: CLOSE_UNAUTHENTICATED, reason: error.message, stood: false });
        this.#onError.emit(error);
      } else {
        this.#openNotBefore = Date.now() + (error.retryAfterSeconds ?? 0) * 1000;
        this.#onError.emit(error);
        link.fail(1006, error.message);
      }
      return;
    }
    const room = link.joins.get(message.ref);
    if (room) {
      link.joins.delete(message.ref);
      this.#joinRefused(room, error);
      return;
    }
    const request = this.#pending.get(message.ref);
    if (!request) {
      // The answer to what nobody waits for any more concerns nobody.
      if (message.ref == null) this.#onError.emit(error);
    } else if (error.code === "ROOM_NOT_FOUND" && request.deletes && request.sends > 1) {
      this.#settle(message); // an earlier try has deleted it
    } else if (request.isTrigger && OUTCOME_UNKNOWN.has(error.code)) this.#triggerAgain(request, error);
    // Whether an earlier try was taken it does not say, so that only another try tells.
    else if (request.isTrigger && request.sends > 1 && TOO_FAST.has(error.code)) {
      this.#triggerAgain(request, error);
    } else this.#reject(request, error);
  }

  // ---- requests

  /**
   * Sends a command and resolves with its answer. The command must be one that may be sent twice
   * (a read, a change of subscription, a trigger with its key) or `once`: then a lost connection
   * resolves it with null. What must keep its place among the messages is done by `take(answer)`:
   * the promise's reactions come only after the whole frame.
   *
   * @internal
   */
  _request(command, { room = null, once = false, take = null } = {}) {
    const isTrigger = PUBLISHES.has(command.type);
    const { maxPendingTriggers, maxPendingRequests } = this.#limits;
    return new Promise((resolve, reject) => {
      if (!this.#wanted) throw new DialogueError("DISCONNECTED", "not connected; call connect() first");
      if (room?._closed) throw notJoined(room.id);
      const waiting = isTrigger ? this.#pendingTriggers : this.#pending.size - this.#pendingTriggers;
      if (waiting >= (isTrigger ? maxPendingTriggers : maxPendingRequests)) {
        const what = isTrigger ? "triggers" : "requests";
        throw new DialogueError("PENDING_FULL", `${waiting} ${what} wait for an answer already`);
      }
      const ref = this.#nextRef++;
      // Encoded now: data that the application changes later must not change what is sent again.
      const text = JSON.stringify({ ...command, ref });
      const request = {
        ref,
        text,
        room,
        isTrigger,
        deletes: command.type === "delete_room",
        once,
        take,
        resolve,
        reject,
        sent: false,
        sends: 0,
        attempts: 0,
        refusals: 0,
        timer: null,
      };
      this.#pending.set(ref, request);
      if (isTrigger) this.#pendingTriggers += 1;
      if (this.#canSend(request)) this.#send(request);
    });
  }

  #canSend({ room, isTrigger }) {
    if (this.#link?.connectedAt == null) return false;
    if (room === null) return true;
    // While a trigger waits for its retry the later ones of that room wait behind it.
    return room._live && !(isTrigger && room._pauseTimer !== null);
  }

  #send(request) {
    request.sent = true;
    request.sends += 1;
    this.#link.send(request.text);
    request.timer = later(() => {
      const error = new DialogueError("TIMEOUT", "no answer in time");
      if (request.isTrigger) this.#triggerAgain(request, error);
      else this.#reject(request, error);
    }, this.#limits.requestTimeoutMs);
  }

  /** Sends what waits for *room* (null: for no room), in the order it was asked for. */
  #flush(room) {
    for (const request of this.#pending.values()) {
      if (request.room === room && !request.sent && this.#canSend(request)) this.#send(request);
    }
  }

  /** It waits again, as if it had not been sent. */
  #unsend(request) {
    request.sent = false;
    clearTimeout(request.timer);
  }

  #remove(request) {
    clearTimeout(request.timer);
    if (this.#pending.delete(request.ref) && request.isTrigger) this.#pendingTriggers -= 1;
  }

  #reject(request, error) {
    this.#remove(request);
    request.reject(error);
  }

  #settle(message) {
    const request = this.#pending.get(message.ref);
    if (!request) return;
    this.#remove(request);
    if (message.subscriptions !== undefined) request.room?._subscribed(message);
    request.take?.(message);
    request.resolve(message);
  }

  /** @internal The same as a question; what is refused for good belongs to no call. */
  _question(command, options) {
    return new Question({
      request: () => this._request(command, options),
      retryMs: (error, failures) => this.#retryMs(error, failures),
      onError: (error) => this.#onError.emit(error),
    });
  }

  /** How long to wait before the same is asked again. */
  #retryMs(error, tries) {
    return Math.max(this.#backoffMs(tries), (error.retryAfterSeconds ?? 0) * 1000);
  }

  #triggerAgain(request, error) {
    const { room } = request;
    const tries = TOO_FAST.has(error.code) ? ++request.refusals : ++request.attempts;
    if (room._closed || request.attempts >= this.#limits.maxTriggerAttempts) {
      this.#reject(request, error);
      return;
    }
    this.#unsend(request);
    // One pause for the room, not one per trigger: those refused together go again in order.
    room._pauseTimer ??= later(() => {
      room._pauseTimer = null;
      this.#flush(room);
    }, this.#retryMs(error, tries));
  }

  // ---- rooms

  #join(room) {
    const link = this.#link;
    if (link?.connectedAt == null) return; // `connected` joins every room
    const ref = this.#nextRef++;
    const command = { type: "join", ref, room: room.id };
    if (room._cursor) {
      command.since = room._cursor;
      command.events = room.subscriptions;
    } else {
      if (room._options.sync !== undefined) command.sync = room._options.sync;
      if (room._options.events !== undefined) command.events = namesFrom(room._options.events);
    }
    link.joins.set(ref, room);
    room._joinSends += 1;
    link.send(JSON.stringify(command));
    room._joinTimer = later(() => {
      if (link.joins.delete(ref)) this.#joinRefused(room, new DialogueError("TIMEOUT", "no answer to join"));
    }, this.#limits.requestTimeoutMs);
  }

  /** A room's stream has ended, not the link: the room is joined again where it was. */
  #lost({ room: roomId, refs, stoodMs }, link) {
    for (const ref of refs) {
      const room = link.joins.get(ref);
      clearTimeout(room?._joinTimer);
      link.joins.delete(ref);
      const request = this.#pending.get(ref);
      if (request) this.#unsend(request);
    }
    const room = this.#rooms.get(roomId);
    // Of an earlier membership: this one's own join is on its way.
    if (!room || [...link.joins.values()].includes(room)) return;
    room._live = false;
    link.resumes.delete(room); // not before its time, nor twice
    room._breaks = stoodMs > STABLE_MS ? 0 : room._breaks + 1;
    this.#joinLater(room, this.#backoffMs(room._breaks));
    this.#resumeMore();
  }

  #joinLater(room, delay) {
    const link = this.#link;
    clearTimeout(room._joinTimer);
    room._joinTimer = later(() => {
      if (link !== this.#link || room._closed) return;
      link.resumes.add(room);
      this.#resumeMore();
    }, delay);
  }

  /** Resumes the rooms that wait, as many as may be on their way. */
  #resumeMore() {
    const link = this.#link;
    if (link?.connectedAt == null || link.resumePause !== null) return;
    for (const room of link.resumes) {
      if (link.joins.size >= this.#resumesAtOnce) return;
      link.resumes.delete(room);
      if (!room._closed) this.#join(room);
    }
    if (link.joins.size === 0) {
      this.#resumesAtOnce = RESUMES_AT_ONCE;
      this.#resumeRefusals = 0;
    }
  }

  /** The server counts the joins of all rooms together, and its errors, too. */
  #pauseResumes(error) {
    const link = this.#link;
    this.#resumesAtOnce = RESUMES_AFTER_REFUSAL;
    if (link.resumePause !== null) return;
    const delay = this.#retryMs(error, this.#resumeRefusals++);
    link.resumePause = later(() => {
      link.resumePause = null;
      if (link === this.#link) this.#resumeMore();
    }, delay);
  }

  #joined(message, link) {
    let room = link.joins.get(message.ref);
    if (room) {
      link.joins.delete(message.ref);
      clearTimeout(room._joinTimer);
      this.#resumeMore();
      if (room._closed) return; // left again while the answer was on its way
    } else {
      if (message.ref !== undefined && message.ref !== null) {
        // Answered after its timeout: nobody wants it, but the server has let the client in.
        if (!this.#rooms.has(message.room)) {
          link.send(JSON.stringify({ type: "leave", ref: this.#nextRef++, room: message.room }));
        }
        return;
      }
      // The server has joined this client. A room that we are joining or resuming ourselves stays
      // as it is: taking this cursor would skip what our own join is about to bring.
      room = this.#rooms.get(message.room);
      if (room) {
        if (room._live) room._subscribed(message);
        return;
      }
      room = new Room(this, message.room, {});
      this.#rooms.set(room.id, room);
      room._joined(message);
      this.#onJoined.emit(room);
      this.#history(room, message.events);
      return;
    }
    const isFirst = room._cursor === null;
    room._joined(message);
    // Before any handler runs: a trigger made in one must not overtake those that wait.
    this.#flush(room);
    room._askPresence();
    if (isFirst) link.hold();
    if (message.recovered === true) room._resume(message.events);
    else {
      if (!isFirst) room._reset();
      this.#history(room, message.events);
    }
  }

  #history(room, events) {
    this.#onHistory.emit(room.id, events.map((event) => eventFrom(event, room.id)).reverse());
  }

  #joinRefused(room, error) {
    clearTimeout(room._joinTimer);
    const isTooFast = TOO_FAST.has(error.code);
    if (room._closed) {
      // Nobody waits for it.
    } else if (room._cursor === null && !(isTooFast && room._joinSends > 1)) {
      this.#forget(room, error);
    } else if (PASSING.has(error.code)) {
      if (isTooFast) this.#pauseResumes(error);
      this.#joinLater(room, this.#retryMs(error, room._joinFailures++));
    } else {
      this.#forget(room, error);
      room._onLeft.emit(error.code);
    }
    this.#resumeMore();
  }

  #left(message) {
    const room = this.#rooms.get(message.room);
    if (!room?._live) return;
    this.#forget(room, notJoined(room.id));
    room._onLeft.emit(message.reason);
  }

  #forget(room, error, { isKept = () => false } = {}) {
    if (this.#rooms.get(room.id) === room) this.#rooms.delete(room.id);
    room._close();
    for (const request of [...this.#pending.values()]) {
      if (request.room === room && !isKept(request)) this.#reject(request, error);
    }
    room._firstJoin.reject(error);
  }

  /** @internal */
  async _leave(room) {
    // Triggers already sent are acked before the server sees the leave; reads may be dropped.
    this.#forget(room, notJoined(room.id), { isKept: ({ isTrigger, sent }) => isTrigger && sent });
    if (this.#link?.connectedAt == null) return; // not rejoined is left
    try {
      await this._request({ type: "leave", room: room.id }, { once: true });
    } catch (error) {
      if (!["NOT_JOINED", "DISCONNECTED"].includes(error.code)) throw error;
    }
  }
}

function wakeTarget(type) {
  return type === "visibilitychange" ? globalThis.document : globalThis;
}

function notJoined(roomId) {
  return new DialogueError("NOT_JOINED", `the room ${roomId} is not joined (any more)`);
}

// ----------------------------------------------------------------------------------------- room

/** A joined room. Made by `client.join()`; usable until `leave()` or until removed from it. */
class Room {
  #client;
  #named = new NamedListeners();
  #any = new Listeners();
  #onReset = new Listeners();
  #onPresence = new Listeners();
  #timelines = new Set();
  #presents = new Set();
  #typings = new Set();
  /** When one's own typing was last told, by event name. */
  #typingSaidAt = new Map();
  /** The newest seq that has come: what `markRead` means unless told otherwise. */
  #newestSeq = 0;

  /** What the room's name is, as the server tells it. */
  name = null;
  /** Event names, or "*". As last confirmed by the server. */
  subscriptions = "*";

  _onLeft = new Listeners();
  _options;
  _users = 0;
  _live = false;
  _closed = false;
  /** `{seq, epoch}`: every subscribed event through seq has been delivered. */
  _cursor = null;
  _firstJoin = deferred();
  /** The room's seq when the join that resumes was answered: nothing is missed through here. */
  _resumeThrough = 0;
  /** What the last join could not bring, as `{fromSeq, throughSeq}`; null under another epoch. */
  _missed = null;
  _joinTimer = null;
  _joinFailures = 0;
  _joinSends = 0;
  /** How often in a row its stream ended soon, over "sse". */
  _breaks = 0;
  _pauseTimer = null;

  constructor(client, id, options) {
    this.#client = client;
    this.id = id;
    this._options = options;
  }

  /** Whether events are coming in now: joined, and the connection stands. */
  get joined() {
    return this._live;
  }

  /** Live and resumed events of one name, in room order, each once. Never what a join brings. */
  on(event, fn) {
    return this.#named.add(event, fn);
  }

  /** The same for every name. */
  onAny(fn) {
    return this.#any.add(fn);
  }

  /** Events may have been missed and cannot be told: whatever was built from events is void. */
  onReset(fn) {
    return this.#onReset.add(fn);
  }

  /** `fn({joined, left, count})`: users, each counted once over all connections. */
  onPresence(fn) {
    return this.#onPresence.add(fn);
  }

  /** `fn(reason)`: removed from the room by the server. Not called for `leave()`. */
  onLeft(fn) {
    return this._onLeft.add(fn);
  }

  /**
   * Brings an event into the room.
   *
   * Resolves with `{seq, id, timestamp, duplicate}` when the server has recorded it; seq and id
   * are null for an ephemeral event. Over lost connections it is sent again with the same key, in
   * order, and recorded once.
   *
   * @throws {DialogueError} Not recorded, except after STORE_UNAVAILABLE, INTERNAL, TIMEOUT,
   *   DISCONNECTED and NOT_JOINED: then the outcome is unknown, and the same `key` makes another
   *   try safe.
   */
  async trigger(event, data, { meta, key = newKey() } = {}) {
    const ack = await this.#publish({ type: "trigger", room: this.id, event, data: data ?? null, key, meta });
    // Everyone takes a recorded event for the end of its sender's typing.
    if (ack.seq !== null) this.#typingSaidAt.clear();
    return ack;
  }

  async #publish(command) {
    const ok = await this.#client._request(command, { room: this });
    return {
      seq: ok.seq ?? null,
      id: ok.id ?? null,
      timestamp: ok.timestamp,
      duplicate: ok.duplicate === true,
    };
  }

  /**
   * Replaces the data of an event of one's own, or of one that the server lets one edit. Everyone
   * in the room is told by a `$edit`, whose ack this resolves with.
   *
   * @throws {DialogueError} As `trigger`; PERMISSION_DENIED, or INVALID_REQUEST if it is not there.
   */
  edit(seq, data, { key = newKey() } = {}) {
    return this.#publish({ type: "edit", room: this.id, seq, data: data ?? null, key });
  }

  /** Deletes an event, which stays as a tombstone without data; otherwise as `edit`. */
  delete(seq, { key = newKey() } = {}) {
    return this.#publish({ type: "delete", room: this.id, seq, key });
  }

  /** Adds names to the subscription; resolves when later events of these names will come. */
  subscribe(events) {
    return this.#changeSubscription("subscribe", namesFrom(events));
  }

  unsubscribe(events) {
    return this.#changeSubscription("unsubscribe", namesFrom(events));
  }

  subscribeAll() {
    return this.#changeSubscription("subscribe", "*");
  }

  async #changeSubscription(type, events) {
    await this.#client._request({ type, room: this.id, events }, { room: this });
  }

  /**
   * Marks the room's events through *seq* as read by this user, on all devices; it never goes back.
   *
   * Without *seq* through the newest event that has come. Resolves with how many are unread then.
   */
  async markRead(seq = this.#newestSeq) {
    const { unread } = await this.#client._request({ type: "mark_read", room: this.id, seq }, { room: this });
    return unread;
  }

  /** Who is in the room now: `{users, count}`. */
  async presence() {
    return presenceFrom(await this.#client._request({ type: "presence", room: this.id }, { room: this }));
  }

  /** Who is in the room, kept up to date over lost connections, too, until it is closed or left. */
  presentUsers() {
    const live = new PresentUsers({
      question: (take) => this.#client._question({ type: "presence", room: this.id }, { room: this, take }),
      onClose: () => this.#presents.delete(live),
    });
    if (this._closed) return live;
    this.#presents.add(live);
    live._ask();
    return live;
  }

  /**
   * Says that one is typing, or no more; call it at every stroke.
   *
   * It triggers the ephemeral *event* with `{is_typing}` when that changes, and every few seconds
   * while it goes on. A recorded event that is triggered here ends the typing by itself. While the
   * room is not joined (over a lost connection, or without WebSockets) nothing is said.
   */
  async setTyping(isTyping = true, { event = "typing", meta } = {}) {
    if (!this._live || this.#client.transport === "sse") {
      this.#typingSaidAt.delete(event);
      return;
    }
    const saidAt = this.#typingSaidAt.get(event);
    const now = performance.now();
    if (!isTyping) {
      if (!this.#typingSaidAt.delete(event)) return;
    } else if (saidAt !== undefined && now < saidAt + TYPING_REPEAT_MS) return;
    else this.#typingSaidAt.set(event, now);
    const data = { is_typing: Boolean(isTyping) };
    const command = { type: "trigger", room: this.id, event, data, key: newKey(), meta };
    try {
      const ok = await this.#client._request(command, { room: this, once: true });
      if (ok === null) this.#typingSaidAt.delete(event); // the connection was lost, and it with that
    } catch (error) {
      this.#typingSaidAt.delete(event);
      throw error;
    }
  }

  /**
   * Who else is typing, kept up to date until it is closed or the room is left.
   *
   * A user is dropped who says so, whose recorded event comes, who leaves the room, or who was
   * not heard of for some seconds.
   *
   * @param {object} [options]
   * @param {string} [options.event] The ephemeral event that tells of it; the subscription must
   *   have it. Default: "typing".
   * @param {number} [options.seconds] How long someone stays without another event, above 0.
   *   Default: 6.
   */
  typingUsers({ event = "typing", seconds = TYPING_SECONDS } = {}) {
    const live = new TypingUsers({
      event,
      seconds,
      userId: () => this.#client.userId,
      onClose: () => this.#typings.delete(live),
    });
    if (!this._closed) this.#typings.add(live);
    return live;
  }

  /**
   * Events *start* (included) to *end* (excluded) of one name, counted back from the newest.
   *
   * Newest first. Offsets shift with every new event; `timeline` and `page` do not.
   */
  async getHistory(event, start, end) {
    const wanted = end - start;
    if (!(wanted > 0)) return [];
    let answer = await this.#history({ event, start, end });
    const newestFirst = answer.events.reverse();
    // A page may end early; the offsets asked for are gone on with by its `next`.
    while (newestFirst.length < wanted && answer.next !== null) {
      if (isUnreadable(answer.gap)) break;
      answer = await this.#history({ event, cursor: answer.next, limit: wanted - newestFirst.length });
      newestFirst.push(...answer.events.reverse());
    }
    if (newestFirst.length < wanted && isUnreadable(answer.gap)) throw notReadable();
    return newestFirst.slice(0, wanted);
  }

  /**
   * One page of history, oldest first: `{events, hasMore, next, previous, gap}`.
   *
   * Without `before`, `after`, `around` (seqs) or `cursor`: the newest events. `next` and
   * `previous` are opaque; only `next: null` means the end, a page may be short or empty before.
   */
  page({ event, kind, before, after, around, cursor, limit } = {}) {
    const query = { event, kind, before, after, around, cursor, limit };
    if (before !== undefined || after !== undefined || around !== undefined) {
      query.epoch = this._cursor?.epoch;
    }
    return this.#history(query);
  }

  async #history(query) {
    const command = { type: "history", room: this.id, ...query };
    const most = this.#client._pageEvents;
    // More than the server gives is no mistake of the caller's: a page may be short anyway.
    if (command.limit > most) command.limit = most;
    if (command.end - command.start > most) command.end = command.start + most;
    const answer = await this.#client._request(command, { room: this });
    return {
      events: answer.events.map((event) => eventFrom(event, this.id)),
      hasMore: answer.has_more === true,
      next: answer.next ?? null,
      previous: answer.previous ?? null,
      gap: answer.gap ? gapFrom(answer.gap) : null,
    };
  }

  /**
   * An ordered list of history and live events that loads older and newer pages on demand.
   *
   * @param {string|string[]} [events] Which names; default: all. The subscription must have them.
   * @param {object} [options]
   * @param {number} [options.pageSize] Events asked for at a time. Default: 50.
   * @param {number} [options.maxEntries] Most recorded entries held, at least two pages. More only
   *   where what is dropped could not be found again, and for the moment that it takes to ask.
   *   Default: 1000.
   */
  timeline(events, { pageSize = 50, maxEntries = 1000 } = {}) {
    const names = events === undefined ? "*" : namesFrom(events);
    const event = names !== "*" && names.length === 1 ? names[0] : undefined;
    const source = {
      names: names === "*" ? null : names,
      roomId: this.id,
      pageSize,
      userId: () => this.#client.userId,
      cursor: () => this._cursor,
      fetch: (query) => this.page({ event, limit: pageSize, ...query }),
      publish: (event, data, options) => this.trigger(event, data, options),
      onClose: () => this.#timelines.delete(timeline),
    };
    const timeline = new Timeline(source, { maxEntries: Math.max(maxEntries, 2 * pageSize) });
    // In this order: an event that comes between the two is in the list, not lost.
    this.#timelines.add(timeline);
    timeline.loadOlder();
    return timeline;
  }

  /** Gives up one `join`; with the last one the room is left. */
  async leave() {
    if (this._closed) return;
    this._users -= 1;
    if (this._users <= 0) await this.#client._leave(this);
  }

  // ---- for the client

  _covers(events) {
    const names = namesFrom(events);
    if (this.subscriptions === "*") return true;
    return names !== "*" && names.every((name) => this.subscriptions.includes(name));
  }

  _joined(message) {
    this._live = true;
    this._joinFailures = 0;
    this.name = message.name ?? this.name;
    this.subscriptions = message.subscriptions ?? "*";
    if (message.recovered !== true) this.#newestSeq = message.seq;
    // A resumed cursor moves with its events; any other start is the server's word alone, for
    // under another epoch a smaller seq is the right one.
    const { seq, epoch } = message;
    const last = this._cursor;
    if (message.recovered === true) this._resumeThrough = seq;
    else {
      this._missed = last?.epoch === epoch && last.seq <= seq ? { fromSeq: last.seq + 1, throughSeq: seq } : null;
      this._cursor = { seq, epoch };
    }
    this._firstJoin.resolve();
  }

  _resume(events) {
    for (const event of events) this._receive(event);
    // Unless a handler has disconnected or left: then the rest has not been delivered.
    if (this._live) this.#advance(this._resumeThrough);
  }

  _reset() {
    for (const timeline of this.#timelines) timeline._reset(this._missed);
    this.#onReset.emit();
  }

  _receive(message) {
    if (!this._live) return;
    const event = eventFrom(message, this.id);
    if (event.seq !== null) {
      if (event.seq <= this._cursor.seq) return;
      this.#advance(event.seq);
      this.#newestSeq = event.seq;
    }
    for (const typing of this.#typings) typing._receive(event);
    for (const timeline of this.#timelines) timeline._receive(event);
    this.#named.emit(event.event, event);
    this.#any.emit(event);
  }

  #advance(seq) {
    if (seq > this._cursor.seq) this._cursor = { seq, epoch: this._cursor.epoch };
  }

  /** The answer to a change of the subscription: everything of it through `seq` came before. */
  _subscribed({ subscriptions, seq }) {
    this.subscriptions = subscriptions;
    // Without this a resume would replay what a wider subscription does not reach back to.
    if (this._live && seq != null) this.#advance(seq);
  }

  _renamed(name) {
    this.name = name ?? this.name;
  }

  _presenceChanged({ joined = [], left = [], count }) {
    if (!this._live) return;
    const change = Object.freeze({ joined: Object.freeze(joined), left: Object.freeze(left), count });
    for (const present of this.#presents) present._change(change);
    for (const typing of this.#typings) typing._stopped(left);
    this.#onPresence.emit(change);
  }

  get _watchesPresence() {
    if (!this._live) return false;
    return this.#onPresence.size > 0 || this.#presents.size > 0;
  }

  _askPresence() {
    for (const present of this.#presents) present._ask();
  }

  _close() {
    this._closed = true;
    for (const live of [...this.#presents, ...this.#typings]) {
      live._clear();
      live.close();
    }
    this._live = false;
    clearTimeout(this._joinTimer);
    clearTimeout(this._pauseTimer);
    this._pauseTimer = null;
  }
}

// --------------------------------------------------------------------------- presence and typing

/**
 * Who is in a room: `{users, count}`.
 *
 * The server's answer knows of every change told before it; a change told after it may tell what
 * it knew already. So changes are applied to a set.
 */
class PresentUsers extends Live {
  #question;
  /** At most MAX_PRESENT, or as many as the server has told at once. */
  #users = new Set();
  #count = 0;
  #told = 0;

  constructor({ question, onClose }) {
    super(onClose);
    this.#question = question((answer) => this.#answered(answer));
  }

  _value() {
    return { users: Object.freeze([...this.#users]), count: this.#count };
  }

  _ask() {
    this.#question.ask();
  }

  #answered(answer) {
    if (this._closed) return;
    this.#users = new Set(answer.users);
    this.#told = this.#users.size;
    this.#count = answer.count ?? this.#told;
    this._changed();
  }

  _change({ joined, left, count }) {
    for (const user of left) this.#users.delete(user);
    const most = Math.max(MAX_PRESENT, this.#told);
    for (const user of joined) {
      if (this.#users.size < most) this.#users.add(user);
    }
    this.#count = count;
    this._changed();
    // Of a room with more than are named at once so many have gone that others can be named.
    if (this.#users.size < count && this.#users.size < this.#told / 2) this._ask();
  }

  _clear() {
    this.#users.clear();
    this.#count = 0;
    this._changed();
  }

  _stop() {
    this.#question.stop();
  }
}

/**
 * Who else is typing, in the order in which they began.
 *
 * By convention the event's data is `{is_typing: true}` or `{is_typing: false}`; any other data
 * says that its sender is typing.
 */
class TypingUsers extends Live {
  #event;
  #userId;
  #milliseconds;
  /** Until when, by user. At most MAX_TYPISTS. */
  #until = new Map();
  #timer = null;

  constructor({ event, seconds, userId, onClose }) {
    if (!(seconds > 0)) throw new TypeError(`seconds is above 0, not ${seconds}`);
    super(onClose);
    this.#event = event;
    this.#userId = userId;
    this.#milliseconds = seconds * 1000;
  }

  _value() {
    return [...this.#until.keys()];
  }

  _receive({ event, seq, from, data }) {
    if (seq !== null) this._stopped([from]);
    else if (event !== this.#event || from === this.#userId()) return;
    else if (data?.is_typing === false) this._stopped([from]);
    else this.#heard(from);
  }

  #heard(user) {
    const isNew = !this.#until.has(user);
    if (isNew && this.#until.size >= MAX_TYPISTS) this.#until.delete(this.#until.keys().next().value);
    this.#until.set(user, performance.now() + this.#milliseconds);
    // A timer that is too early comes back, so an event need not move it.
    this.#timer ??= later(() => this.#expire(), this.#milliseconds);
    if (isNew) this._changed();
  }

  _stopped(users) {
    let hasChanged = false;
    for (const user of users) hasChanged = this.#until.delete(user) || hasChanged;
    if (this.#until.size === 0) this._stop();
    if (hasChanged) this._changed();
  }

  #expire() {
    this.#timer = null;
    const now = performance.now();
    this._stopped([...this.#until].filter(([, until]) => until <= now).map(([user]) => user));
    if (this.#until.size === 0) return;
    this.#timer = later(() => this.#expire(), Math.max(1, Math.min(...this.#until.values()) - now));
  }

  _clear() {
    this._stopped([...this.#until.keys()]);
  }

  _stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }
}

// ------------------------------------------------------------------------------------- timeline

/** Failed entries beyond this make room for new ones, the oldest first. */
const MAX_OPTIMISTIC = 200;

/** Edits remembered while a page is on its way; past that the page is asked for again. */
const MAX_CHANGES = 1000;

/** Events asked for at a time where entries that are held are read again. */
const RENEW_EVENTS = 200;

/**
 * Older pages, live events and events being sent, as one list without doubles or unnamed holes.
 *
 * What it holds is one run of entries in room order, with the holes in it named. Each of its two
 * ends is either the room's own or a place to read on from:
 *
 *   - The old end goes on with `#older`. Whatever is dropped there is dropped up to a *mark*: an
 *     entry below which a cursor of the server is known to go on. Rows of an archive have no seq to
 *     come back by, and an event that has one now may be such a row when it is asked for again; the
 *     server's cursors stay exact for both. Without a mark in reach more is held than asked for.
 *   - The new end is the room's live end, or (`hasNewer`) goes on above the seq of the newest entry.
 *     In the first case every live event is appended; in the second none is, for between it and the
 *     newest entry there is what was dropped.
 *
 * Why nothing is missed between a page and the live events: the timeline gets every live event from
 * before its request on. The server answers with what there is as of some seq P, and tells everyone
 * in the room of whatever comes after P. So each event is in the page, or beyond it in the direction
 * of reading, or comes live; one that is in two of these has one seq and enters once.
 *
 * It does no I/O of its own (`fetch` and `publish` are given), and at most one read at a time.
 */
class Timeline extends Live {
  #source;
  #names;
  #maxEntries;

  /** In room order, oldest first. See `#trimOldest` and `#trimNewest` for its bound. */
  #recorded = [];
  /** The seqs of `#recorded`. */
  #seqs = new Set();
  /** Not recorded yet, or refused, or not here yet; in the order sent. At most MAX_OPTIMISTIC. */
  #optimistic = [];
  /** The seqs of those that are acked, by key. */
  #acks = new Map();

  /** How to read on at the old end: `{}` (the newest page), a cursor or a seq. */
  #older = {};
  #hasOlder = true;
  /** A cursor that goes on at the new end; null: above the newest entry. Only of use with `#hasNewer`. */
  #newer = null;
  #hasNewer = false;
  #isFollowing = true;
  /** Whether the first page is here. */
  #isStarted = false;
  /** Whether rows without seq are held, or have been since it began. */
  #hasRows = false;

  /** How to read what lies directly below an entry, by uid. */
  #marks = new Map();
  /** A mark above every entry held so far: `{seq, query}`. */
  #nextMark = null;
  #sinceMark = 0;
  /** Whether a mark that was missing was found; else it is waited for one at the newest end. */
  #canMark = true;

  /**
   * Oldest first: `{fromSeq, throughSeq, reason, afterUid, query, shown}`. One with `afterUid` null
   * lies at the old end, where `loadOlder` tries again what can be tried.
   */
  #holes = [];
  /** The hole that the newest page after a rejoin ends. */
  #newestHole = null;
  /** `{after, through}`: entries here may have been changed while this client was away. */
  #stale = null;

  /**
   * Edits that came while a page is on its way, by target: the page may have been read before the
   * edit and arrive after it. Null: the page is void, or none is on its way. At most MAX_CHANGES.
   */
  #changes = null;
  /** Live events that came meanwhile and are not appended; null: more than `#maxEntries`. */
  #tail = [];
  /** What is being loaded, by what asked for it; one after the other. */
  #jobs = new Map();
  #lastJob = null;
  #generation = 0;
  #error = null;
  #rows = 0;

  constructor(source, { maxEntries }) {
    super(source.onClose);
    this.#source = source;
    this.#names = source.names && new Set(source.names);
    this.#maxEntries = maxEntries;
  }

  /** An entry that did not change is the same object in the next snapshot, too. */
  _value() {
    return {
      entries: Object.freeze([...this.#recorded, ...this.#optimistic]),
      hasOlder: this.#hasOlder,
      hasNewer: this.#hasNewer,
      loading: [...this.#jobs.keys()].some((key) => key !== "mark"), // which changes nothing that is shown
      error: this.#error,
      gaps: Object.freeze(this.#holes.map(shownHole)),
    };
  }

  /**
   * Loads the page before the oldest entry; while one is loading, returns that one's promise.
   *
   * Past `maxEntries` the newest entries are dropped for it: then `hasNewer` is true. Never
   * rejects: what went wrong is in the snapshot's `error`, or in `gaps` with the reason
   * `tier_unavailable`, and another call tries the same place again.
   */
  loadOlder() {
    if (!this.#hasOlder) return Promise.resolve();
    let isFirst = false;
    return this.#load("older", {
      query: () => (this.#hasOlder ? this.#older : null),
      take: (page) => {
        isFirst ||= !this.#isStarted;
        return this.#takeOlder(page);
      },
      // Nobody has scrolled up to the first page: what came live meanwhile is what is being read.
      end: () => (isFirst && this.#isFollowing ? this.#trimOldest() : this.#trimNewest()),
    });
  }

  /**
   * The same towards newer entries that were dropped, until the list has joined the live end.
   * Past `maxEntries` the oldest entries are dropped for it.
   */
  loadNewer() {
    if (!this.#hasNewer) return Promise.resolve();
    return this.#load("newer", {
      query: () => (this.#hasNewer ? (this.#newer ?? { after: this.#newest.seq }) : null),
      take: (page) => this.#takeNewer(page),
      end: () => this.#trimOldest(),
    });
  }

  /**
   * Begins again with the newest page; what is held stays until it is here. At the live end, if
   * there is no hole, there is nothing to do.
   */
  loadNewest() {
    if (!this.#isStarted) return this.loadOlder();
    if (!this.#hasNewer) {
      const rejoining = this.#jobs.get("rejoin");
      if (rejoining) return rejoining.promise;
      // What no seq leads to is found again from above only.
      if (this._closed || this.#holes.every((hole) => hole.afterUid === null)) return Promise.resolve();
      this.#leaveLiveEnd();
    }
    return this.#load("newest", {
      query: () => {
        if (this.#hasNewer) return {};
        return this.#recorded.length === 0 && this.#hasOlder ? this.#older : null;
      },
      take: (page) => (this.#hasNewer ? this.#takeNewest(page) : this.#takeOlder(page)),
    });
  }

  /**
   * Loads a page into a hole with the reason "missed", from its older side; the hole shrinks by it
   * until it is gone. Tries again where the reason is "tier_unavailable"; others stay.
   *
   * A gap of an earlier snapshot stands for what is left of it. Never rejects, as `loadOlder`.
   */
  fill(gap) {
    const hole = this.#holes.find(
      ({ fromSeq, throughSeq, reason, shown }) =>
        shown === gap ||
        (isFillable(reason) && isFillable(gap.reason) && fromSeq <= gap.throughSeq && throughSeq >= gap.fromSeq),
    );
    if (!hole || !isFillable(hole.reason)) return Promise.resolve();
    if (hole.afterUid === null) return this.loadOlder();
    if (this.#hasNewer && hole.afterUid === this.#newest.uid) return this.loadNewer();
    let below = null;
    return this.#load(hole, {
      query: () => (this.#holes.includes(hole) ? hole.query : null),
      take: (page) => {
        below = hole.afterUid;
        return this.#takeFilling(hole, page);
      },
      // At the end that is farther off, and not what has just come.
      end: () => {
        if (this.#indexAfter(below) < this.#recorded.length / 2) this.#trimNewest();
        else this.#trimOldest(below);
      },
    });
  }

  /**
   * Whether the reader is at the newest end (the default). At `maxEntries` a new event drops the
   * oldest entries if so; else it is not added (`hasNewer`), and what is being read stays.
   */
  setFollowing(isFollowing) {
    this.#isFollowing = Boolean(isFollowing);
    if (this.#isFollowing) this.#trimOldest();
  }

  /**
   * Sends an event and shows it at once, as `status: "sending"`, at the end.
   *
   * Returns the entry's uid, which stays when the recorded event takes its place. A refused one
   * becomes "failed" and carries its `error`. With `hasNewer` the recorded event is among the newer
   * ones that are not held; `loadNewest` goes there.
   *
   * @throws {DialogueError} PENDING_FULL when too many are being sent.
   */
  send(data, { event, meta } = {}) {
    const name = event ?? (this.#names?.size === 1 ? [...this.#names][0] : undefined);
    if (name === undefined) throw new TypeError("say which with { event }: this timeline has several");
    if (this.#optimistic.length >= MAX_OPTIMISTIC) {
      const failed = this.#optimistic.find((entry) => entry.status === "failed");
      if (!failed) throw new DialogueError("PENDING_FULL", `${MAX_OPTIMISTIC} events are being sent already`);
      this.#takeOptimistic(failed.key);
    }
    const key = newKey();
    const entry = Object.freeze({
      uid: `key:${key}`,
      status: "sending",
      roomId: this.#source.roomId,
      event: name,
      id: null,
      seq: null,
      from: this.#source.userId(),
      timestamp: Date.now(),
      data,
      meta: meta ?? NO_META,
      kind: "event",
      key,
    });
    this.#optimistic.push(entry);
    this._changed();
    this.#publish(entry);
    return entry.uid;
  }

  /** Sends a failed entry again, with its key: had it been recorded after all, it is not doubled. */
  retry(uid) {
    const index = this.#optimistic.findIndex((entry) => entry.uid === uid && entry.status === "failed");
    if (index < 0) return;
    const { error: _, ...rest } = this.#optimistic[index];
    this.#optimistic[index] = Object.freeze({ ...rest, status: "sending" });
    this._changed();
    this.#publish(this.#optimistic[index]);
  }

  /** Takes a failed entry off the list. */
  discard(uid) {
    const entry = this.#optimistic.find((one) => one.uid === uid && one.status === "failed");
    if (entry) this.#takeOptimistic(entry.key);
  }

  /** Closed it has no live events and no pages from now on; what is being sent goes on. */
  _stop() {
    this.#forgetJobs();
    this._changed();
  }

  // ---- sending

  #publish({ event, data, meta, key }) {
    const options = meta === NO_META ? { key } : { key, meta };
    this.#source.publish(event, data, options).then(
      (ack) => this.#acked(key, ack),
      (error) => this.#refused(key, error),
    );
  }

  /**
   * The ack tells the seq, and not that everything before it is here: the entry stays as it is, at
   * the end, until its event comes, live or in a page.
   */
  #acked(key, { seq }) {
    if (!this.#optimistic.some((entry) => entry.key === key)) return; // its event was here first
    // Ephemeral, and no part of a timeline; or here without its key.
    if (seq === null || this.#seqs.has(seq)) this.#takeOptimistic(key);
    else {
      this.#acks.set(key, seq);
      this.#dropPassed();
    }
  }

  /** What is acked and has gone by has its place in what is not held, unless that is being loaded. */
  #dropPassed() {
    if (!this.#isStarted || this.#jobs.has("newest") || this.#jobs.has("rejoin")) return;
    const through = this.#source.cursor()?.seq ?? 0;
    for (const [key, seq] of this.#acks) if (seq <= through) this.#takeOptimistic(key);
  }

  #refused(key, error) {
    const index = this.#optimistic.findIndex((entry) => entry.key === key);
    if (index < 0) return;
    this.#optimistic[index] = Object.freeze({ ...this.#optimistic[index], status: "failed", error });
    this._changed();
  }

  #takeOptimistic(key) {
    this.#acks.delete(key);
    const index = this.#optimistic.findIndex((entry) => entry.key === key);
    if (index < 0) return null;
    const [entry] = this.#optimistic.splice(index, 1);
    this._changed();
    return entry;
  }

  // ---- live

  /** @internal Live and resumed events. */
  _receive(event) {
    if (this._closed || event.seq === null) return; // ephemeral
    if (isChange(event)) this.#change(event);
    else if (this.#shows(event)) this.#takeLive(event);
    if (this.#acks.size) this.#dropPassed();
  }

  #takeLive(event) {
    if (this.#seqs.has(event.seq)) {
      if (event.key !== undefined) this.#takeOptimistic(event.key);
      return;
    }
    // Before the first page there is no seq to come back by that is known to be the room's own.
    const isFull = this.#isStarted && this.#recorded.length >= this.#maxEntries;
    if (isFull && !this.#isFollowing && this.#newest.seq !== null) this.#leaveLiveEnd();
    if (this.#hasNewer) {
      if (this.#tail && this.#tail.push(event) > this.#maxEntries) this.#tail = null;
      if (event.key !== undefined) this.#takeOptimistic(event.key);
      return;
    }
    this.#append(event);
    if (this.#nextMark && event.seq >= this.#nextMark.seq) this.#placeMark(this.#nextMark);
    this.#sinceMark += 1;
    this.#askMark();
    this.#trimOldest();
    this._changed();
  }

  #append(event) {
    this.#recorded.splice(this.#indexAbove(event.seq), 0, this.#entry(event));
    this.#seqs.add(event.seq);
  }

  #change(change) {
    const target = change.data?.target_seq;
    if (this.#changes) {
      this.#changes.set(target, change);
      if (this.#changes.size > MAX_CHANGES) this.#changes = null;
    }
    if (!this.#seqs.has(target)) return; // not held; its page will bring it changed
    const index = this.#indexOfSeq(target);
    const entry = applied(this.#recorded[index], change);
    if (entry === this.#recorded[index]) return;
    this.#recorded[index] = entry;
    this._changed();
  }

  /**
   * @internal Events were missed that nobody has told of.
   *
   * @param missed `{fromSeq, throughSeq}`, or null where the seqs held mean nothing any more.
   */
  _reset(missed) {
    if (this._closed) return;
    if (missed === null || !this.#isStarted || this.#recorded.length === 0) {
      this.#beginAnew();
      return;
    }
    this.#changes = null;
    this.#nextMark = null;
    const first = this.#recorded.find((entry) => entry.seq !== null);
    if (first) this.#stale = { after: first.seq - 1, through: missed.fromSeq - 1 };
    if (!this.#hasNewer && missed.fromSeq <= missed.throughSeq) this.#openHole(missed);
    this.#renewStale();
    this._changed();
  }

  #openHole({ fromSeq, throughSeq }) {
    const { uid, seq } = this.#newest;
    const hasRoom = this.#recorded.length + this.#source.pageSize <= this.#maxEntries;
    if (!this.#isFollowing && !hasRoom && seq !== null) {
      this.#leaveLiveEnd();
      return;
    }
    const last = this.#holes.at(-1);
    if (last && last === this.#newestHole && last.afterUid === uid) {
      last.throughSeq = throughSeq; // nothing has come between two absences
    } else {
      this.#newestHole = holeOf({ fromSeq, throughSeq, reason: "missed" }, uid, { after: fromSeq - 1 });
      this.#holes.push(this.#newestHole);
    }
    this.#newestHole.above = {};
    this.#load("rejoin", {
      query: () => (this.#isRejoining ? this.#newestHole.above : null),
      take: (page) => this.#takeRejoined(page),
      end: () => this.#trimOldest(),
    });
  }

  #beginAnew() {
    this.#forgetJobs();
    this.#clear();
    for (const key of [...this.#acks.keys()]) this.#takeOptimistic(key);
    this.#isStarted = false;
    this.#hasOlder = true;
    this.#older = {};
    this.#error = null;
    this.loadOlder();
    this._changed();
  }

  #forgetJobs() {
    this.#generation += 1;
    this.#jobs.clear();
    this.#changes = null;
  }

  #clear() {
    this.#recorded = [];
    this.#seqs.clear();
    this.#marks.clear();
    this.#nextMark = null;
    this.#sinceMark = 0;
    this.#canMark = true;
    this.#holes = [];
    this.#stale = null;
    this.#newer = null;
    this.#hasNewer = false;
    this.#hasRows = false;
  }

  // ---- loading

  #load(key, job) {
    if (this._closed) return Promise.resolve();
    const running = this.#jobs.get(key);
    if (running) return running.promise;
    this.#error = null;
    const promise = this.#start(key, job);
    this.#renewStale();
    this._changed();
    return promise;
  }

  /**
   * Runs a job behind those that run. `query` says what to ask for next, or null for nothing more;
   * `take` takes the page in and says whether that was enough: a page may hold nothing that this
   * timeline shows.
   */
  #start(key, job) {
    const running = {};
    const before = this.#jobs.size > 0 ? this.#lastJob : null;
    this.#jobs.set(key, running);
    running.promise = this.#lastJob = this.#run(key, job, before);
    return running.promise;
  }

  async #run(key, { query, take, end = () => {} }, before) {
    const generation = this.#generation;
    try {
      if (before) await before;
      while (generation === this.#generation) {
        const asked = query();
        if (asked === null) break;
        const changes = (this.#changes = new Map());
        this.#tail = [];
        const page = await this.#source.fetch(asked);
        if (generation !== this.#generation) return;
        if (this.#changes !== changes) continue; // what has happened meanwhile makes it void
        if (take(page)) break;
      }
    } catch (error) {
      if (generation !== this.#generation) return;
      // A mark that could not be asked for is asked for by the next event.
      if (key === "mark") this.#canMark = true;
      else this.#error = error;
    } finally {
      // No await between the last `take` and here: what comes next finds the job done.
      if (generation === this.#generation) {
        this.#changes = null;
        this.#jobs.delete(key);
        end();
        this.#dropPassed();
        this._changed();
      }
    }
  }

  #takeOlder(page) {
    if (!this.#isStarted) this.#dropBelow(page);
    const fresh = this.#fresh(page.events);
    for (const hole of this.#holes) {
      // What is gone for good has its place above what has been found below it.
      if (hole.afterUid === null && !isFillable(hole.reason) && fresh.length) hole.afterUid = fresh.at(-1).uid;
    }
    this.#holes = this.#holes.filter((hole) => hole.afterUid !== null || !isFillable(hole.reason));
    this.#recorded = merged(fresh, this.#recorded);
    this.#isStarted = true;
    this.#setOlder(page);
    return fresh.length > 0 || !this.#hasOlder || isUnreadable(page.gap);
  }

  #setOlder({ next, gap }) {
    this.#hasOlder = next !== null || isUnreadable(gap);
    if (next !== null) this.#older = { cursor: next };
    if (next !== null && this.#recorded.length) this.#marks.set(this.#recorded[0].uid, this.#older);
    if (!gap) return;
    // What has come live may still be held where the server has it no more.
    const below = (this.#recorded[0]?.seq ?? Infinity) - 1;
    const throughSeq = isUnreadable(gap) ? gap.throughSeq : Math.min(gap.throughSeq, below);
    if (gap.fromSeq <= throughSeq) this.#holes.unshift(holeOf({ ...gap, throughSeq }, null));
  }

  #takeNewer(page) {
    const { uid, seq } = this.#newest;
    this.#holes = this.#holes.filter((hole) => hole.afterUid !== uid);
    if (page.gap) this.#holes.push(holeOf(page.gap, uid));
    if (isUnreadable(page.gap)) return true;
    const fresh = this.#fresh(page.events.filter((event) => event.seq > seq));
    this.#mark(fresh[0], page);
    this.#recorded.push(...fresh);
    this.#newer = page.next === null ? null : { cursor: page.next };
    if (page.next === null) this.#joinLiveEnd();
    return fresh.length > 0 || !this.#hasNewer;
  }

  #takeNewest(page) {
    const held = new Map(this.#recorded.map((entry) => [entry.seq, entry]));
    this.#clear();
    this.#hasNewer = true;
    this.#recorded = this.#fresh(page.events, held);
    this.#setOlder(page);
    this.#joinLiveEnd();
    return this.#recorded.length > 0;
  }

  /** The page ends with the newest event as of its reading; what came since is in `#tail`. */
  #joinLiveEnd() {
    if (this.#tail === null) return; // or was too much: it is read, too
    this.#hasNewer = false;
    const through = this.#newest?.seq ?? 0; // before it the page is complete
    this.#recorded.push(...this.#fresh(this.#tail.filter((event) => event.seq > through)));
    this.#tail = [];
  }

  /** Not if the hole or what is above it was dropped meanwhile. */
  get #isRejoining() {
    return !this.#hasNewer && this.#holes.includes(this.#newestHole);
  }

  #takeRejoined(page) {
    const hole = this.#newestHole;
    if (!this.#isRejoining) return true;
    const { fromSeq, throughSeq } = hole;
    const { gap, next } = page;
    // A row without seq may be of the missed stretch or of before it: that it is here says nothing.
    const known = page.events.filter(({ seq }) => seq !== null);
    const oldest = known[0]?.seq ?? null;
    const at = this.#indexAfter(hole.afterUid);
    const fresh = this.#fresh(known.filter(({ seq }) => seq >= fromSeq));
    const above = merged(fresh, this.#recorded.slice(at));
    this.#recorded.splice(at, this.#recorded.length - at, ...above);
    if (oldest !== null && oldest < fromSeq) this.#narrow(hole, fromSeq, 0);
    else if (next === null && !isUnreadable(gap)) {
      // At the end of what can be read: what is named there is gone, the rest is here.
      if (gap) hole.reason = gap.reason;
      this.#narrow(hole, fromSeq, gap ? Math.min(gap.throughSeq, throughSeq) : 0);
    } else if (oldest !== null) {
      this.#narrow(hole, fromSeq, Math.min(oldest - 1, throughSeq));
      // Live events that came before it was read may lie below it.
      const isBelow = page.events[0] === known[0] && above[0]?.seq >= oldest;
      if (next !== null && isBelow) this.#marks.set(above[0].uid, { cursor: next });
    }
    hole.above = { cursor: next };
    const isEnough = above.length > 0 || next === null || gap !== null || oldest === null;
    if (isEnough) this.#newestHole = null;
    return isEnough;
  }

  #takeFilling(hole, page) {
    if (!this.#holes.includes(hole)) return true; // dropped meanwhile
    const { fromSeq, throughSeq, afterUid } = hole;
    const { gap, next } = page;
    if (isUnreadable(gap)) {
      hole.reason = gap.reason;
      return true;
    }
    hole.reason = "missed";
    if (gap && gap.throughSeq >= fromSeq) {
      const through = Math.min(gap.throughSeq, throughSeq);
      const gone = holeOf({ ...gap, fromSeq: Math.max(gap.fromSeq, fromSeq), throughSeq: through }, afterUid);
      this.#holes.splice(this.#holes.indexOf(hole), 0, gone);
    }
    const inside = page.events.filter(({ seq }) => seq !== null && seq >= fromSeq && seq <= throughSeq);
    const fresh = this.#fresh(inside);
    this.#recorded.splice(this.#indexAfter(afterUid), 0, ...fresh);
    this.#mark(fresh[0], page);
    const reached = Math.max(fromSeq - 1, gap?.throughSeq ?? 0, page.events.at(-1)?.seq ?? 0);
    hole.afterUid = fresh.at(-1)?.uid ?? afterUid;
    hole.query = { cursor: next };
    this.#narrow(hole, reached + 1, next === null ? 0 : throughSeq);
    return fresh.length > 0 || !this.#holes.includes(hole);
  }

  #narrow(hole, fromSeq, throughSeq) {
    hole.fromSeq = fromSeq;
    hole.throughSeq = throughSeq;
    if (fromSeq > throughSeq) this.#holes = this.#holes.filter((other) => other !== hole);
  }

  /**
   * Reads again what was held when events were missed: an edit may have been among them. One of
   * these jobs at a time; what fails goes on with the next load.
   */
  #renewStale() {
    if (this.#stale === null || this._closed || this.#jobs.has("renew")) return;
    this.#start("renew", {
      query: () => this.#stale && (this.#stale.query ?? { after: this.#stale.after, limit: RENEW_EVENTS }),
      take: (page) => this.#takeRenewed(page),
    });
  }

  #takeRenewed({ events, next, gap }) {
    if (isUnreadable(gap)) throw notReadable();
    for (const event of events) {
      if (event.seq === null || !this.#seqs.has(event.seq)) continue;
      const index = this.#indexOfSeq(event.seq);
      this.#recorded[index] = this.#renewed(this.#recorded[index], event);
    }
    const isDone = next === null || events.at(-1)?.seq >= this.#stale.through;
    if (isDone) this.#stale = null;
    else this.#stale.query = { cursor: next, limit: RENEW_EVENTS };
    return isDone;
  }

  // ---- bounds

  /** Drops the oldest entries past the bound, up to a mark that leaves not too few, and *kept*. */
  #trimOldest(kept = null) {
    const extra = this.#recorded.length - this.#maxEntries;
    if (extra <= 0) return;
    if (!this.#isStarted) {
      // The first page is yet to come. If it is on its way it may end before what is dropped here.
      this.#drop(0, extra);
      this.#changes = null;
      return;
    }
    if (this.#jobs.has("older")) return; // goes on from the oldest entry as it is
    const most = this.#recorded.length - Math.floor(this.#maxEntries / 4);
    const last = kept === null ? most : Math.min(most, this.#indexAfter(kept) - 1);
    if (extra > last) return;
    for (let count = extra; count <= last; count += 1) {
      const query = this.#marks.get(this.#recorded[count].uid);
      if (query === undefined) continue;
      this.#drop(0, count);
      this.#older = query;
      this.#hasOlder = true;
      return;
    }
    this.#askMark({ at: this.#recorded[extra + (this.#maxEntries >> 3)] });
  }

  /** What came live and is older than what the first page has by seq is in it without, or behind it. */
  #dropBelow({ events, next }) {
    const known = events.find(({ seq }) => seq !== null);
    if (!known || (next === null && known === events[0])) return;
    let count = 0;
    while (count < this.#recorded.length && this.#recorded[count].seq < known.seq) count += 1;
    if (count > 0) this.#drop(0, count);
  }

  /** Drops the newest entries past the bound; they come back above the seq of the newest that is left. */
  #trimNewest() {
    const extra = this.#recorded.length - this.#maxEntries;
    // What is a row without seq today was an event with one before it left the log: in a room with
    // such rows the place above a seq may be gone when it is asked for.
    if (extra <= 0 || this.#hasRows) return;
    this.#drop(this.#maxEntries, extra);
    this.#leaveLiveEnd();
  }

  /** Drops entries, and the holes below them; the hole above them, too, if they are the oldest. */
  #drop(at, count) {
    const dropped = this.#recorded.splice(at, count);
    const uids = new Set(at === 0 ? [null] : []);
    for (const { uid, seq } of dropped) {
      uids.add(uid);
      this.#seqs.delete(seq);
      this.#marks.delete(uid);
    }
    this.#holes = this.#holes.filter((hole) => !uids.has(hole.afterUid));
    this._changed();
  }

  #leaveLiveEnd() {
    // What lies above the newest entry is read by `loadNewer`, a hole there, too.
    const { uid } = this.#newest;
    this.#holes = this.#holes.filter((hole) => hole.afterUid !== uid);
    this.#newer = null;
    this.#nextMark = null;
    this.#sinceMark = 0;
    if (!this.#hasNewer) this.#tail = [];
    this.#hasNewer = true;
    this._changed();
  }

  /** A page read upwards knows the way down from its first event. */
  #mark(entry, { previous }) {
    if (entry) this.#marks.set(entry.uid, previous === null ? { before: entry.seq } : { cursor: previous });
  }

  /**
   * Asks for a mark: a page of one event, with the cursor to what is below it. Now and then while
   * live events come, once half full, of the newest; and where one is missing to drop up to.
   */
  #askMark({ at = null } = {}) {
    if (!this.#isStarted || this.#jobs.has("mark")) return;
    if (at === null) {
      const isDue = this.#sinceMark >= Math.max(1, this.#maxEntries >> 3);
      if (!isDue || this.#hasNewer || this.#recorded.length < this.#maxEntries / 2) return;
      this.#sinceMark = 0;
    } else if (!this.#canMark || at.seq === null) return;
    let isAsked = false;
    this.#canMark = at === null; // one that cannot be found is not asked for at once again
    this.#start("mark", {
      query: () => (isAsked ? null : { limit: 1, ...(at && { before: at.seq + 1 }) }),
      take: ({ events: [event], next }) => {
        isAsked = true;
        if (!event || event.seq === null) return true;
        const query = next === null ? { before: event.seq } : { cursor: next };
        if (this.#placeMark({ seq: event.seq, query })) this.#canMark = true;
        return true;
      },
      end: () => this.#trimOldest(),
    });
  }

  /** Puts it on the entry right above it; returns whether there is one. */
  #placeMark(mark) {
    const at = this.#indexAbove(mark.seq);
    const above = this.#recorded[at]?.seq ?? Infinity;
    const isMissed = ({ fromSeq, throughSeq }) => throughSeq >= mark.seq && fromSeq < above;
    this.#nextMark = null;
    // Nothing that is shown may lie between the two: dropped meanwhile, missed, or not held yet.
    const isDropped = at === 0 || (at === this.#recorded.length && this.#hasNewer);
    if (above > mark.seq && (isDropped || this.#holes.some(isMissed))) return false;
    if (at === this.#recorded.length) this.#nextMark = mark;
    else this.#marks.set(this.#recorded[at].uid, mark.query);
    return at < this.#recorded.length;
  }

  // ---- entries

  get #newest() {
    return this.#recorded.at(-1);
  }

  #shows(event) {
    return this.#names === null || this.#names.has(event.event);
  }

  /** The entries of events that are shown and not held, as they are after what has come meanwhile. */
  #fresh(events, held = null) {
    const fresh = [];
    for (const event of events) {
      if (isChange(event) || !this.#shows(event)) continue;
      if (event.seq === null) {
        this.#hasRows = true;
        fresh.push(this.#entry(event));
      } else if (!this.#seqs.has(event.seq)) {
        this.#seqs.add(event.seq);
        const entry = held?.get(event.seq);
        if (entry) fresh.push(this.#renewed(entry, event));
        else fresh.push(applied(this.#entry(event), this.#changes?.get(event.seq)));
      }
    }
    return fresh;
  }

  #entry(event) {
    // What was sent from here keeps the uid it was shown under.
    const own = event.key === undefined ? null : this.#takeOptimistic(event.key);
    const uid =
      own?.uid ??
      (event.seq === null ? `row:${++this.#rows}` : `${this.#source.cursor()?.epoch}:${event.seq}`);
    return Object.freeze({ ...event, uid, status: "recorded" });
  }

  #renewed(entry, event) {
    const isSame =
      entry.edited === event.edited &&
      entry.deleted === event.deleted &&
      entry.from === event.from &&
      (!event.edited || JSON.stringify(entry.data) === JSON.stringify(event.data));
    const { uid, status } = entry;
    const now = isSame ? entry : Object.freeze({ ...event, uid, status });
    return applied(now, this.#changes?.get(event.seq));
  }

  /** Of the first entry with that seq or above, as far as seqs reach down from the newest. */
  #indexAbove(seq) {
    let at = this.#recorded.length;
    while (at > 0 && this.#recorded[at - 1].seq !== null && this.#recorded[at - 1].seq >= seq) at -= 1;
    return at;
  }

  #indexAfter(uid) {
    return this.#recorded.findIndex((entry) => entry.uid === uid) + 1;
  }

  /** By bisection; rows without seq are passed over downwards. */
  #indexOfSeq(seq) {
    let low = 0;
    let high = this.#recorded.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      let at = middle;
      while (at > low && this.#recorded[at].seq === null) at -= 1;
      const found = this.#recorded[at].seq;
      if (found === seq) return at;
      if (found === null || found < seq) low = middle + 1;
      else high = at;
    }
    return -1;
  }
}

/** What may be there, and comes when it is asked for. */
function isFillable(reason) {
  return reason === "missed" || reason === "tier_unavailable";
}

function holeOf({ fromSeq, throughSeq, reason }, afterUid, query = null) {
  return { fromSeq, throughSeq, reason, afterUid, query, shown: null };
}

/** What a snapshot shows of it: the same object until that changes. */
function shownHole(hole) {
  const { shown } = hole;
  if (["fromSeq", "throughSeq", "reason", "afterUid"].some((name) => shown?.[name] !== hole[name])) {
    const { fromSeq, throughSeq, reason, afterUid } = hole;
    hole.shown = Object.freeze({ fromSeq, throughSeq, reason, afterUid });
  }
  return hole.shown;
}

/**
 * One list of two that are in room order. A row without seq has its place from its neighbours in
 * the page, so it goes in with them.
 */
function merged(fresh, held) {
  const all = [];
  let next = 0;
  for (const entry of fresh) {
    while (entry.seq !== null && next < held.length && held[next].seq !== null && held[next].seq < entry.seq) {
      all.push(held[next++]);
    }
    all.push(entry);
  }
  while (next < held.length) all.push(held[next++]);
  return all;
}

function isChange(event) {
  return event.event === "$edit" || event.event === "$delete";
}

/** The entry after a change; the same object if that changes nothing. */
function applied(entry, change) {
  // A deletion is final, and an edit without data is void: a later change says what became of the event.
  if (!change || (change.event === "$edit" && (entry.deleted || !("data" in (change.data ?? {}))))) return entry;
  if (change.event === "$delete") {
    const tombstone = { ...entry, data: null, meta: NO_META, deleted: true };
    if (change.data.erased) {
      tombstone.from = "$erased";
      delete tombstone.key;
    }
    return Object.freeze(tombstone);
  }
  return Object.freeze({ ...entry, data: change.data.data, edited: true });
}
