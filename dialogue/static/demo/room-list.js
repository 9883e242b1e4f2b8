/** The list of rooms, with what is unread in each; and the form that makes one. */
import { $, clone, plural } from "./helpers.js";

export const linkTo = (roomId) => `#${encodeURIComponent(roomId)}`;

export class RoomList {
  /** What the server tells of each room, by id, in the order of the list. */
  infos = new Map();
  #items = new Map();

  set(info) {
    this.infos.set(info.id, info);
    let item = this.#items.get(info.id);
    if (!item) {
      item = clone("room");
      item.firstElementChild.href = linkTo(info.id);
      this.#items.set(info.id, item);
      $("rooms").append(item);
    }
    item.querySelector(".label").textContent = info.name || info.id;
  }

  /** Takes *infos* for all rooms that there are. */
  setAll(infos) {
    const ids = new Set(infos.map(({ id }) => id));
    for (const id of [...this.infos.keys()]) if (!ids.has(id)) this.remove(id);
    for (const info of infos) this.set(info);
  }

  remove(roomId) {
    this.#items.get(roomId)?.remove();
    this.#items.delete(roomId);
    this.infos.delete(roomId);
  }

  setCurrent(roomId) {
    for (const [id, item] of this.#items) {
      if (id === roomId) item.firstElementChild.setAttribute("aria-current", "page");
      else item.firstElementChild.removeAttribute("aria-current");
    }
    this.#items.get(roomId)?.scrollIntoView({ block: "nearest" });
  }

  setUnread(roomId, count) {
    const badge = this.#items.get(roomId)?.querySelector(".badge");
    if (badge) showBadge(badge, count);
  }
}

/** Called at each scroll: what does not change is not painted again. */
export function showBadge(badge, count) {
  if (badge.dataset.count === String(count)) return;
  badge.dataset.count = String(count);
  badge.hidden = count === 0;
  badge.replaceChildren();
  if (count === 0) return;
  const label = document.createElement("span");
  label.className = "hidden";
  label.textContent = ` ${plural(count, "new message", "new messages")}`;
  const shown = document.createElement("span");
  shown.ariaHidden = "true";
  shown.textContent = count > 99 ? "99+" : String(count);
  badge.append(shown, label);
}

/** An id for people to read: `/` and control characters may not be in it. */
const idFrom = (name) =>
  name
    .toLowerCase()
    .replace(/[\s/\p{Cc}]+/gu, "-")
    .slice(0, 60);

/** Lets one make a room; *onMade* is called with its id. */
export function setUpRoomForm(client, onMade) {
  const dialog = $("room-dialog");
  const field = $("room-name");
  const say = (text) => ($("room-error").textContent = text);
  $("new-room").addEventListener("click", () => {
    field.value = "";
    say("");
    dialog.showModal();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault(); // open until the server has said yes
    const name = field.value.trim();
    try {
      await client.createRoom(idFrom(name), name);
      dialog.close();
      onMade(idFrom(name));
    } catch (error) {
      say(error.code === "ROOM_EXISTS" ? "There is a room of that name already." : `${error.message}.`);
    }
  });
}
