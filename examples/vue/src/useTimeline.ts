import { type MaybeRefOrGetter, type ShallowRef, shallowRef, toValue, watch } from "vue";

import type { DialogueClient, EventMap, Room, Timeline, TimelineOptions, TimelineSnapshot } from "./dialogue.js";

export interface OpenTimeline<Events extends EventMap, Sent extends EventMap, Name extends keyof Events & string> {
  /** Null until the room is joined. */
  readonly room: Readonly<ShallowRef<Room<Events, Sent> | null>>;
  /** What loads and sends; null until the room is joined. */
  readonly timeline: Readonly<ShallowRef<Timeline<Events[Name], Name, Sent[Name & keyof Sent]> | null>>;
  /** What there is to show. */
  readonly snapshot: Readonly<ShallowRef<TimelineSnapshot<Events[Name], Name>>>;
  /** Why the room could not be joined, or has been left; a failed load is in the snapshot. */
  readonly error: Readonly<ShallowRef<Error | null>>;
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
 * Joins a room for as long as the component (or other effect scope) is there, and shows a timeline of it.
 *
 * Several components may use the same room: the client counts joins and leaves, and only the last one to go leaves.
 * Every join has its leave, also when the component is gone before the room is joined.
 *
 * `client.connect()` is called elsewhere, once; it need not have resolved.
 */
export function useTimeline<
  Events extends EventMap,
  Sent extends EventMap,
  Name extends keyof Events & string = keyof Events & string,
>(
  client: DialogueClient<Events, Sent>,
  roomId: MaybeRefOrGetter<string>,
  events?: Name | readonly Name[] | "*",
  options?: TimelineOptions,
): OpenTimeline<Events, Sent, Name> {
  // Shallow: a snapshot is frozen, and a new object at every change.
  const room = shallowRef<Room<Events, Sent> | null>(null);
  const timeline = shallowRef<Timeline<Events[Name], Name, Sent[Name & keyof Sent]> | null>(null);
  const snapshot = shallowRef<TimelineSnapshot<Events[Name], Name>>(NOTHING_YET);
  const error = shallowRef<Error | null>(null);

  // On a server nothing would ever leave.
  if (typeof window !== "undefined") {
    watch(
      () => toValue(roomId),
      (id, _, onCleanup) => {
        room.value = timeline.value = error.value = null;
        snapshot.value = NOTHING_YET;
        let isOver = false;
        let close = () => {};
        const joining = client.join(id);
        joining.then(
          (joined) => {
            if (isOver) return;
            const opened = joined.timeline<Name>(events, options);
            const show = () => (snapshot.value = opened.getSnapshot());
            const stops = [opened.subscribe(show), joined.onLeft((reason) => (error.value = new Error(reason)))];
            close = () => {
              for (const stop of stops) stop();
              opened.close();
            };
            room.value = joined;
            timeline.value = opened;
            show();
          },
          (reason: Error) => {
            if (!isOver) error.value = reason;
          },
        );
        onCleanup(() => {
          isOver = true;
          close();
          // After the join, whenever that is. What is refused, or ends with the connection, is left already.
          joining.then((joined) => joined.leave()).catch(() => {});
        });
      },
      // At once, not before the next rendering: what is shown is never another room's.
      { immediate: true, flush: "sync" },
    );
  }
  return { room, timeline, snapshot, error };
}
