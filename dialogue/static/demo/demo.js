/**
 * The demo: a chat over `dialogue.js`, without a framework.
 *
 * `client.join` gives a room, and `room.timeline("message")` its list of messages: older pages,
 * live ones and those being sent, in order and without doubles. This file puts the parts together:
 *
 *   message-list.js  one timeline on the page, its scrolling, what is unread
 *   message-row.js   one message
 *   list-keys.js     the keys of the list
 *   composer.js      the box to write in
 *   room-list.js     the rooms, and making one
 *   people.js        who is here, who is typing
 *   announcer.js     new messages for screen readers
 *   my-name.js       who one is
 */
import { createDialogueClient } from "../dialogue.js";
import { announce } from "./announcer.js";
import { Composer } from "./composer.js";
import { $, confirmed, paintAvatar, plural, showNotice } from "./helpers.js";
import { setUpListKeys } from "./list-keys.js";
import { MessageList } from "./message-list.js";
import { chooseName } from "./my-name.js";
import { People, TypingLine } from "./people.js";
import { linkTo, RoomList, setUpRoomForm, showBadge } from "./room-list.js";

const JOINED_AT_START = 20; // so that one hears of them; the others are joined when they are opened
const ROOMS_EVERY_MS = 15_000; // over plain HTTP, where nobody tells of rooms
const KEPT_LISTS = 6; // of rooms opened lately; another one is loaded again

const hasPointer = matchMedia("(hover: hover)");

const STATES = {
  connecting: "Connecting…",
  connected: "Connected",
  resuming: "Reconnecting…",
  offline: "Offline",
};

