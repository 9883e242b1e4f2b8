import { createDialogueClient } from "./dialogue/dialogue.js";

const $ = (id) => document.getElementById(id);
const scroller = $("scroller");
const tell = (error) => alert(error.message);
const isSeen = () => isAtEnd && !document.hidden && document.hasFocus(); // the newest message, by someone
const NEAR_EDGE_PX = 400; // more is asked for before the reader reaches the edge
const NEAR_END_PX = 40; // who reads the newest message goes on seeing the newest
const STATES = { connecting: "connecting…", connected: "connected", resuming: "reconnecting…", offline: "offline" };
const GAPS = { missed: "Messages are missing here.", tier_unavailable: "Messages cannot be read at the moment." };

const username =
  new URLSearchParams(location.search).get("name") || prompt("Your name?") || `guest-${Date.now() % 1000}`;
const client = createDialogueClient({ url: "dialogue", auth: { user_id: username } });
client.onState((state) => {
  $("state").textContent = STATES[state] + (client.transport === "sse" ? " over plain HTTP" : "");
});
await client.connect();
const room = await client.join("general");

// One list of the history and of everything that comes, in order, without doubles. It is bounded: what is far from
// where one reads is dropped and loaded again.
const timeline = room.timeline("message", { pageSize: 50, maxEntries: 500 });
const typing = room.typingUsers();
const rows = new Map(); // from an entry's uid, or a gap's place, to its <li>
let changed = null; // the entry that is being changed
let isAtEnd = true;
let unread = 0;
let firstUnread = null; // seq: above it goes the line

timeline.subscribe(render);
scroller.addEventListener("scroll", scrolled, { passive: true });
for (const type of ["focus", "visibilitychange"]) addEventListener(type, scrolled);
typing.subscribe(() => {
  const names = typing.getSnapshot();
  $("typing").textContent = names.length ? `${names.slice(0, 3).join(", ")}: typing…` : "";
});
room.on("message", (message) => {
  if (message.from === client.userId) return;
  $("announcer").textContent = `${message.data.username}: ${message.data.text}`;
  if (!isSeen() && unread++ === 0) firstUnread = message.seq;
  scrolled();
});
render();

function render() {
  const { entries, gaps, hasOlder, loading, error } = timeline.getSnapshot();
  const first = [...$("list").children].find((row) => row.offsetTop + row.offsetHeight > scroller.scrollTop);
  const top = first?.offsetTop;
  const wanted = new Set(); // <li>s, in order
  const addGaps = (uid) => gaps.filter(({ afterUid }) => afterUid === uid).forEach((gap) => wanted.add(gapRow(gap)));
  addGaps(null);
  for (const entry of entries) {
    wanted.add(rowOf(entry));
    addGaps(entry.uid);
  }
  for (const [key, row] of rows) if (!wanted.has(row)) rows.delete(key) && row.remove();
  let next = $("list").firstElementChild;
  for (const row of wanted) {
    if (row === next) next = next.nextElementSibling;
    else $("list").insertBefore(row, next);
  }
  if (loading) $("edge").textContent = "Loading…";
  else if (error) $("edge").textContent = "Messages cannot be loaded now. Scroll to try again.";
  else $("edge").textContent = hasOlder ? "" : "The beginning of the room";

  // What came in above or went there must not move what one reads.
  if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
  else if (first?.isConnected) scroller.scrollTop += first.offsetTop - top;
  if (!error) scrolled();
}

function scrolled() {
  const { hasOlder, hasNewer, loading, gaps } = timeline.getSnapshot();
  const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  isAtEnd = left < NEAR_END_PX && !hasNewer;
  timeline.setFollowing(isAtEnd);
  if (isSeen()) unread = 0; // the line stays until another message is unread
  document.title = `${unread ? `(${unread}) ` : ""}General Chat`;
  $("jump").textContent = unread ? `${unread} new ↓` : "Newest messages ↓";
  $("jump").hidden = isAtEnd;
  if (loading) return;
  const isBlocked = gaps.some(({ reason, afterUid }) => reason === "tier_unavailable" && afterUid === null);
  if (hasOlder && !isBlocked && scroller.scrollTop < NEAR_EDGE_PX) timeline.loadOlder();
  else if (hasNewer && left < NEAR_EDGE_PX) timeline.loadNewer();
}

function rowOf(entry) {
  const row = rows.get(entry.uid) ?? $("row").content.firstElementChild.cloneNode(true);
  rows.set(entry.uid, row);
  if (row.entry !== entry) show(row, entry);
  row.classList.toggle("unread", entry.seq !== null && entry.seq === firstUnread);
  return row;
}

function show(row, entry) {
  const { uid, status, deleted, edited, error, data, from, seq, timestamp } = entry;
  row.entry = entry;
  row.dataset.uid = uid;
  row.className = `${status} ${deleted ? "deleted" : ""} ${from === client.userId && seq !== null ? "own" : ""}`;
  row.title = `from ${from}`;
  row.querySelector("bdi").textContent = data?.username ?? from;
  row.querySelector(".text").textContent = deleted ? "deleted" : data.text; // never innerHTML: others wrote it
  row.querySelector("time").textContent = new Date(timestamp).toLocaleString();
  row.querySelector(".fate").textContent = error ? `Not sent: ${error.message}.` : edited ? "edited" : "";
}

function gapRow(gap) {
  const key = `gap ${gap.afterUid} ${gap.reason}`;
  const row = rows.get(key) ?? $("gap").content.firstElementChild.cloneNode(true);
  rows.set(key, row);
  row.gap = gap;
  row.firstElementChild.textContent = GAPS[gap.reason] ?? "Older messages are no longer there.";
  row.lastElementChild.hidden = !(gap.reason in GAPS); // nothing can be done
  return row;
}

$("list").addEventListener("click", async ({ target }) => {
  const what = target.dataset.do;
  const { entry, gap } = target.closest("li") ?? {};
  if (what === "fill") timeline.fill(gap);
  if (what === "retry") timeline.retry(entry.uid);
  if (what === "discard") timeline.discard(entry.uid);
  if (what === "delete" && confirm("Delete this message?")) room.delete(entry.seq).catch(tell);
  if (what === "edit") edit(entry);
});
$("jump").addEventListener("click", toNewest);
$("text").addEventListener("input", () => room.setTyping($("text").value !== "").catch(() => {}));
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value;
  if (changed) room.edit(changed.seq, { ...changed.data, text }).catch(tell);
  else timeline.send({ text, username }) && toNewest();
  edit(null);
});
$("text").addEventListener("keydown", (event) => event.key === "Escape" && edit(null));

function edit(entry) {
  changed = entry;
  $("text").value = entry?.data.text ?? "";
  $("send").textContent = entry ? "Change" : "Send";
  $("text").focus();
}

async function toNewest() {
  if (timeline.getSnapshot().hasNewer) await timeline.loadNewest();
  isAtEnd = true;
  render();
}
