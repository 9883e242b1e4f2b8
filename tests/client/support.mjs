// What the browser client's tests under Node share: clients of the server at DIALOGUE_URL.

import { createDialogueClient } from "../../dialogue/static/dialogue.js";
import { WebSocket } from "./websocket.mjs";

export const URL = process.env.DIALOGUE_URL;

export async function until(condition) {
  for (;;) {
    const value = await condition();
    if (value) return value;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/**
 * `fetch` through a network that the test cuts.
 *
 * `cut` breaks what is on its way; while `isDown` nothing comes through; `isMute` keeps back what comes from then on;
 * `isSlow` keeps back the beginning of streams; `answer(method, path)` may hold a request up, or answer it itself.
 */
export class Network {
  isDown = false;
  isMute = false;
  isSlow = false;
  answer = () => null;
  requests = [];
  #cuts = new Set();

  fetch = async (url, options) => {
    this.requests.push(`${options.method} ${new globalThis.URL(url).pathname}`);
    if (this.isDown) throw new TypeError("the network is down");
    const answer = await this.answer(options.method, new globalThis.URL(url).pathname);
    if (answer) return answer;
    const cut = new AbortController();
    this.#cuts.add(cut);
    const signal = AbortSignal.any([options.signal, cut.signal]);
    const response = await fetch(url, { ...options, signal });
    const isStream = response.headers.get("content-type").startsWith("text/event-stream");
    if (!isStream) return response;
    const network = this;
    const body = response.body.pipeThrough(
      new TransformStream({
        async transform(chunk, controller) {
          if (network.isSlow) await new Promise((_, reject) => signal.addEventListener("abort", reject));
          if (!network.isMute) controller.enqueue(chunk);
        },
      }),
    );
    return new Response(body, response);
  };

  cut() {
    for (const cut of this.#cuts) cut.abort();
    this.#cuts.clear();
  }
}

/** A client that is ended with the test; `client.lose()` cuts what it stands on, `client.errors` has what `onError` told. */
export function makeClient(t, userId, options = {}) {
  const sockets = [];
  const network = new Network();
  class Watched extends WebSocket {
    constructor(url) {
      if (network.isBlocked) throw new Error("no WebSocket comes through");
      super(url);
      sockets.push(this);
    }
  }
  const client = createDialogueClient({
    url: URL,
    auth: { user_id: userId },
    WebSocket: Watched,
    fetch: network.fetch,
    transports: ["websocket"],
    pollSeconds: 0.06,
    backoffSeconds: 0.01,
    maxBackoffSeconds: 0.05,
    ...options,
  });
  client.errors = [];
  client.onError((error) => client.errors.push(error));
  client.network = network;
  client.lose = () => {
    if (client.transport === "websocket") sockets.at(-1).terminate();
    else {
      network.isDown = true;
      network.cut();
      until(() => client.state !== "connected").then(() => (network.isDown = false));
    }
  };
  t.after(() => client.disconnect());
  return client;
}

export async function connected(t, userId, options) {
  const client = makeClient(t, userId, options);
  await client.connect();
  return client;
}