async function main() {
  const myId = await chooseName();
  // To end the server and start it again is part of the demo: nobody should wait long for what comes then.
  const client = createDialogueClient({ url: "", auth: { user_id: myId }, maxBackoffSeconds: 5 });
  const roomList = new RoomList();
  const people = new People();
  const typingLine = new TypingLine();
  const places = new Map(); // rooms that are joined: id -> {room, list (null: not loaded)}
  const unread = new Map(); // counts by room id, also of rooms that are not joined
  let current = null;
  let wanted = null; // the room that was asked for last

  // ---- me, and the connection

  paintAvatar($("me-avatar"), myId);
  $("me-name").textContent = myId;
  $("rename").setAttribute("aria-label", `Change name, now ${myId}`);
  $("rename").addEventListener("click", async () => {
    if ((await chooseName({ again: true })) === myId) return;
    const url = new URL(location.href);
    url.searchParams.delete("name");
    // Who one is belongs to the connection: a new name is a new start.
    if (url.href === location.href) location.reload();
    else location.replace(url);
  });

  function showState() {
    $("state").dataset.state = client.state;
    const isPlain = client.state === "connected" && client.transport === "sse";
    $("state").firstElementChild.textContent = STATES[client.state] + (isPlain ? " over plain HTTP" : "");
  }
  client.onState(showState);
  client.onError((error) => {
    if (client.state !== "offline") return; // it goes on trying by itself
    showNotice(`${error.message.replace(/\.?$/, ".")} Reload the page to try again.`);
  });
  showState();
  $("notice").querySelector("button").addEventListener("click", () => showNotice(""));

  // ---- what is unread, and what surrounds the messages

  const unreadIn = (id) => (id === current?.room.id && current.list.isSeen ? 0 : (unread.get(id) ?? 0));

  function showUnread() {
    let all = 0;
    for (const id of roomList.infos.keys()) {
      const count = unreadIn(id);
      all += count;
      roomList.setUnread(id, count);
    }
    const name = current ? `${nameOf(current.room)} · ` : "";
    document.title = `${all ? `(${all}) ` : ""}${name}Dialogue`;
    showBadge($("elsewhere"), current ? all - unreadIn(current.room.id) : all);
  }

  function showAround(list) {
    if (list !== current?.list) return;
    const count = unreadIn(current.room.id);
    $("jump").hidden = list.isAtNewest;
    $("jump").classList.toggle("news", count > 0);
    $("jump").textContent = count ? plural(count, "new message", "new messages") : "Newest messages";
    const day = list.isAtNewest ? "" : list.day;
    $("date").textContent = day;
    $("date").hidden = day === "";
    showUnread();
  }

  function takeCounts(counts) {
    for (const [id, count] of Object.entries(counts)) unread.set(id, count);
    if (current) showAround(current.list);
    else showUnread();
  }
  client.onUnread(takeCounts);
  $("jump").addEventListener("click", async () => {
    await current.list.toNewest();
    leaveButton();
  });
  for (const type of ["visibilitychange", "focus", "blur"]) {
    addEventListener(type, () => {
      current?.list.noteSeen();
      showUnread();
    });
  }
  setInterval(() => current?.list.refreshTimes(), 30_000);

  // ---- rooms

  const nameOf = (room) => roomList.infos.get(room.id)?.name || room.name || room.id;

  async function enter(roomId) {
    const known = places.get(roomId);
    if (known) return known;
    // No sync: a timeline asks for its first page itself, and only once its room is opened.
    const room = await client.join(roomId, { sync: 0 });
    if (places.has(roomId)) return places.get(roomId); // someone else was quicker
    const place = { room, list: null };
    places.set(roomId, place);
    if (!roomList.infos.has(roomId)) roomList.set({ id: roomId, name: room.name });
    room.on("message", ({ from, data }) => {
      if (from === myId) return;
      if (place === current) announce(`${from}: ${data.text}`);
      // Over plain HTTP the server tells counts seldom, and never of rooms that one has only read.
      const isCounted = client.transport === "sse" && !(place === current && place.list.isSeen);
      if (isCounted) takeCounts({ [roomId]: (unread.get(roomId) ?? 0) + 1 });
    });
    room.onLeft((reason) => {
      forget(roomId);
      showNotice(`You are no longer in ${nameOf(room)}: ${reason}.`);
    });
    return place;
  }

  function listOf(place) {
    const { room } = place;
    const list = new MessageList(room, {
      myId,
      unread: unread.get(room.id) ?? 0,
      onChange: showAround,
      onRead: (left) => takeCounts({ [room.id]: left }),
    });
    list.element.setAttribute("aria-label", `Messages in ${nameOf(room)}`);
    list.element.addEventListener("click", (event) => act(place, event.target));
    setUpListKeys(list.element, { toNewest: () => list.toNewest(), onEscape: backToWriting });
    return list;
  }

  async function open(roomId) {
    wanted = roomId;
    const place = await enter(roomId);
    if (wanted !== roomId || place === current) return;
    current?.list.hide();
    if (!place.list) {
      place.list = listOf(place);
      $("views").append(place.list.element);
    }
    current = place;
    // The least recently opened ones are first.
    places.delete(roomId);
    places.set(roomId, place);
    for (const old of [...places.values()].filter(({ list }) => list).slice(0, -KEPT_LISTS)) {
      old.list.close();
      old.list = null;
    }
    showRoom();
    place.list.show();
    composer.setRoom(place.room, nameOf(place.room));
    people.show(place.room, client);
    typingLine.show(place.room);
  }

  function showRoom() {
    const { room } = current;
    const info = roomList.infos.get(room.id);
    roomList.setCurrent(room.id);
    $("title").textContent = nameOf(room);
    $("about").textContent = info?.description ?? "";
    $("delete-room").hidden = info?.createdById !== myId;
    showUnread();
  }

  /** Opens the room that the address names; else the first one. */
  async function openNamed() {
    let named = "";
    try {
      named = decodeURIComponent(location.hash.slice(1));
    } catch {
      // not one of our links
    }
    const id = named || roomList.infos.keys().next().value;
    if (id === undefined) {
      showNotice("There is no room here that you may enter.");
      return;
    }
    try {
      await open(id);
    } catch (error) {
      if (wanted !== id) return;
      showNotice(`${id} cannot be opened: ${error.message}.`);
      if (current) history.replaceState(null, "", linkTo(current.room.id));
      else if (named) location.replace("#");
    }
  }
  addEventListener("hashchange", () => {
    if ($("side").matches(":popover-open")) $("side").hidePopover();
    openNamed();
  });

  /** Closes what there is of a room that one is no longer in. */
  function forget(roomId) {
    const place = places.get(roomId);
    places.delete(roomId);
    unread.delete(roomId);
    composer.forget(roomId);
    if (place === current && place) {
      current = null;
      wanted = null;
      const other = [...roomList.infos.keys()].find((id) => id !== roomId);
      if (other !== undefined) location.hash = linkTo(other);
    }
    place?.list?.close();
  }

  client.onRoomCreated((info) => roomList.set(info));
  client.onRoomUpdated((info) => {
    roomList.set(info);
    if (info.id === current?.room.id) showRoom();
  });
  client.onRoomDeleted((roomId) => {
    roomList.remove(roomId);
    forget(roomId);
    showUnread();
  });
  /** What was made and deleted while nobody told. */
  async function refreshRooms() {
    try {
      roomList.setAll(await client.listRooms());
    } catch {
      return; // gone again: the next connection asks again
    }
    if (current) showRoom();
    else showUnread();
  }
  client.onConnect(({ resumed }) => {
    if (resumed) refreshRooms();
  });
  setInterval(() => client.transport === "sse" && !document.hidden && refreshRooms(), ROOMS_EVERY_MS);
  setUpRoomForm(client, async (roomId) => {
    if (client.transport === "sse") await refreshRooms();
    location.hash = linkTo(roomId);
  });
  $("delete-room").addEventListener("click", async () => {
    const { room } = current;
    if (!(await confirmed(`Delete ${nameOf(room)}?`, "Its messages go with it, for everyone."))) return;
    await client.deleteRoom(room.id).catch((error) => showNotice(`The room is still there: ${error.message}.`));
    if (client.transport === "sse") refreshRooms();
  });

  // ---- messages

  /** What a button in the list does. */
  async function act({ room, list }, button) {
    const uid = button.closest("[data-uid]")?.dataset.uid;
    const row = list.rowOf(uid);
    switch (button.closest("button")?.dataset.do) {
      case "again":
        return list.retryLoading();
      case "fill":
        return list.fillAt(button.closest(".gap"));
      case "expand":
        return row.expand();
      case "edit":
        return composer.edit(row.entry);
      case "retry":
        row.article.focus({ preventScroll: true }); // the button goes
        return list.timeline.retry(uid);
      case "discard":
        leaveButton();
        return list.timeline.discard(uid);
      case "delete":
        row.article.focus({ preventScroll: true }); // it gets the focus back: the button hides meanwhile
        if (!(await confirmed("Delete this message?", row.entry.data.text.slice(0, 200)))) return;
        try {
          await room.delete(row.entry.seq);
        } catch (error) {
          showNotice(`The message was not deleted: ${error.message}.`);
        }
    }
  }

  /** Where the focus goes from a button that disappears; on phones not to the box: the keyboard would open. */
  function leaveButton() {
    if (hasPointer.matches) composer.focus();
    else current?.list.element.focus({ preventScroll: true });
  }

  function backToWriting() {
    current?.list.clearMarker();
    composer.focus();
  }

  const composer = new Composer({
    onSend(text) {
      current.list.timeline.send({ text });
      current.list.clearMarker();
      current.list.toNewest();
    },
    onEditLast() {
      const entry = current?.list.ownNewest;
      if (entry) composer.edit(entry);
    },
    onEscape: () => current?.list.clearMarker(),
  });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // what is behind the # names a room
    composer.focus();
  });

  // ---- start

  await client.connect();
  const [infos, counts] = await Promise.all([client.listRooms(), client.unread()]);
  roomList.setAll(infos);
  takeCounts(counts);
  await openNamed();
  if (hasPointer.matches) composer.focus();
  // One that cannot be joined is simply not heard of.
  await Promise.allSettled(infos.slice(0, JOINED_AT_START).map(({ id }) => enter(id)));
}

main().catch((error) => showNotice(error.message));
