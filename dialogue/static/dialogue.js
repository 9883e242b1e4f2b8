/**
 * The browser client of Dialogue: rooms with live events, exact resume and history.
 *
 * One ES module without dependencies. It runs in browsers and, given a `WebSocket` constructor,
 * in Node. The file reads from the bottom layer up:
 *
 *   Link      one WebSocket: frames, silence, nothing of rooms
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

/** The server may or may not have recorded the trigger: only the same key makes a retry safe. */
const OUTCOME_UNKNOWN = new Set(["STORE_UNAVAILABLE", "INTERNAL", "TIMEOUT"]);

/** The server has not looked at it: nothing to do with what was asked, but with how much of it. */
const TOO_FAST = new Set(["RATE_LIMITED", "BACKPRESSURE"]);

/** Reasons for which a room that was joined before is asked for again, not given up. */
const JOIN_LATER = new Set([...OUTCOME_UNKNOWN, ...TOO_FAST]);

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

const WAKE_EVENTS = ["online", "focus", "pageshow", "visibilitychange"];

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

function deferred() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  // Whoever waits has a promise derived from this one; nobody waiting is not an error.
  parts.promise.catch(() => {});
  return parts;
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

function socketUrl(base) {
  const page = globalThis.document?.baseURI ?? globalThis.location?.href;
  let url;
  try {
    // "" means the page's folder; resolved as it stands it would name the page itself.
    url = new URL(base === "" ? "./" : base, page);
  } catch {
    throw new TypeError(`url ${JSON.stringify(base)} is not valid here; give an absolute one`);
  }
  if (url.protocol === "http:") url.protocol = "ws:";
  else if (url.protocol === "https:") url.protocol = "wss:";
  else if (url.protocol !== "ws:" && url.protocol !== "wss:") {
    throw new TypeError(`url must be http(s), ws(s) or relative to the page, not ${url.protocol}`);
  }
  url.pathname = `${url.pathname.replace(/\/+$/, "")}/ws`;
  url.hash = "";
  return url.href;
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

function namesFrom(events) {
  const list = typeof events === "string" ? [events] : [...events];
  return list.includes("*") ? "*" : list;
}

// ----------------------------------------------------------------------------------------- link

/**
 * One WebSocket from opening to its end.
 *
 * `onGone` is called at most once, for whatever ends it first: a close frame, an error, silence.
 * After `close()` nothing is called any more, so that an old connection cannot disturb its
 * successor. What has been received and not yet handled is dropped with the link; resuming
 * brings it again.
 */
class Link {
  #socket = null;
  #callbacks;
  #outgoing = [];
  /** Bounded by what arrives during one task, the longest that `hold` lasts. */
  #inbox = [];
  #next = 0;
  #held = false;
  #draining = false;
  #heardAt = Date.now();
  #silenceMs = 0;
  #silenceTimer = null;

  alive = true;
  commandsPerFrame = BATCH_COMMANDS;
  /** Set by the client when the server has said `connected`. */
  connectedAt = null;
  /** Joins sent on this link and not yet answered, by ref. At most one per room. */
  joins = new Map();
  /** Rooms that are still to be resumed on this link, in this order. */
  resumes = new Set();
  /** While it runs no further room is resumed. */
  resumePause = null;

  constructor(WebSocket, url, callbacks) {
    this.#callbacks = callbacks;
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.onopen = () => this.alive && callbacks.onOpen();
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

  /** Ends the link when nothing has been heard for *milliseconds*. */
  watchSilence(milliseconds) {
    clearTimeout(this.#silenceTimer);
    this.#silenceMs = milliseconds;
    if (milliseconds > 0) this.#watch(milliseconds);
  }

  #watch(delay) {
    this.#silenceTimer = setTimeout(() => {
      const left = this.#silenceMs - this.silentMs;
      if (left > 0) this.#watch(left);
      else this.fail(1006, "nothing heard");
    }, delay);
  }

  /** Wall clock, not `performance.now()`: that one may stand still while a laptop sleeps. */
  get silentMs() {
    return Math.max(0, Date.now() - this.#heardAt);
  }

  get silenceMs() {
    return this.#silenceMs;
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
    clearTimeout(this.#silenceTimer);
    clearTimeout(this.resumePause);
    this.#inbox = [];
    this.#next = 0;
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    try {
      socket.close(1000);
    } catch {
      // Already closed, or never opened: either way there is nothing left to close.
    }
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
  #random;
  #limits;

  #state = "offline";
  #wanted = false;
  #everConnected = false;
  #link = null;
  /** Counts attempts to open; what an older attempt still brings is void. */
  #attempt = 0;
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

  #wake = () => this.#wakeUp();

  userId = null;
  clientId = null;
  /** Most events in a page, as the server says. */
  _pageEvents = Infinity;

  constructor({
    url,
    auth,
    WebSocket = globalThis.WebSocket,
    random = Math.random,
    maxPendingTriggers = 1000,
    maxPendingRequests = 1000,
    maxTriggerAttempts = 6,
    requestTimeoutSeconds = 30,
    connectTimeoutSeconds = 15,
    backoffSeconds = 0.5,
    maxBackoffSeconds = 20,
  }) {
    if (typeof WebSocket !== "function") {
      throw new TypeError("no WebSocket here; pass one, for example { WebSocket } from the npm package ws");
    }
    this.#url = socketUrl(url);
    this.#auth = auth;
    this.#WebSocket = WebSocket;
    this.#random = random;
    this.#limits = {
      maxPendingTriggers,
      maxPendingRequests,
      maxTriggerAttempts,
      requestTimeoutMs: requestTimeoutSeconds * 1000,
      connectTimeoutMs: connectTimeoutSeconds * 1000,
      backoffMs: backoffSeconds * 1000,
      maxBackoffMs: maxBackoffSeconds * 1000,
    };
  }

  /** "connecting" | "connected" | "resuming" | "offline" (not connected and not trying). */
  get state() {
    return this.#state;
  }

  get connected() {
    return this.#state === "connected";
  }

  /** Data that the server sent to this client alone: `fn(data, event)`. */
  on(event, fn) {
    return this.#messages.add(event, fn);
  }

  /** What a join brought, newest first: `fn(roomId, events)`. Not called for resumed events. */
  onHistory(fn) {
    return this.#onHistory.add(fn);
  }

  /** `fn({clientId, userId, resumed})`, at every connection. */
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
      if (events !== undefined && !room._covers(events)) await room.subscribe(events);
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
    return rooms.map((room) => ({
      id: room.id,
      name: room.name,
      description: room.description ?? null,
      size: room.size ?? 0,
      maxSize: room.max_size ?? null,
      createdById: room.created_by_id ?? null,
    }));
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
    this.#attemptTimer = setTimeout(() => {
      // No link yet means that `auth` is what hangs.
      if (this.#link) this.#link.fail(1006, "no answer to connect");
      else this.#retryLater();
    }, this.#limits.connectTimeoutMs);
    let auth = this.#auth;
    try {
      if (typeof auth === "function") auth = await auth();
    } catch (cause) {
      if (!isCurrent()) return;
      this.#onError.emit(new DialogueError("AUTH_FAILED", "the auth function threw", { cause }));
      if (isCurrent()) this.#retryLater();
      return;
    }
    if (!isCurrent()) return;
    try {
      const link = new Link(this.#WebSocket, this.#url, {
        onOpen: () => {
          this.#connectRef = this.#nextRef++;
          const command = { type: "connect", ref: this.#connectRef };
          if (auth != null) command.auth = auth;
          link.send(JSON.stringify(command));
        },
        onMessage: (message) => this.#handle(message, link),
        onGone: (close) => this.#gone(link, close),
      });
      this.#link = link;
    } catch (cause) {
      // The platform refuses to open it, for example ws: from an https: page.
      this.#onError.emit(new DialogueError("DISCONNECTED", "the socket could not be opened", { cause }));
      if (isCurrent()) this.#retryLater();
    }
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
    this.#retryTimer = setTimeout(() => this.#open(), delay);
    this.#failures += 1;
    this.#setState(this.#everConnected ? "resuming" : "connecting");
  }

  #wakeUp() {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (this.#retryTimer !== null) {
      if (Date.now() < this.#openNotBefore) return;
      this.#failures = 0;
      this.#open();
    } else if (this.#link?.connectedAt != null && this.#link.silentMs > this.#link.silenceMs * 0.75) {
      // A ping is overdue: the machine slept, or the network under the socket is another one.
      this.#link.fail(1006, "nothing heard");
    }
  }

  #gone(link, { code, reason }) {
    if (link !== this.#link) return;
    this.#link = null;
    const stood = link.connectedAt !== null;
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
    if (stood) this.#onDisconnect.emit({ code, reason, willReconnect: true });
  }

  /** Rooms and requests forget the connection they were on. */
  #detach() {
    for (const room of this.#rooms.values()) {
      room._live = false;
      clearTimeout(room._joinTimer);
    }
    for (const request of [...this.#pending.values()]) {
      request.sent = false;
      clearTimeout(request.timer);
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
      default: // a later server may say more; what is not known is not needed
    }
  }

  #connected(message, link) {
    if (link.connectedAt !== null) return; // the answer to refreshed credentials
    clearTimeout(this.#attemptTimer);
    link.connectedAt = Date.now();
    this.#failures = Math.min(this.#failures, FAILURES_ONCE_CONNECTED);
    link.watchSilence((message.ping_seconds ?? 0) * 2000);
    this._pageEvents = message.limits?.page_events ?? Infinity;
    link.commandsPerFrame = Math.min(BATCH_COMMANDS, message.limits?.commands_per_frame ?? Infinity);
    this.clientId = message.client_id;
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
    this.#setState("connected");
    this.#onConnect.emit({ clientId: this.clientId, userId: this.userId, resumed });
  }

  #refused(message, link) {
    const error = errorFrom(message);
    if (message.ref === this.#connectRef && link.connectedAt === null) {
      if (error.code === "UNAUTHENTICATED") {
        link.close(); // the close code that says the same may get lost in a proxy
        this.#gone(link, { code: CLOSE_UNAUTHENTICATED, reason: error.message });
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
    if (!request) this.#onError.emit(error);
    else if (request.isTrigger && OUTCOME_UNKNOWN.has(error.code)) this.#triggerAgain(request, error);
    // Whether an earlier try was taken it does not say, so that only another try tells.
    else if (request.isTrigger && request.sends > 1 && TOO_FAST.has(error.code)) {
      this.#triggerAgain(request, error);
    } else this.#reject(request, error);
  }

  // ---- requests

  /**
   * Sends a command and resolves with its answer. The command must be one that may be sent twice
   * (a read, a change of subscription, a trigger with its key) or `once`: then a lost connection
   * resolves it with null.
   *
   * @internal
   */
  _request(command, { room = null, once = false } = {}) {
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
        once,
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
    request.timer = setTimeout(() => {
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
    request.resolve(message);
  }

  #triggerAgain(request, error) {
    const { room } = request;
    clearTimeout(request.timer);
    const tries = TOO_FAST.has(error.code) ? ++request.refusals : ++request.attempts;
    if (room._closed || request.attempts >= this.#limits.maxTriggerAttempts) {
      this.#reject(request, error);
      return;
    }
    request.sent = false;
    const delay = Math.max(this.#backoffMs(tries), (error.retryAfterSeconds ?? 0) * 1000);
    // One pause for the room, not one per trigger: those refused together go again in order.
    room._pauseTimer ??= setTimeout(() => {
      room._pauseTimer = null;
      this.#flush(room);
    }, delay);
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
    room._joinTimer = setTimeout(() => {
      if (link.joins.delete(ref)) this.#joinRefused(room, new DialogueError("TIMEOUT", "no answer to join"));
    }, this.#limits.requestTimeoutMs);
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
    const delay = Math.max(
      this.#backoffMs(this.#resumeRefusals++),
      (error.retryAfterSeconds ?? 0) * 1000,
    );
    link.resumePause = setTimeout(() => {
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
      if (message.ref !== undefined && message.ref !== null) return; // answered after its timeout
      // The server has joined this client. A room that we are joining or resuming ourselves stays
      // as it is: taking this cursor would skip what our own join is about to bring.
      room = this.#rooms.get(message.room);
      if (room) {
        if (room._live) room.subscriptions = message.subscriptions;
        return;
      }
      room = new Room(this, message.room, {});
      this.#rooms.set(room.id, room);
      room._joined(message);
      this.#onJoined.emit(room);
      this._history(room, message.events);
      return;
    }
    const isFirst = room._cursor === null;
    room._joined(message);
    // Before any handler runs: a trigger made in one must not overtake those that wait.
    this.#flush(room);
    if (isFirst) link.hold();
    if (message.recovered === true) room._resume(message.events);
    else {
      if (!isFirst) room._reset();
      this._history(room, message.events);
    }
  }

  _history(room, events) {
    this.#onHistory.emit(room.id, events.map((event) => eventFrom(event, room.id)).reverse());
  }

  #joinRefused(room, error) {
    clearTimeout(room._joinTimer);
    const isTooFast = TOO_FAST.has(error.code);
    if (room._closed) {
      // Nobody waits for it.
    } else if (room._cursor === null && !(isTooFast && room._joinSends > 1)) {
      this.#forget(room, error);
    } else if (JOIN_LATER.has(error.code)) {
      const link = this.#link;
      if (isTooFast) this.#pauseResumes(error);
      const delay = Math.max(this.#backoffMs(room._joinFailures++), (error.retryAfterSeconds ?? 0) * 1000);
      room._joinTimer = setTimeout(() => {
        if (link !== this.#link || room._closed) return;
        link.resumes.add(room);
        this.#resumeMore();
      }, delay);
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

  #forget(room, error) {
    if (this.#rooms.get(room.id) === room) this.#rooms.delete(room.id);
    room._close();
    for (const request of [...this.#pending.values()]) {
      if (request.room === room) this.#reject(request, error);
    }
    room._firstJoin.reject(error);
  }

  /** @internal */
  async _leave(room) {
    this.#rooms.delete(room.id);
    room._close();
    room._firstJoin.reject(notJoined(room.id));
    for (const request of [...this.#pending.values()]) {
      // Triggers already sent are acked before the server sees the leave; reads may be dropped.
      if (request.room === room && !(request.isTrigger && request.sent)) {
        this.#reject(request, notJoined(room.id));
      }
    }
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
  #timelines = new Set();

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
    const command = { type: "trigger", room: this.id, event, data: data ?? null, key };
    if (meta !== undefined) command.meta = meta;
    return this.#publish(command);
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
    const ok = await this.#client._request({ type, room: this.id, events }, { room: this });
    if (ok.subscriptions !== undefined) this.subscriptions = ok.subscriptions;
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
      if (answer.gap?.reason === "tier_unavailable") break;
      answer = await this.#history({ event, cursor: answer.next, limit: wanted - newestFirst.length });
      newestFirst.push(...answer.events.reverse());
    }
    if (newestFirst.length < wanted && answer.gap?.reason === "tier_unavailable") {
      throw new DialogueError("STORE_UNAVAILABLE", "a part of the history cannot be read now");
    }
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
    if (!this._closed) this.#advance(this._resumeThrough);
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
    }
    for (const timeline of this.#timelines) timeline._receive(event);
    this.#named.emit(event.event, event);
    this.#any.emit(event);
  }

  #advance(seq) {
    if (seq > this._cursor.seq) this._cursor = { seq, epoch: this._cursor.epoch };
  }

  _close() {
    this._closed = true;
    this._live = false;
    clearTimeout(this._joinTimer);
    clearTimeout(this._pauseTimer);
    this._pauseTimer = null;
  }
}

// ------------------------------------------------------------------------------------- timeline

/** Failed entries beyond this make room for new ones, the oldest first. */
const MAX_OPTIMISTIC = 200;

/** Edits remembered while a page is on its way; past that the page is asked for again. */
const MAX_CHANGES = 1000;

/** Events asked for at a time where entries that are held are read again. */
const RENEW_EVENTS = 200;

/** Jobs that no caller waits for: `loading` does not speak of them. */
const QUIET_JOBS = new Set(["mark", "renew"]);

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
class Timeline {
  #source;
  #names;
  #maxEntries;
  #listeners = new Listeners();

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
  #closed = false;

  #snapshot = null;
  #isNotifying = false;

  constructor(source, { maxEntries }) {
    this.#source = source;
    this.#names = source.names && new Set(source.names);
    this.#maxEntries = maxEntries;
  }

  /** `fn()` is called after changes, once per microtask however many there were. */
  subscribe(fn) {
    return this.#listeners.add(() => fn());
  }

  /**
   * Frozen; the same object until something changes. An entry that did not change is the same
   * object in the next snapshot, too.
   */
  getSnapshot() {
    this.#snapshot ??= Object.freeze({
      entries: Object.freeze([...this.#recorded, ...this.#optimistic]),
      hasOlder: this.#hasOlder,
      hasNewer: this.#hasNewer,
      loading: [...this.#jobs.keys()].some((key) => !QUIET_JOBS.has(key)),
      error: this.#error,
      gaps: Object.freeze(this.#holes.map(shownHole)),
    });
    return this.#snapshot;
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
    return this.#load("older", {
      query: () => (this.#hasOlder ? this.#older : null),
      take: (page) => this.#takeOlder(page),
      end: () => this.#trimNewest(),
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
      if (this.#closed || this.#holes.every((hole) => hole.afterUid === null)) return Promise.resolve();
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
    this.#changed();
    this.#publish(entry);
    return entry.uid;
  }

  /** Sends a failed entry again, with its key: had it been recorded after all, it is not doubled. */
  retry(uid) {
    const index = this.#optimistic.findIndex((entry) => entry.uid === uid && entry.status === "failed");
    if (index < 0) return;
    const { error: _, ...rest } = this.#optimistic[index];
    this.#optimistic[index] = Object.freeze({ ...rest, status: "sending" });
    this.#changed();
    this.#publish(this.#optimistic[index]);
  }

  /** Takes a failed entry off the list. */
  discard(uid) {
    const entry = this.#optimistic.find((one) => one.uid === uid && one.status === "failed");
    if (entry) this.#takeOptimistic(entry.key);
  }

  /** Detaches it from the room: no live events and no pages from now on. */
  close() {
    this.#closed = true;
    this.#forgetJobs();
    this.#source.onClose();
    this.#changed();
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
    this.#changed();
  }

  #takeOptimistic(key) {
    this.#acks.delete(key);
    const index = this.#optimistic.findIndex((entry) => entry.key === key);
    if (index < 0) return null;
    const [entry] = this.#optimistic.splice(index, 1);
    this.#changed();
    return entry;
  }

  // ---- live

  /** @internal Live and resumed events. */
  _receive(event) {
    if (this.#closed || event.seq === null) return; // ephemeral
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
    this.#changed();
  }

  #append(event) {
    const entry = this.#entry(event);
    let at = this.#recorded.length;
    while (at > 0 && this.#recorded[at - 1].seq !== null && this.#recorded[at - 1].seq > event.seq) at -= 1;
    this.#recorded.splice(at, 0, entry);
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
    this.#changed();
  }

  /**
   * @internal Events were missed that nobody has told of.
   *
   * @param missed `{fromSeq, throughSeq}`, or null where the seqs held mean nothing any more.
   */
  _reset(missed) {
    if (this.#closed) return;
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
    this.#changed();
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
      last.shown = null;
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
    this.#changed();
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
    if (this.#closed) return Promise.resolve();
    const running = this.#jobs.get(key);
    if (running) return running.promise;
    this.#error = null;
    const promise = this.#start(key, job);
    this.#renewStale();
    this.#changed();
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
      if (generation === this.#generation && key !== "mark") this.#error = error;
    } finally {
      // No await between the last `take` and here: what comes next finds the job done.
      if (generation === this.#generation) {
        this.#changes = null;
        this.#jobs.delete(key);
        end();
        this.#dropPassed();
        this.#changed();
      }
    }
  }

  #takeOlder(page) {
    if (!this.#isStarted) this.#dropBelow(page);
    const fresh = this.#fresh(page.events);
    const isUnavailable = page.gap?.reason === "tier_unavailable";
    for (const hole of this.#holes) {
      // What is gone for good has its place above what has been found below it.
      if (hole.afterUid === null && !isFillable(hole.reason) && fresh.length) placeHole(hole, fresh.at(-1).uid);
    }
    this.#holes = this.#holes.filter((hole) => hole.afterUid !== null || !isFillable(hole.reason));
    this.#recorded = merged(fresh, this.#recorded);
    this.#isStarted = true;
    this.#setOlder(page);
    return fresh.length > 0 || !this.#hasOlder || isUnavailable;
  }

  #setOlder({ next, gap }) {
    const isUnavailable = gap?.reason === "tier_unavailable";
    this.#hasOlder = next !== null || isUnavailable;
    if (next !== null) this.#older = { cursor: next };
    if (next !== null && this.#recorded.length) this.#marks.set(this.#recorded[0].uid, this.#older);
    if (!gap) return;
    // What has come live may still be held where the server has it no more.
    const below = (this.#recorded[0]?.seq ?? Infinity) - 1;
    const throughSeq = isUnavailable ? gap.throughSeq : Math.min(gap.throughSeq, below);
    if (gap.fromSeq <= throughSeq) this.#holes.unshift(holeOf({ ...gap, throughSeq }, null));
  }

  #takeNewer(page) {
    const { uid, seq } = this.#newest;
    this.#holes = this.#holes.filter((hole) => hole.afterUid !== uid);
    if (page.gap) this.#holes.push(holeOf(page.gap, uid));
    if (page.gap?.reason === "tier_unavailable") return true;
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
    else if (next === null && gap?.reason !== "tier_unavailable") {
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
    if (gap?.reason === "tier_unavailable") {
      hole.reason = gap.reason;
      hole.shown = null;
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
    hole.shown = null;
    if (fromSeq > throughSeq) this.#holes = this.#holes.filter((other) => other !== hole);
  }

  /**
   * Reads again what was held when events were missed: an edit may have been among them. One of
   * these jobs at a time; what fails goes on with the next load.
   */
  #renewStale() {
    if (this.#stale === null || this.#closed || this.#jobs.has("renew")) return;
    this.#start("renew", {
      query: () => this.#stale && (this.#stale.query ?? { after: this.#stale.after, limit: RENEW_EVENTS }),
      take: (page) => this.#takeRenewed(page),
    });
  }

  #takeRenewed({ events, next, gap }) {
    if (gap?.reason === "tier_unavailable") {
      throw new DialogueError("STORE_UNAVAILABLE", "a part of the history cannot be read now");
    }
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
      this.#dropOldest(extra);
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
      this.#dropOldest(count);
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
    if (count > 0) this.#dropOldest(count);
  }

  #dropOldest(count) {
    const dropped = this.#recorded.splice(0, count);
    this.#forget(dropped);
    const uids = new Set(dropped.map((entry) => entry.uid));
    this.#holes = this.#holes.filter((hole) => hole.afterUid !== null && !uids.has(hole.afterUid));
    this.#changed();
  }

  /** Drops the newest entries past the bound; they come back above the seq of the newest that is left. */
  #trimNewest() {
    const extra = this.#recorded.length - this.#maxEntries;
    // What is a row without seq today was an event with one before it left the log: in a room with
    // such rows the place above a seq may be gone when it is asked for.
    if (extra <= 0 || this.#hasRows) return;
    const dropped = this.#recorded.splice(this.#maxEntries, extra);
    this.#forget(dropped);
    const uids = new Set(dropped.map((entry) => entry.uid));
    this.#holes = this.#holes.filter((hole) => !uids.has(hole.afterUid));
    this.#leaveLiveEnd();
  }

  #forget(entries) {
    for (const { uid, seq } of entries) {
      this.#seqs.delete(seq);
      this.#marks.delete(uid);
    }
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
    this.#changed();
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
    let at = this.#recorded.length;
    while (at > 0 && this.#recorded[at - 1].seq !== null && this.#recorded[at - 1].seq >= mark.seq) at -= 1;
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

  #changed() {
    this.#snapshot = null;
    if (this.#isNotifying) return;
    this.#isNotifying = true;
    queueMicrotask(() => {
      this.#isNotifying = false;
      this.#listeners.emit();
    });
  }
}

/** What may be there, and comes when it is asked for. */
function isFillable(reason) {
  return reason === "missed" || reason === "tier_unavailable";
}

function holeOf({ fromSeq, throughSeq, reason }, afterUid, query = null) {
  return { fromSeq, throughSeq, reason, afterUid, query, shown: null };
}

function placeHole(hole, afterUid) {
  hole.afterUid = afterUid;
  hole.shown = null;
}

function shownHole(hole) {
  const { fromSeq, throughSeq, reason, afterUid } = hole;
  hole.shown ??= Object.freeze({ fromSeq, throughSeq, reason, afterUid });
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
