/** Who is here, of the room that is open. */
import { $, arrange, bdi, clone, paintAvatar } from "./helpers.js";

const byName = new Intl.Collator(undefined, { numeric: true }).compare;

export class People {
  #live = null;
  #items = new Map(); // from a name

  show(room, client) {
    this.#live?.close();
    const live = (this.#live = room.presentUsers());
    const render = () => live === this.#live && this.#render(live.getSnapshot(), client);
    live.subscribe(render);
    render();
  }

  #render({ users, count }, { userId: myId, transport }) {
    $("people-count").textContent = count.toLocaleString();
    $("people-title").textContent = `Here now: ${count.toLocaleString()}`;
    const others = users.filter((name) => name !== myId).sort(byName);
    // The server names a thousand at most: of more, one may not be among them.
    const amHere = users.includes(myId) || count > users.length;
    const names = amHere ? [myId, ...others] : others;
    const items = new Map(names.map((name) => [name, this.#items.get(name) ?? this.#item(name, name === myId)]));
    this.#items = items;
    arrange($("here"), new Set(items.values()));
    const more = count - names.length;
    $("more-people").hidden = more <= 0;
    $("more-people").textContent = `and ${more.toLocaleString()} more`;
    $("unlisted").hidden = amHere || transport !== "sse";
  }

  #item(name, isMe) {
    const item = clone("person");
    const [avatar, label, note] = item.children;
    paintAvatar(avatar, name);
    label.textContent = name;
    note.textContent = isMe ? "you" : "";
    return item;
  }
}

/** Who is typing, of the room that is open. */
export class TypingLine {
  #live = null;

  show(room) {
    this.#live?.close();
    const live = (this.#live = room.typingUsers());
    const render = () => {
      if (live === this.#live) $("typing").replaceChildren(...sentence(live.getSnapshot()));
    };
    live.subscribe(render);
    render();
  }
}

function sentence(names) {
  const [first, second] = names.slice(0, 2).map(bdi);
  if (names.length === 0) return [];
  if (names.length === 1) return [first, " is typing…"];
  if (names.length === 2) return [first, " and ", second, " are typing…"];
  return ["Several people are typing…"];
}
