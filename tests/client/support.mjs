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

/** A client that is ended with the test; `client.lose()` cuts its socket, `client.errors` has what `onError` told. */
export function makeClient(t, userId, options = {}) {
  const sockets = [];
  class Watched extends WebSocket {
    constructor(url) {
      super(url);
      sockets.push(this);
    }
  }
  const client = createDialogueClient({
    url: URL,
    auth: { user_id: userId },
    WebSocket: Watched,
    backoffSeconds: 0.01,
    maxBackoffSeconds: 0.05,
    ...options,
  });
  client.errors = [];
  client.onError((error) => client.errors.push(error));
  client.sockets = sockets;
  client.lose = () => sockets.at(-1).terminate();
  t.after(() => client.disconnect());
  return client;
}

export async function connected(t, userId, options) {
  const client = makeClient(t, userId, options);
  await client.connect();
  return client;
}
