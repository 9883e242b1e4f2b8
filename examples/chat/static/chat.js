import { createDialogueClient } from "./dialogue/dialogue.js";

const $ = (id) => document.getElementById(id);
const scroller = $("scroller");
const list = $("list");

const NEAR_TOP_PX = 400; // older messages are asked for before the reader reaches the top
const NEAR_BOTTOM_PX = 40; // who reads the newest message goes on seeing the newest

const username =
  new URLSearchParams(location.search).get("name") || prompt("Your name?") || `guest-${Date.now() % 1000}`;

const client = createDialogueClient({ url: "dialogue", auth: { user_id: username } });
client.onState((state) => ($("state").textContent = state));
await client.connect();
const room = await client.join("general");

const rows = new Map(); // from an entry's uid to its <li>

// One list of the history and of everything that comes, without holes or doubles.
const timeline = room.timeline("message", { pageSize: 50 });
timeline.subscribe(render);
scroller.addEventListener("scroll", loadIfNearTop, { passive: true });
render();

/** A part of the history could not be read: it is asked for again when the reader scrolls, not in a loop. */
function isInTrouble({ error, gaps }) {
  return error !== null || gaps.some((gap) => gap.reason === "tier_unavailable");
}

function render() {
  const snapshot = timeline.getSnapshot();
  const { entries, hasOlder, loading } = snapshot;
  const { scrollTop, scrollHeight, clientHeight } = scroller;
  const isAtBottom = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
  const anchor = list.firstElementChild;
  const anchorTop = anchor?.offsetTop;

  let place = list.firstElementChild;
  for (const entry of entries) {
    const row = rowOf(entry);
    if (row === place) place = place.nextElementSibling;
    else list.insertBefore(row, place);
  }
  while (place) {
    const next = place.nextElementSibling;
    rows.delete(place.dataset.uid);
    place.remove();
    place = next;
  }
  if (loading) $("edge").textContent = "Loading…";
  else if (isInTrouble(snapshot)) $("edge").textContent = "Older messages cannot be read now. Scroll to try again.";
  else $("edge").textContent = hasOlder ? "" : "The beginning of the room";

  // What was added above must not move what one reads.
  if (isAtBottom) scroller.scrollTop = scroller.scrollHeight;
  else if (anchor?.isConnected) scroller.scrollTop += anchor.offsetTop - anchorTop;
  if (!isInTrouble(snapshot)) loadIfNearTop();
}

function rowOf(entry) {
  let row = rows.get(entry.uid);
  if (row?.entry === entry) return row;
  if (!row) {
    row = document.createElement("li");
    row.dataset.uid = entry.uid;
    row.append(document.createElement("strong"), ": ", document.createElement("span"), document.createElement("time"));
    row.addEventListener("click", () => row.entry.status === "failed" && timeline.retry(entry.uid));
    rows.set(entry.uid, row);
  }
  row.entry = entry;
  row.className = entry.status;
  row.title = entry.error ? `${entry.error.message}. Click to try again.` : `from ${entry.from}`;
  const [author, text, time] = row.children;
  author.textContent = entry.data.username;
  text.textContent = entry.data.text; // never innerHTML: others wrote it
  time.textContent = new Date(entry.timestamp).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  return row;
}

function loadIfNearTop() {
  const { hasOlder, loading } = timeline.getSnapshot();
  if (hasOlder && !loading && scroller.scrollTop < NEAR_TOP_PX) timeline.loadOlder();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  timeline.send({ text: $("text").value, username });
  $("text").value = "";
  scroller.scrollTop = scroller.scrollHeight;
});
