import { useCallback, useEffect, useState, useSyncExternalStore } from "react";

import type { DialogueClient, EventMap, Room, Timeline, TimelineOptions, TimelineSnapshot } from "./dialogue.js";

export interface OpenTimeline<Events extends EventMap, Sent extends EventMap, Name extends keyof Events & string> {
  /** Null until the room is joined. */
  readonly room: Room<Events, Sent> | null;
  /** What loads and sends; null until the room is joined. */
  readonly timeline: Timeline<Events[Name], Name, Sent[Name & keyof Sent]> | null;
  /** What there is to show. */
  readonly snapshot: TimelineSnapshot<Events[Name], Name>;
  /** Why the room could not be joined, or has been left; a failed load is in the snapshot. */
  readonly error: Error | null;
}

const NOTHING_YET: TimelineSnapshot<never, never> = Object.freeze({
  entries: Object.freeze([]),
  hasOlder: false,
  hasNewer: false,
  loading: true,
  error: null,
  gaps: Object.freeze([]),
});

/**
 * Joins a room for as long as the component is there, and shows a timeline of it.
 *
 * Several components may use the same room: the client counts joins and leaves, and only the last one to go leaves.
 * React runs effects twice in StrictMode, and takes components away while a join is on its way: every join has its
 * leave, whenever it comes.
 *
 * `client.connect()` is called elsewhere, once; it need not have resolved.
 */
export function useTimeline<
  Events extends EventMap,
  Sent extends EventMap,
  Name extends keyof Events & string = keyof Events & string,
>(
  client: DialogueClient<Events, Sent>,
  roomId: string,
  events?: Name | readonly Name[] | "*",
  options?: TimelineOptions,
): OpenTimeline<Events, Sent, Name> {
  type Found = Omit<OpenTimeline<Events, Sent, Name>, "snapshot"> & { client: unknown; wanted: string };
  // As text: names and options may be new objects at every rendering, and mean the same.
  const wanted = JSON.stringify({ roomId, events, options });
  const [found, setFound] = useState<Found | null>(null);

  useEffect(() => {
    const { roomId, events, options } = JSON.parse(wanted) as {
      roomId: string;
      events?: Name | readonly Name[] | "*";
      options?: TimelineOptions;
    };
    let isOver = false;
    let close = () => {};
    const joining = client.join(roomId);
    joining.then(
      (room) => {
        if (isOver) return;
        const timeline = room.timeline<Name>(events, options);
        const show = (error: Error | null) => setFound({ client, wanted, room, timeline, error });
        const stop = room.onLeft((reason) => show(new Error(reason)));
        close = () => {
          stop();
          timeline.close();
        };
        show(null);
      },
      (error: Error) => {
        if (!isOver) setFound({ client, wanted, room: null, timeline: null, error });
      },
    );
    return () => {
      isOver = true;
      close();
      // After the join, whenever that is. What is refused, or ends with the connection, is left already.
      joining.then((room) => room.leave()).catch(() => {});
    };
  }, [client, wanted]);

  // What was found for another room is not shown as this one's, not even once.
  const current = found?.client === client && found.wanted === wanted ? found : null;
  const timeline = current?.timeline ?? null;
  const subscribe = useCallback((fn: () => void) => timeline?.subscribe(fn) ?? (() => {}), [timeline]);
  const snapshot = useSyncExternalStore<TimelineSnapshot<Events[Name], Name>>(
    subscribe,
    () => timeline?.getSnapshot() ?? NOTHING_YET,
    () => NOTHING_YET,
  );
  return { room: current?.room ?? null, timeline, snapshot, error: current?.error ?? null };
}
