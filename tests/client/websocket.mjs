// A WebSocket for Node versions that have none, with the part of the browser's interface that a client needs:
// text frames over ws: URLs, no extensions. For tests, so it is strict: a server that breaks RFC 6455 is cut off.

import { createHash, randomBytes } from "node:crypto";
import { connect } from "node:net";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const TEXT = 1;
const CLOSE = 8;
const PING = 9;
const PONG = 10;

const MAX_HEAD_BYTES = 16 * 1024;
const MAX_MESSAGE_BYTES = 64 * 1024 * 1024;

/** How long the other side's close frame is waited for. */
const CLOSE_MS = 2000;

class Broken extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export class WebSocket {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;

  onopen = null;
  onmessage = null;
  onclose = null;
  onerror = null;
  readyState = WebSocket.CONNECTING;

  #socket;
  #accept;
  #unread = Buffer.alloc(0);
  #fragments = null;
  #fragmentsBytes = 0;
  #hasSentClose = false;
  #end = { code: 1006, reason: "", wasClean: false };
  #closeTimer = null;

  /** @param {{headers?: Record<string, string>}} [options] Headers for the handshake, `Origin` for one. */
  constructor(url, { headers = {} } = {}) {
    const { protocol, hostname, port, host, pathname, search } = new URL(url);
    if (protocol !== "ws:") throw new SyntaxError(`only ws: URLs here, not ${protocol}`);
    this.url = url;
    const key = randomBytes(16).toString("base64");
    this.#accept = createHash("sha1").update(key + GUID).digest("base64");
    const lines = [`GET ${pathname}${search} HTTP/1.1`];
    const all = {
      Host: host,
      Upgrade: "websocket",
      Connection: "Upgrade",
      "Sec-WebSocket-Key": key,
      "Sec-WebSocket-Version": "13",
      ...headers,
    };
    for (const [name, value] of Object.entries(all)) lines.push(`${name}: ${value}`);
    this.#socket = connect({ host: hostname.replace(/^\[|\]$/g, ""), port: Number(port || 80), noDelay: true });
    this.#socket.on("connect", () => this.#socket.write(`${lines.join("\r\n")}\r\n\r\n`));
    this.#socket.on("data", (chunk) => this.#received(chunk));
    this.#socket.on("error", (error) => this.onerror?.({ type: "error", error }));
    this.#socket.on("close", () => this.#closed());
  }

  get bufferedAmount() {
    return this.#socket.writableLength;
  }

  send(text) {
    if (typeof text !== "string") throw new TypeError("only text here");
    if (this.readyState === WebSocket.CONNECTING) throw new Error("not open yet");
    if (this.readyState === WebSocket.OPEN) this.#write(TEXT, Buffer.from(text));
  }

  close(code = 1000, reason = "") {
    if (this.readyState >= WebSocket.CLOSING) return;
    if (this.readyState === WebSocket.CONNECTING) {
      this.readyState = WebSocket.CLOSING;
      this.#socket.destroy();
      return;
    }
    this.readyState = WebSocket.CLOSING;
    this.#writeClose(code, reason);
  }

  /** Loses the connection without a close frame. */
  terminate() {
    this.#socket.destroy();
  }

  // ---- what comes in

