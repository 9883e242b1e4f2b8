// The types of tests/generating/rich.py, generated to rich.ts, as an application uses them.
// Type-checked by test_types.py; never run.

import { createDialogueClient } from "./dialogue.js";
import type { Events, RichInput, RoomEvents, SentEvents, Tree } from "./rich.js";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function is<_ extends true>() {}

const client = createDialogueClient<Events, SentEvents>({ url: "" });

export async function usage() {
  const room = await client.join("general");
  room.on("rich", ({ data }) => {
    is<Equal<typeof data.text, string>>();
    is<Equal<typeof data.length, number>>();
    is<Equal<typeof data.choice, "a" | "b" | 3 | true | null>>();
    is<Equal<typeof data.anything, unknown>>();
    data.people[0]?.manager?.manager?.name.trim();
    if (data.animal.kind === "dog") data.animal.owner.tags.at(0)?.trim();
    // @ts-expect-error: cats have no owners
    else data.animal.owner;
    is<Equal<(typeof data.by_color)["red"], number | undefined>>();
    // @ts-expect-error: no such color
    data.by_color.green;
    is<Equal<typeof data.pair, [number, string]>>();
    // @ts-expect-error: a pair
    data.pair[2];
    data.box.content.toFixed();
    data.boxes[0]?.content.name.trim();
    is<Equal<typeof data.more.known, number>>();
    is<Equal<(typeof data.more)["unknown"], unknown>>();
    is<Equal<typeof data.both, { "first-name": string }> extends boolean ? true : never>();
    data.both["first-name"].trim();
    // @ts-expect-error: as it is sent, not as it comes
    data.aliased.userName;
    data.aliased.user_name.trim();
    // @ts-expect-error: no such field
    data.nope;
    const tree: Tree = { left: { leaf: {} }, right: {} };
    return [tree, data.tree] as never;
  });
  room.on(`an animal: "it's"`, ({ data }) => void data.kind);
  room.on("typing", ({ data }) => {
    // @ts-expect-error: any JSON is to be looked at before it is used
    data.nope;
  });
  room.on("$edit", ({ data }) => void data.target_seq.toFixed());
  room.on("$delete", ({ data }) => void data.erased);
  room.on("notice", ({ data }) => is<Equal<typeof data.level, "info" | "alert">>());
  room.on("number", ({ data }) => void data.toFixed());

  await room.trigger("message", { text: "hello" });
  await room.trigger("message", { text: "hello", reply_to: null });
  await room.trigger("typing", { whatever: [1] });
  await room.trigger(`an animal: "it's"`, { kind: "cat", lives: 9 });
  // @ts-expect-error: pydantic asks for the tag
  await room.trigger(`an animal: "it's"`, { lives: 9 });
  // @ts-expect-error: for the server alone
  await room.trigger("notice", { level: "info" });
  // @ts-expect-error: Dialogue's own
  await room.trigger("$edit", { target_seq: 1, event: "message" });
  // @ts-expect-error: no such level
  await room.trigger("message", { level: "none" });
  const sent: Partial<RichInput> = { exact: 1.5, span: "PT1S", aliased: { userName: "ann" }, tree: {} };

  const direct = await client.join<RoomEvents<"dm:ann:bob">>("dm:ann:bob", { events: ["message"] });
  direct.on("message", ({ data }) => is<Equal<typeof data.reply_to, number | null>>());
  // @ts-expect-error: not in this room
  direct.on("number", () => {});
  // @ts-expect-error: not in this room
  await direct.trigger("number", 1);
  const notes = await client.join<RoomEvents<"notes:ann">>("notes:ann");
  notes.on("message", ({ data }) => is<Equal<typeof data.level, "info" | "alert">>());
  const all = await client.join<RoomEvents<"notes:all">>("notes:all");
  all.on("message", ({ data }) => void data.text);
  const made = await client.join<RoomEvents<"club">>("club");
  made.on("message", ({ data }) => void data.text);
  return sent;
}
