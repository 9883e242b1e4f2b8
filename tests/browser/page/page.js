// One room's timeline, and nothing else: what the tests of the client in a real browser look at.
// ?name=Ada&room=general&pageSize=50&maxEntries=1000&backoff=0.1&timeout=30

import { createDialogueClient } from "../dialogue.js";

const query = new URLSearchParams(location.search);
const scroller = document.querySelector("ol");
const field = document.querySelector("input");
const NEAR_PX = 300;

const options = { url: "..", auth: { user_id: query.get("name") ?? "Ada" } };
if (query.has("backoff")) options.backoffSeconds = options.maxBackoffSeconds = Number(query.get("backoff"));
if (query.has("timeout")) options.requestTimeoutSeconds = Number(query.get("timeout"));
const client = createDialogueClient({ ...options, connectTimeoutSeconds: 3 });
client.onState((state) => (document.getElementById("state").textContent = state));

await client.connect();
const room = await client.join(query.get("room") ?? "general");
const timeline = room.timeline("message", {
  pageSize: Number(query.get("pageSize") ?? 50),
  maxEntries: Number(query.get("maxEntries") ?? 1000),
});
Object.assign(window, { client, room, timeline });

/** Rows by uid: a row that stays is the same element. */
const rows = new Map();
let drawn = [];

function fillRow(row, entry) {
  row.dataset.uid = entry.uid;
  row.dataset.status = entry.status;
  if (entry.seq !== null) row.dataset.seq = entry.seq;
  const name = document.createElement("b");
  name.textContent = `${entry.from}: `;
  const text = document.createElement("span");
  text.className = "text";
  text.textContent = entry.deleted ? "(deleted)" : entry.data.text;
  row.replaceChildren(name, text);
  if (entry.edited) row.append(" (edited)");
  if (entry.status !== "failed") return;
  const retry = document.createElement("button");
  retry.textContent = "Retry";
  retry.onclick = () => timeline.retry(entry.uid);
  row.append(retry);
}

function isAtEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 2;
}

function draw() {
  const { entries, hasNewer } = timeline.getSnapshot();
  const follows = isAtEnd() && !hasNewer;
  const top = scroller.getBoundingClientRect().top;
  const kept = new Set(entries.map((entry) => entry.uid));
  const anchor = drawn.find(({ uid }) => kept.has(uid) && rows.get(uid).getBoundingClientRect().bottom > top);
  const before = anchor && rows.get(anchor.uid).getBoundingClientRect().top;

  for (const { uid } of drawn) {
    if (kept.has(uid)) continue;
    rows.get(uid).remove();
    rows.delete(uid);
  }
  const shown = new Map(drawn.map((entry) => [entry.uid, entry]));
  let next = scroller.firstElementChild;
  for (const entry of entries) {
    let row = rows.get(entry.uid);
    if (!row) rows.set(entry.uid, (row = document.createElement("li")));
    if (shown.get(entry.uid) !== entry) fillRow(row, entry);
    if (row === next) next = row.nextElementSibling;
    else scroller.insertBefore(row, next);
  }
  drawn = entries;

  if (follows) scroller.scrollTop = scroller.scrollHeight;
  else if (anchor) scroller.scrollTop += rows.get(anchor.uid).getBoundingClientRect().top - before;
  timeline.setFollowing?.(follows);
}

function loadMore() {
  const { hasNewer } = timeline.getSnapshot();
  timeline.setFollowing?.(isAtEnd() && !hasNewer);
  if (scroller.scrollTop < NEAR_PX) timeline.loadOlder();
  else if (hasNewer && scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_PX) {
    timeline.loadNewer();
  }
}

timeline.subscribe(draw);
scroller.addEventListener("scroll", loadMore);
draw();

document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (field.value) timeline.send({ text: field.value });
  field.value = "";
});