  #received(chunk) {
    if (this.readyState === WebSocket.CLOSED) return;
    this.#unread = Buffer.concat([this.#unread, chunk]);
    try {
      if (this.#accept !== null && !this.#readHead()) return;
      while (this.#readFrame());
    } catch (error) {
      if (!(error instanceof Broken)) throw error; // of a handler: a test that must fail
      this.onerror?.({ type: "error", error });
      if (this.#accept === null) this.#writeClose(error.code, error.message);
      this.#end = { code: error.code, reason: error.message, wasClean: false };
      this.#socket.destroy();
    }
  }

  #readHead() {
    const end = this.#unread.indexOf("\r\n\r\n");
    if (end < 0) {
      if (this.#unread.length > MAX_HEAD_BYTES) throw new Broken(1006, "a head that does not end");
      return false;
    }
    const [status, ...lines] = this.#unread.subarray(0, end).toString("latin1").split("\r\n");
    const headers = new Map();
    for (const line of lines) {
      const at = line.indexOf(":");
      headers.set(line.slice(0, at).toLowerCase(), line.slice(at + 1).trim());
    }
    if (!/^HTTP\/1\.1 101\b/.test(status)) throw new Broken(1006, `the upgrade was answered with ${status}`);
    if (headers.get("sec-websocket-accept") !== this.#accept) throw new Broken(1006, "a wrong accept");
    if (headers.has("sec-websocket-extensions")) throw new Broken(1006, "an extension nobody asked for");
    this.#accept = null;
    this.#unread = this.#unread.subarray(end + 4);
    this.readyState = WebSocket.OPEN;
    this.onopen?.({ type: "open" });
    return true;
  }

  /** Takes one frame off what was received; false if it is not all there. */
  #readFrame() {
    const bytes = this.#unread;
    if (bytes.length < 2 || this.readyState === WebSocket.CLOSED) return false;
    const isFinal = (bytes[0] & 0x80) !== 0;
    const opcode = bytes[0] & 0x0f;
    if (bytes[0] & 0x70) throw new Broken(1002, "reserved bits");
    if (bytes[1] & 0x80) throw new Broken(1002, "a masked frame from a server");
    let length = bytes[1];
    let at = 2;
    if (length === 126) {
      if (bytes.length < 4) return false;
      length = bytes.readUInt16BE(2);
      at = 4;
    } else if (length === 127) {
      if (bytes.length < 10) return false;
      length = Number(bytes.readBigUInt64BE(2));
      at = 10;
    }
    if (length > MAX_MESSAGE_BYTES) throw new Broken(1009, "too big");
    if (bytes.length < at + length) return false;
    const payload = bytes.subarray(at, at + length);
    this.#unread = bytes.subarray(at + length);
    this.#frame(opcode, isFinal, payload);
    return true;
  }

  #frame(opcode, isFinal, payload) {
    if (opcode >= CLOSE && (!isFinal || payload.length > 125)) throw new Broken(1002, "a control frame too big");
    if (opcode === PING) this.#write(PONG, payload);
    else if (opcode === PONG) return;
    else if (opcode === CLOSE) this.#closing(payload);
    else if (opcode === TEXT || opcode === 0) this.#data(opcode, isFinal, payload);
    else throw new Broken(1002, `opcode ${opcode}`);
  }

  #data(opcode, isFinal, payload) {
    if ((opcode === 0) !== (this.#fragments !== null)) throw new Broken(1002, "fragments out of order");
    this.#fragments ??= [];
    this.#fragments.push(payload);
    this.#fragmentsBytes += payload.length;
    if (this.#fragmentsBytes > MAX_MESSAGE_BYTES) throw new Broken(1009, "too big");
    if (!isFinal) return;
    const bytes = Buffer.concat(this.#fragments);
    this.#fragments = null;
    this.#fragmentsBytes = 0;
    let data;
    try {
      data = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      throw new Broken(1007, "not UTF-8");
    }
    if (this.readyState === WebSocket.OPEN) this.onmessage?.({ type: "message", data });
  }

  #closing(payload) {
    const code = payload.length >= 2 ? payload.readUInt16BE(0) : 1005;
    this.#end = { code, reason: payload.subarray(2).toString(), wasClean: true };
    this.readyState = WebSocket.CLOSING;
    this.#writeClose(code === 1005 ? 1000 : code, "");
    this.#socket.end();
  }

  #closed() {
    clearTimeout(this.#closeTimer);
    if (this.readyState === WebSocket.CLOSED) return;
    this.readyState = WebSocket.CLOSED;
    this.onclose?.({ type: "close", ...this.#end });
  }

  // ---- what goes out

  #writeClose(code, reason) {
    if (this.#hasSentClose) return;
    this.#hasSentClose = true;
    const payload = Buffer.alloc(2 + Buffer.byteLength(reason));
    payload.writeUInt16BE(code, 0);
    payload.write(reason, 2);
    this.#write(CLOSE, payload);
    this.#closeTimer = setTimeout(() => this.#socket.destroy(), CLOSE_MS);
  }

  #write(opcode, payload) {
    const { length } = payload;
    const sizeBytes = length < 126 ? 0 : length < 65536 ? 2 : 8;
    const frame = Buffer.alloc(2 + sizeBytes + 4 + length);
    frame[0] = 0x80 | opcode;
    frame[1] = 0x80 | (sizeBytes === 0 ? length : sizeBytes === 2 ? 126 : 127);
    if (sizeBytes === 2) frame.writeUInt16BE(length, 2);
    if (sizeBytes === 8) frame.writeBigUInt64BE(BigInt(length), 2);
    const at = 2 + sizeBytes;
    const mask = randomBytes(4);
    mask.copy(frame, at);
    for (let index = 0; index < length; index += 1) frame[at + 4 + index] = payload[index] ^ mask[index & 3];
    if (!this.#socket.destroyed) this.#socket.write(frame);
  }
}
