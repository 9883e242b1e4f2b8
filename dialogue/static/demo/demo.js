/**
 * The demo: a chat over `dialogue.js`, without a framework.
 *
 * `client.join` gives a room, `room.timeline("message")` its list of messages: older pages, live
 * ones and those being sent, in order and without doubles. A RoomView shows one timeline; the
 * rest of the page is a name, a list of rooms and a box to write in.
 */
import { createDialogueClient } from "../dialogue.js";

const PAGE_SIZE = 200;
const BLOCK_ROWS = 400;
const NEAR_TOP_PX = 600; // older messages are asked for this long before the top is reached
const NEAR_BOTTOM_PX = 48; // within this, new messages scroll into view by themselves
const GROUP_MS = 5 * 60_000;
const HOUR_MS = 3_600_000;
const TYPING_SHOWN_MS = 6000;
const TYPING_SENT_EVERY_MS = 2500; // well below the time shown: one lost notice does not flicker
const MAX_LENGTH = 2000;
const MAX_ROOMS = 50;

const $ = (id) => document.getElementById(id);
const clone = (id) => $(id).content.firstElementChild.cloneNode(true);

// ------------------------------------------------------------------------------------------ name

const NAME_KEY = "dialogue-demo-name";

function suggestedName() {
  const pick = (list) => list[Math.floor(Math.random() * list.length)];
  const first = ["Quiet", "Bright", "Gentle", "Swift", "Curious", "Patient", "Merry", "Clever"];
  const second = ["Otter", "Heron", "Maple", "Comet", "Badger", "Willow", "Falcon", "Harbor"];
  return `${pick(first)} ${pick(second)}`;
}

/** Kept in sessionStorage, not localStorage: two windows are two people. */
function storedName(name) {
  try {
    if (name !== undefined) sessionStorage.setItem(NAME_KEY, name);
    return sessionStorage.getItem(NAME_KEY);
  } catch {
    return null; // storage may be forbidden; the name then lasts as long as the page
  }
}

async function chooseName({ again = false } = {}) {
  const given = new URLSearchParams(location.search).get("name")?.trim() || storedName();
  if (given && !again) return given.slice(0, 40);
  const field = $("name");
  field.value = given || suggestedName();
  const dialog = $("welcome");
  dialog.returnValue = "";
  dialog.showModal();
  field.select();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  if (again && dialog.returnValue !== "enter") return given; // Escape
  const name = field.value.trim() || suggestedName();
  storedName(name);
  return name;
}

// ----------------------------------------------------------------------------- names, days, times

function initials(name) {
  const words = name.split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  const letters =
    words.length > 1
      ? [words[0], words.at(-1)].map((word) => [...word][0])
      : [...(words[0] ?? "?")].slice(0, 2);
  return letters.join("").toUpperCase();
}

function paintAvatar(element, name) {
  let hash = 0;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 100_003;
  element.style.setProperty("--hue", String((hash * 47) % 360));
  element.textContent = initials(name);
}

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const fullFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const dayFormat = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const oldDayFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const shortFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const relativeFormat = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });

const dayOf = (timestamp) => new Date(timestamp).setHours(0, 0, 0, 0);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function dayLabel(day, { short = false } = {}) {
  const ago = Math.round((dayOf(Date.now()) - day) / 86_400_000); // rounded: a day may have 23 hours
  if (ago < 2) return relativeFormat.format(-ago, "day");
  if (ago >= 300) return oldDayFormat.format(day);
  return (short ? shortFormat : dayFormat).format(day);
}

