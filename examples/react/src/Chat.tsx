import { type FormEvent, Fragment, type UIEvent, useCallback, useState, useSyncExternalStore } from "react";

import type { DialogueClient } from "./dialogue.js";
import type { Events, SentEvents } from "./events.js";
import { useTimeline } from "./useTimeline.js";

/** How near to an end, in pixels, the next page is loaded. */
const NEAR = 300;

interface ChatProps {
  client: DialogueClient<Events, SentEvents>;
  roomId: string;
  username: string;
}

export function Chat({ client, roomId, username }: ChatProps) {
  const { timeline, snapshot, error } = useTimeline(client, roomId, "message");
  // The same function at every rendering: React subscribes again for another one.
  const subscribe = useCallback((fn: () => void) => client.onState(fn), [client]);
  const state = useSyncExternalStore(subscribe, () => client.state, () => client.state);
  const [text, setText] = useState("");

  // The list stands on its end (see chat.css): 0 is the newest message, and older ones have negative places.
  function scrolled({ currentTarget: list }: UIEvent<HTMLElement>) {
    const fromEnd = Math.abs(list.scrollTop);
    timeline?.setFollowing(fromEnd < NEAR);
    if (fromEnd < NEAR && snapshot.hasNewer) void timeline?.loadNewer();
    if (list.scrollHeight - list.clientHeight - fromEnd < NEAR && snapshot.hasOlder) void timeline?.loadOlder();
  }

  /** What is missing below an entry, or above the first one: after too long an absence, or while a tier is away. */
  const gapsBelow = (uid: string | null) =>
    snapshot.gaps
      .filter((gap) => gap.afterUid === uid)
      .map((gap) => (
        <li key={gap.reason} className="gap">
          <i>Messages are missing here.</i> <button onClick={() => void timeline?.fill(gap)}>Show them</button>
        </li>
      ));

  function send(event: FormEvent) {
    event.preventDefault();
    if (!timeline || text.trim() === "") return;
    timeline.send({ text, username });
    setText("");
  }

  return (
    <section className="chat" aria-label={roomId}>
      <p role="status">
        {error ? `Not in this room: ${error.message}` : state}
        {snapshot.error && ` · ${snapshot.error.message}`}
      </p>
      <div className="messages" onScroll={scrolled} tabIndex={0}>
        <ol>
          {snapshot.hasOlder && (
            <li>
              <button onClick={() => void timeline?.loadOlder()} disabled={snapshot.loading}>
                Older messages
              </button>
            </li>
          )}
          {gapsBelow(null)}
          {snapshot.entries.map((entry) => (
            <Fragment key={entry.uid}>
              <li className={entry.status}>
                {entry.deleted ? (
                  <i>deleted</i>
                ) : (
                  <>
                    <b>{entry.data.username}</b> {entry.data.text} {entry.edited && <small>(edited)</small>}
                  </>
                )}
                {entry.status === "failed" && (
                  <>
                    {" "}
                    <em>{entry.error?.message}</em>{" "}
                    <button onClick={() => timeline?.retry(entry.uid)}>Send again</button>{" "}
                    <button onClick={() => timeline?.discard(entry.uid)}>Discard</button>
                  </>
                )}
              </li>
              {gapsBelow(entry.uid)}
            </Fragment>
          ))}
        </ol>
      </div>
      <form onSubmit={send}>
        <input aria-label="Message" value={text} onChange={(event) => setText(event.target.value)} maxLength={2000} />
        <button disabled={!timeline}>Send</button>
      </form>
    </section>
  );
}
