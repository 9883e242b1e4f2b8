// The tests' own WebSocket, against bytes as RFC 6455 has them. Run by test_dialogue_js.py.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";
import { test } from "node:test";

import { WebSocket } from "./websocket.mjs";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** A server that upgrades and leaves the rest to the test; `received` gives its next frame, unmasked. */
async function upgraded(t) {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  const events = [];
  const socket = new WebSocket(`ws://127.0.0.1:${server.address().port}/ws?a=b`, { headers: { Origin: "http://x" } });
  socket.onopen = () => events.push("open");
  socket.onmessage = ({ data }) => events.push(data);
  const closed = new Promise((resolve) => (socket.onclose = ({ code, reason }) => resolve([code, reason])));
  const [peer] = await once(server, "connection");
  t.after(() => peer.destroy());
  peer.on("error", () => {});
  let bytes = Buffer.alloc(0);
  const more = async () => void (bytes = Buffer.concat([bytes, (await once(peer, "data"))[0]]));
  while (!bytes.includes("\r\n\r\n")) await more();
  const head = bytes.toString("latin1");
  bytes = Buffer.alloc(0);
  assert.match(head, /^GET \/ws\?a=b HTTP\/1\.1\r\n/);
  assert.match(head, /\r\nOrigin: http:\/\/x\r\n/);
  const key = /Sec-WebSocket-Key: (\S+)/.exec(head)[1];
  const accept = createHash("sha1").update(key + GUID).digest("base64");
  peer.setNoDelay();
  peer.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n");

  async function received() {
    const need = async (size) => {
      while (bytes.length < size) await more();
    };
    await need(2);
    assert.equal(bytes[1] & 0x80, 0x80, "frames of a client are masked");
    let length = bytes[1] & 0x7f;
    let at = 2;
    if (length === 126) {
      await need((at = 4));
      length = bytes.readUInt16BE(2);
    } else if (length === 127) {
      await need((at = 10));
      length = Number(bytes.readBigUInt64BE(2));
    }
    await need(at + 4 + length);
    const mask = bytes.subarray(at, at + 4);
    const payload = Buffer.from(bytes.subarray(at + 4, at + 4 + length).map((byte, index) => byte ^ mask[index & 3]));
    const first = bytes[0];
    bytes = bytes.subarray(at + 4 + length);
    return [first, payload];
  }

  return { socket, peer, accept, events, closed, received };
}

async function opened(t) {
  const all = await upgraded(t);
  all.peer.write(`Connection: Upgrade\r\nSec-WebSocket-Accept: ${all.accept}\r\n\r\n`);
  return all;
}

test("fragments, pings between them and frames cut anywhere are put together", async (t) => {
  const { socket, peer, events, closed, received } = await opened(t);
  const frames = Buffer.concat([
    Buffer.from([0x01, 3, ...Buffer.from("abc")]),
    Buffer.from([0x89, 2, 0x68, 0x69]),
    Buffer.from([0x80, 2, ...Buffer.from("é")]),
    Buffer.from([0x81, 126, 0, 200, ...Buffer.alloc(200, "x")]),
    Buffer.from([0x8a, 0]),
    Buffer.from([0x88, 5, 0x0f, 0xa1, ...Buffer.from("bye")]),
  ]);
  for (const byte of frames) peer.write(Buffer.from([byte]));
  const [pong, payload] = await received();
  assert.deepEqual([pong, payload.toString()], [0x8a, "hi"]);
  const [close, echoed] = await received();
  assert.deepEqual([close, echoed.readUInt16BE(0)], [0x88, 4001]);
  assert.deepEqual(await closed, [4001, "bye"]);
  assert.deepEqual(events, ["open", "abcé", "x".repeat(200)]);
  assert.equal(socket.readyState, WebSocket.CLOSED);
});

test("what is sent is masked, whatever its length, and close is answered", async (t) => {
  const { socket, peer, events, closed, received } = await opened(t);
  while (!events.length) await new Promise((resolve) => setImmediate(resolve));
  for (const text of ["", "é", "y".repeat(126), "z".repeat(70_000)]) {
    socket.send(text);
    const [first, payload] = await received();
    assert.deepEqual([first, payload.toString()], [0x81, text]);
  }
  socket.close(1000, "done");
  const [first, payload] = await received();
  assert.deepEqual([first, payload.readUInt16BE(0), payload.subarray(2).toString()], [0x88, 1000, "done"]);
  peer.write(Buffer.from([0x88, 2, 0x03, 0xe8]));
  assert.deepEqual(await closed, [1000, ""]);
});

for (const [name, frame, code] of [
  ["a masked frame", [0x81, 0x80, 0, 0, 0, 0], 1002],
  ["reserved bits", [0xc1, 0], 1002],
  ["binary data", [0x82, 0], 1002],
  ["a fragment of nothing", [0x80, 0], 1002],
  ["text that is not UTF-8", [0x81, 1, 0xff], 1007],
]) {
  test(`${name} ends the connection`, async (t) => {
    const { peer, closed } = await opened(t);
    peer.write(Buffer.from(frame));
    assert.equal((await closed)[0], code);
  });
}

test("a wrong answer to the upgrade, and a connection that breaks, are 1006", async (t) => {
  const wrong = await upgraded(t);
  wrong.peer.write("Connection: Upgrade\r\nSec-WebSocket-Accept: no\r\n\r\n");
  assert.equal((await wrong.closed)[0], 1006);
  assert.deepEqual(wrong.events, []);
  const broken = await opened(t);
  broken.peer.destroy();
  assert.equal((await broken.closed)[0], 1006);
});