function timeLabel(timestamp) {
  const minutes = Math.floor((Date.now() - timestamp) / 60_000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return relativeFormat.format(-minutes, "minute");
  return clockFormat.format(timestamp);
}

const plural = (count, one, many) => `${count.toLocaleString()} ${count === 1 ? one : many}`;

// -------------------------------------------------------------------------------------- one message

/** One `<li>`. It changes only when its entry does, or the entry before it. */
class Row {
  element = clone("message");
  #avatar = this.element.querySelector(".avatar");
  #author = this.element.querySelector(".author");
  #when = this.element.querySelector(".when");
  #clock = this.element.querySelector(".clock");
  #text = this.element.querySelector(".text");
  #fate = this.element.querySelector(".fate");
  #day = this.element.querySelector(".day");
  #isPlaced = false;
  #previous;

  constructor(entry, myName) {
    this.element.dataset.uid = entry.uid;
    this.element.classList.toggle("own", entry.from === myName);
    const name = entry.from ?? "Unknown";
    paintAvatar(this.#avatar, name);
    this.#author.textContent = name;
    this.update(entry);
  }

  update(entry) {
    this.entry = entry;
    const { classList } = this.element;
    classList.toggle("sending", entry.status === "sending");
    classList.toggle("failed", entry.status === "failed");
    classList.toggle("gone", Boolean(entry.deleted));
    this.#text.textContent = entry.deleted ? "This message was deleted." : String(entry.data?.text ?? "");
    this.#fate.hidden = entry.status !== "failed";
    if (entry.status === "failed") {
      this.#fate.firstElementChild.textContent = `Not sent: ${entry.error.message}`;
    }
    for (const time of [this.#when, this.#clock]) {
      time.dateTime = new Date(entry.timestamp).toISOString();
      time.title = fullFormat.format(entry.timestamp);
    }
    this.#clock.textContent = clockFormat.format(entry.timestamp);
    this.refreshTime();
    this.#isPlaced = false; // its time may be another now
  }

  /** Groups it with the entry before it, and sets a day apart from the day before. */
  place(previous) {
    if (this.#isPlaced && previous === this.#previous) return;
    this.#isPlaced = true;
    this.#previous = previous;
    const day = dayOf(this.entry.timestamp);
    const isNewDay = !previous || dayOf(previous.timestamp) !== day;
    this.#day.hidden = !isNewDay;
    if (isNewDay) this.#day.firstElementChild.textContent = capital(dayLabel(day));
    const isSoon = previous && this.entry.timestamp - previous.timestamp < GROUP_MS;
    const follows = !isNewDay && isSoon && previous.from === this.entry.from;
    this.element.classList.toggle("follows", follows);
  }

  refreshTime() {
    const edited = this.entry.edited && !this.entry.deleted ? " · edited" : "";
    this.#when.textContent = timeLabel(this.entry.timestamp) + edited;
  }
}

// ------------------------------------------------------------------------------------- one room

/** Shows one timeline, and keeps what one looks at where it is. */
class RoomView {
  element = clone("view");
  unread = 0;
  #list = this.element.querySelector(".messages");
  #loading = this.element.querySelector(".loading");
  #trouble = this.element.querySelector(".trouble");
  #beginning = this.element.querySelector(".beginning");
  #myName;
  #onChange;
  #rows = new Map();
  #shown = [];
  #isAtBottom = true;
  #scrollTop = 0;

  constructor(room, myName, onChange) {
    this.room = room;
    this.#myName = myName;
    this.#onChange = onChange;
    this.timeline = room.timeline("message", { pageSize: PAGE_SIZE });
    this.element.setAttribute("aria-label", `Messages in ${room.name}`);
    this.#beginning.querySelector("p").textContent = `Everything ever said in ${room.name} is below.`;
    this.element.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.element.addEventListener("click", (event) => this.#clicked(event));
    // The box grows, a phone's keyboard opens: whoever reads the newest message goes on seeing it.
    let width = 0;
    new ResizeObserver(() => {
      // In another width the rows have other heights than those that far blocks keep.
      if (width !== this.element.clientWidth) {
        width = this.element.clientWidth;
        for (const block of this.#list.querySelectorAll(".far")) block.classList.remove("far");
      }
      if (this.#isAtBottom) this.scrollToEnd();
    }).observe(this.element);
    this.timeline.subscribe(() => this.#render());
    this.#render();
  }

  get isAtBottom() {
    return this.#isAtBottom;
  }

  get entries() {
    return this.#shown;
  }

  show() {
    this.element.hidden = false;
    // A hidden element has no scroll position; what came in meanwhile could not be measured.
    this.element.scrollTop = this.#isAtBottom ? this.element.scrollHeight : this.#scrollTop;
    this.#scrolled();
  }

  hide() {
    this.element.hidden = true;
  }

  scrollToEnd() {
    // Now, not when the scroll event comes: what is rendered before that is to be seen, too.
    this.#isAtBottom = true;
    this.element.scrollTop = this.element.scrollHeight;
  }

  /** Relative times grow old; those above an hour do not change any more. */
  refreshTimes() {
    for (let index = this.#shown.length - 1; index >= 0; index -= 1) {
      const entry = this.#shown[index];
      if (entry.status === "recorded" && Date.now() - entry.timestamp > HOUR_MS + 60_000) break;
      this.#rows.get(entry.uid).refreshTime();
    }
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    if (clientHeight === 0) return; // hidden
    this.#scrollTop = scrollTop;
    this.#isAtBottom = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
    if (this.#isAtBottom && !document.hidden) this.unread = 0;
    this.#loadIfNearTop();
    this.#onChange(this);
  }

  #loadIfNearTop() {
    const { hasOlder, loading, error, gaps } = this.timeline.getSnapshot();
    // After a failure only the button asks again: here it would hammer a server in trouble.
    const isBlocked = error || gaps.some((gap) => gap.reason === "tier_unavailable");
    const isHidden = this.element.clientHeight === 0;
    if (hasOlder && !loading && !isBlocked && !isHidden && this.element.scrollTop < NEAR_TOP_PX) {
      this.timeline.loadOlder();
    }
  }

  #clicked(event) {
    const action = event.target.dataset?.do;
    const uid = event.target.closest("[data-uid]")?.dataset.uid;
    if (action === "retry") this.timeline.retry(uid);
    if (action === "discard") this.timeline.discard(uid);
    if (action === "older") this.timeline.loadOlder();
  }

  #render() {
    const snapshot = this.timeline.getSnapshot();
    const anchor = this.#isAtBottom ? null : this.#firstVisible();
    const top = anchor?.getBoundingClientRect().top;

    const added = this.#updateRows(snapshot.entries);
    this.#updateEdge(snapshot);

    // Whatever came in above, below, or both: the message at the top of the viewport stays there.
    if (!anchor) this.scrollToEnd();
    else if (anchor.isConnected) this.element.scrollTop += anchor.getBoundingClientRect().top - top;
    if (this.element.clientHeight) this.#scrollTop = this.element.scrollTop; // hidden, it would be 0

    this.unread += added;
    if (this.#isAtBottom && !document.hidden && !this.element.hidden) this.unread = 0;
    this.#onChange(this);
    if (!snapshot.loading) this.#loadIfNearTop();
  }

  /** The first message (if any) that reaches into the viewport; by halves, there may be many thousands. */
  #firstVisible() {
    const edge = this.element.getBoundingClientRect().top;
    const reaching = (elements) => {
      let low = 0;
      let high = elements.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (elements[middle].getBoundingClientRect().bottom > edge) high = middle;
        else low = middle + 1;
      }
      return elements[low];
    };
    const block = reaching(this.#list.children);
    return block && reaching(block.children)?.lastElementChild; // without the day above it, which may go
  }

  /** The row after *row* (the first one after null), across blocks. */
  #after(row) {
    if (!row) return this.#list.firstElementChild?.firstElementChild ?? null;
    return row.nextElementSibling ?? row.parentElement.nextElementSibling?.firstElementChild ?? null;
  }

  /** Puts new rows before *next* (null: at the end), in a block of their own where they are a page. */
  #insert(fragment, next) {
    if (!fragment.firstElementChild) return;
    const last = this.#list.lastElementChild;
    const startsBlock = next && !next.previousElementSibling && fragment.childElementCount >= PAGE_SIZE / 2;
    if (next && !startsBlock) next.before(fragment);
    else if (!next && last && last.childElementCount < BLOCK_ROWS) last.append(fragment);
    else {
      const block = document.createElement("ol");
      block.className = "block";
      block.append(fragment);
      // Far from the eye a block is not rendered, and keeps the height that it has had.
      const far = next?.parentElement.nextElementSibling;
      if (far && !far.classList.contains("far")) {
        far.style.containIntrinsicSize = `auto ${far.offsetHeight}px`;
        far.classList.add("far");
      }
      this.#list.insertBefore(block, next?.parentElement ?? null);
    }
  }

  /**
   * Brings the list up to date; returns how many messages of others came in at its end.
   *
   * Entries are immutable, so what is the same object at both ends needs no look: a page, a new
   * message or a changed status costs what it brings, however much is loaded.
   */
  #updateRows(entries) {
    const before = this.#shown;
    const most = Math.min(before.length, entries.length);
    let head = 0;
    while (head < most && before[head] === entries[head]) head += 1;
    let tail = 0;
    while (tail < most - head && before.at(-1 - tail) === entries.at(-1 - tail)) tail += 1;
    this.#shown = entries;
    if (head === before.length && head === entries.length) return 0;

    const changed = entries.slice(head, entries.length - tail);
    const kept = new Set(changed.map((entry) => entry.uid));
    for (const entry of before.slice(head, before.length - tail)) {
      if (kept.has(entry.uid)) continue;
      const { element } = this.#rows.get(entry.uid);
      const block = element.parentElement;
      element.remove();
      if (!block.firstElementChild) block.remove();
      this.#rows.delete(entry.uid);
    }

    // `next` is the row in the document before which the coming ones belong.
    let next = this.#after(head > 0 ? this.#rows.get(entries[head - 1].uid).element : null);
    let fragment = new DocumentFragment();
    let added = 0;
    let isPastOld = head > 0; // what comes after a row shown before is new, not an older page
    for (const entry of changed) {
      const row = this.#rows.get(entry.uid);
      if (row) {
        this.#insert(fragment, next);
        if (row.element === next) next = this.#after(next);
        else if (next) next.before(row.element);
        else this.#list.lastElementChild.append(row.element);
        if (row.entry !== entry) row.update(entry);
        isPastOld = true;
      } else {
        const fresh = new Row(entry, this.#myName);
        this.#rows.set(entry.uid, fresh);
        fragment.append(fresh.element);
        if (isPastOld && entry.from !== this.#myName && entry.status === "recorded") added += 1;
      }
    }
    this.#insert(fragment, next);

    // One further than what changed: that one has another before it now.
    const last = Math.min(entries.length - 1, entries.length - tail);
    for (let index = head; index <= last; index += 1) {
      this.#rows.get(entries[index].uid).place(entries[index - 1]);
    }
    return added;
  }

  #updateEdge({ entries, hasOlder, loading, error, gaps }) {
    const [gap] = gaps;
    let trouble = "";
    if (!loading && error) trouble = "Older messages could not be loaded.";
    else if (!loading && gap?.reason === "tier_unavailable") {
      trouble = "Older messages cannot be read at the moment.";
    }
    this.#loading.hidden = !loading;
    this.#trouble.hidden = !trouble;
    this.#trouble.firstElementChild.textContent = trouble;
    const isEnd = !hasOlder && !loading;
    this.#beginning.hidden = !isEnd;
    if (isEnd) {
      this.#beginning.querySelector("h3").textContent = gap
        ? "Older messages are not available"
        : "This is the beginning of the conversation";
      this.#beginning.querySelector("p").hidden = Boolean(gap) || entries.length === 0;
    }
  }
}

// --------------------------------------------------------------------------------------- typing

/** Who types in one room. Ends by itself: the notice that it has ended may never come. */
class Typing {
  #timers = new Map(); // one per person; each lasts some seconds, which bounds it
  #onChange;

  constructor(room, onChange) {
    this.#onChange = onChange;
    room.on("typing", ({ from, data }) => (data?.is_typing ? this.#add(from) : this.#remove(from)));
    room.on("message", ({ from }) => this.#remove(from));
  }

  #add(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.set(name, setTimeout(() => this.#remove(name), TYPING_SHOWN_MS));
    this.#onChange();
  }

  #remove(name) {
    clearTimeout(this.#timers.get(name));
    if (this.#timers.delete(name)) this.#onChange();
  }

  label(myName) {
    const names = [...this.#timers.keys()].filter((name) => name !== myName);
    if (names.length === 0) return "";
    if (names.length === 1) return `${names[0]} is typing…`;
    if (names.length === 2) return `${names[0]} and ${names[1]} are typing…`;
    return "Several people are typing…";
  }
}

// --------------------------------------------------------------------------------------- the page

const STATES = {
  connecting: "Connecting…",
  connected: "Connected",
  resuming: "Reconnecting…",
  offline: "Offline",
};

async function main() {
  const name = await chooseName();
  paintAvatar($("me-avatar"), name);
  $("me-name").textContent = name;
  $("rename").setAttribute("aria-label", `Change name, now ${name}`);

  const client = createDialogueClient({ url: "", auth: { user_id: name } });
  const rooms = new Map(); // id -> {room, button, typing, view}
  let current = null;

  // ---- connection

  const showState = () => {
    $("state").dataset.state = client.state;
    $("state").firstElementChild.textContent = STATES[client.state];
  };
  client.onState(showState);
  client.onError((error) => {
    if (client.state !== "offline") return; // it goes on trying by itself
    showNotice(`${error.message.replace(/\.?$/, ".")} Reload the page to try again.`);
  });
  showState();

  function showNotice(text) {
    $("notice").textContent = text;
    $("notice").hidden = false;
  }

  // ---- what surrounds the messages

  function showUnread() {
    let all = 0;
    for (const { button, unread, view } of rooms.values()) {
      const count = view ? view.unread : unread;
      all += count;
      const badge = button.querySelector(".badge");
      badge.hidden = count === 0;
      badge.textContent = count > 99 ? "99+" : String(count);
      badge.setAttribute("aria-label", plural(count, "new message", "new messages"));
    }
    document.title = `${all ? `(${all}) ` : ""}${current ? `${current.room.name} · ` : ""}Dialogue`;
  }

  function showAround() {
    const { view } = current;
    const { entries, isAtBottom, unread } = view;
    $("depth").textContent = entries.length ? depthLabel(entries) : "";
    $("jump").hidden = isAtBottom;
    $("jump").classList.toggle("news", unread > 0);
    $("jump").textContent = unread ? plural(unread, "new message", "new messages") : "Latest messages";
    showUnread();
  }

  /** The newest seq counts every recorded event of a room; here all of them are messages. */
  function depthLabel(entries) {
    const newest = entries.findLast((entry) => entry.seq !== null);
    const loaded = entries.length.toLocaleString();
    const all = newest ? ` of ${Math.max(newest.seq, entries.length).toLocaleString()}` : "";
    const day = dayLabel(dayOf(entries[0].timestamp), { short: true });
    return `${loaded}${all} messages, back to ${day}`;
  }

  const showTyping = () => {
    $("typing").textContent = current.typing.label(name);
  };

  $("jump").addEventListener("click", () => {
    current.view.scrollToEnd();
    $("text").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || !current?.view.isAtBottom) return;
    current.view.unread = 0;
    showAround();
  });
  setInterval(() => current?.view.refreshTimes(), 30_000);
  $("rename").addEventListener("click", async () => {
    if ((await chooseName({ again: true })) === name) return;
    const url = new URL(location.href);
    url.searchParams.delete("name");
    location.replace(url); // who one is belongs to the connection: a new name is a new start
  });

  // ---- rooms

  function addRoom(room) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const label = document.createElement("span");
    const badge = document.createElement("span");
    button.type = "button";
    label.className = "label";
    label.textContent = room.name ?? room.id;
    badge.className = "badge";
    badge.hidden = true;
    button.append(label, badge);
    item.append(button);
    $("rooms").append(item);

    const place = { room, button, unread: 0, view: null };
    place.typing = new Typing(room, () => place === current && showTyping());
    rooms.set(room.id, place);
    button.addEventListener("click", () => open(place));
    room.on("message", (message) => {
      if (message.from === name) return;
      if (place === current) $("announcer").textContent = `${message.from}: ${message.data.text}`;
      // A room not opened yet has no timeline that would count.
      if (!place.view) {
        place.unread += 1;
        showUnread();
      }
    });
    room.onLeft((reason) => showNotice(`You are no longer in ${room.name} (${reason}).`));
    return place;
  }

  function open(place) {
    if (place === current) return;
    stopTyping();
    current?.view.hide();
    current?.button.removeAttribute("aria-current");
    current = place;
    place.button.setAttribute("aria-current", "true");
    place.button.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (!place.view) {
      place.view = new RoomView(place.room, name, (view) => {
        if (view === current.view) showAround();
        else showUnread();
      });
      $("views").append(place.view.element);
    }
    place.view.show();
    $("title").textContent = place.room.name;
    $("text").placeholder = `Message ${place.room.name}`;
    showAround();
    showTyping();
    history.replaceState(null, "", `#${encodeURIComponent(place.room.id)}`);
  }

  // ---- writing

  const text = $("text");
  let typingSentAt = 0;

  // Typing is worth telling only now: while reconnecting it would wait and then be untrue.
  const tellTyping = (isTyping) => {
    if (client.connected) current.room.trigger("typing", { is_typing: isTyping }).catch(() => {});
  };

  function stopTyping() {
    if (typingSentAt && current) tellTyping(false);
    typingSentAt = 0;
  }

  function fitBox() {
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight}px`;
    const left = MAX_LENGTH - text.value.length;
    $("left").textContent = left < 200 ? plural(left, "character left", "characters left") : "";
    $("send").disabled = !current || text.value.trim() === "";
  }

  text.addEventListener("input", () => {
    fitBox();
    if (!current) return;
    if (text.value.trim() === "") stopTyping();
    else if (Date.now() - typingSentAt > TYPING_SENT_EVERY_MS) {
      typingSentAt = Date.now();
      tellTyping(true);
    }
  });
  text.addEventListener("keydown", (event) => {
    // While an input method composes, Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const written = text.value.trim();
    if (!current || written === "") return;
    try {
      current.view.timeline.send({ text: written });
    } catch (error) {
      showNotice(error.message); // too many wait already; what was written stays in the box
      return;
    }
    typingSentAt = 0; // the message itself ends the typing line of the others
    $("notice").hidden = true;
    text.value = "";
    fitBox();
    current.view.scrollToEnd();
    text.focus();
  });
  fitBox();

  // ---- start

  await client.connect();
  const listed = (await client.listRooms()).slice(0, MAX_ROOMS);
  // No sync: a timeline asks for its first page itself, and only once its room is opened.
  const joined = await Promise.allSettled(listed.map(({ id }) => client.join(id, { sync: 0 })));
  for (const { status, value } of joined) if (status === "fulfilled") addRoom(value);
  const wanted = decodeURIComponent(location.hash.slice(1));
  const first = rooms.get(wanted) ?? rooms.values().next().value;
  if (!first) return showNotice("There is no room here that you may enter.");
  open(first);
  fitBox();
  if (matchMedia("(hover: hover)").matches) text.focus(); // not on phones: the keyboard would open
}

main().catch((error) => {
  $("notice").textContent = error.message;
  $("notice").hidden = false;
});
