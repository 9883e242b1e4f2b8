/**
 * Shows one timeline, and keeps what one looks at where it is.
 *
 * A timeline is bounded: it drops what is far from where one reads and loads it again, so the
 * list holds at most MAX_ENTRIES rows, however much history is scrolled through.
 */
import { arrange, clone, dayLabel, dayOf } from "./helpers.js";
import { MessageRow } from "./message-row.js";

const PAGE_SIZE = 100;
const MAX_ENTRIES = 600;
const NEAR_EDGE_PX = 800; // more is asked for this long before the edge is reached
const NEAR_BOTTOM_PX = 48; // within this, new messages scroll into view by themselves
const READ_AFTER_MS = 400; // what is seen is marked as read together
const HOUR_MS = 3_600_000;

const GAPS = {
  missed: ["You were away for a while. Some messages are not shown here.", "Show them"],
  tier_unavailable: ["Some messages cannot be read at the moment.", "Try again"],
  retention: ["Older messages are no longer kept.", ""],
  no_seq: ["Older messages cannot be reached from here.", ""],
};

export class MessageList {
  element = clone("view");
  #list = this.element.querySelector(".messages");
  #rows = new Map(); // from an entry's uid
  #gapRows = new Map(); // from where the gap is
  #shown = null; // the snapshot that the page shows
  #room;
  #myId;
  #onChange;
  #onRead;

  #isAtBottom = true;
  /** The first message in view and where it stood: that is where it stays. */
  #anchors = [];
  #pinned = null; // a row that stays where it is before all others
  #lastAsked = "loadOlder"; // for "Try again"
  #filled = null; // the gap that was last filled without being asked

  #marker = clone("marker");
  #unread; // how many were unread when it was opened; 0 once it is known which
  #firstUnread = null; // seq
  #isMarkerOld = false; // it has been seen: what comes next begins anew
  #seenThrough = 0; // seqs: what was in view, and what of it the server knows of
  #readThrough = 0;
  #readTimer = null;
  #stops;

  /**
   * @param unread how many messages in the room are unread
   * @param onChange called after whatever was shown, scrolled or seen
   * @param onRead called with what is left unread, once what was seen is marked
   */
  constructor(room, { myId, unread, onChange, onRead }) {
    this.#room = room;
    this.#myId = myId;
    this.#unread = unread;
    this.#onChange = onChange;
    this.#onRead = onRead;
    this.timeline = room.timeline("message", { pageSize: PAGE_SIZE, maxEntries: MAX_ENTRIES });
    this.element.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    const resized = new ResizeObserver(() => this.#resized());
    resized.observe(this.element);
    this.#stops = [
      this.timeline.subscribe(() => this.#render()),
      room.on("message", (message) => this.#noteNew(message)),
      () => resized.disconnect(),
      () => this.timeline.close(),
    ];
    this.#render();
  }

  /** Whether the newest message is in view. */
  get isAtNewest() {
    return this.#isAtBottom && !this.timeline.getSnapshot().hasNewer;
  }

  /** Whether someone looks at the newest message. */
  get isSeen() {
    return this.isAtNewest && !this.element.hidden && !document.hidden && document.hasFocus();
  }

  /** The day of the first message in view, or an empty string: where there is none, or the day stands above it. */
  get day() {
    const row = this.#firstInView();
    const entry = row && this.#rows.get(row.dataset.uid)?.entry;
    if (!entry) return "";
    const heading = row.querySelector(".day").getBoundingClientRect(); // of no height if it is hidden
    if (heading.height > 0 && heading.bottom > this.element.getBoundingClientRect().top) return "";
    return dayLabel(dayOf(entry.timestamp));
  }

  rowOf(uid) {
    return this.#rows.get(uid) ?? null;
  }

  /** The newest message of one's own that can be changed. */
  get ownNewest() {
    const isOwn = (entry) => entry.from === this.#myId && entry.seq !== null && !entry.deleted;
    return this.#shown.entries.findLast(isOwn) ?? null;
  }

  show() {
    this.element.hidden = false;
    // A hidden element has no scroll position; what came in meanwhile could not be measured.
    if (this.#isAtBottom) this.#scrollToUnread();
    else this.#restorePlace();
    this.#scrolled();
  }

  hide() {
    this.element.hidden = true;
    if (this.#isMarkerOld) this.clearMarker();
  }

  close() {
    clearTimeout(this.#readTimer);
    for (const stop of this.#stops) stop();
    this.element.remove();
  }

  /** Shows the newest messages, which may have to be loaded. */
  async toNewest() {
    if (this.timeline.getSnapshot().hasNewer) await this.timeline.loadNewest();
    this.#render();
    // Now, not when the scroll event comes: what is rendered before that is to be seen, too.
    this.#isAtBottom = true;
    this.#scrollToEnd();
    this.#scrolled();
  }

  clearMarker() {
    if (this.#firstUnread === null) return;
    this.#firstUnread = null;
    this.#unread = 0;
    this.#render();
  }

  retryLoading() {
    this.timeline[this.#lastAsked]();
  }

  /** Fills the gap of that row, downwards: what stands above it stays in its place, so that one reads on there. */
  async fillAt(element) {
    const gap = this.#shown.gaps.find((one) => this.#gapRows.get(keyOf(one)) === element);
    if (!gap) return;
    this.#pinned = element.previousElementSibling;
    await this.timeline.fill(gap);
    this.#render();
    this.#pinned = null;
  }

  /** Those above an hour do not change any more. */
  refreshTimes() {
    const { entries } = this.#shown;
    for (let index = entries.length - 1; index >= 0; index -= 1) {
      if (Date.now() - entries[index].timestamp > HOUR_MS + 60_000) break;
      this.#rows.get(entries[index].uid).refreshTime();
    }
  }

  // ---- unread

  #noteNew({ from, seq }) {
    if (from === this.#myId || this.isSeen) return;
    if (this.#firstUnread !== null && !this.#isMarkerOld) return;
    this.#firstUnread = seq;
    this.#isMarkerOld = false;
  }

  /** A count tells which message is the first unread one, as soon as so many are loaded: then true. */
  #findFirstUnread({ entries, hasOlder, loading }) {
    if (this.#unread === 0 || loading || entries.length === 0) return false;
    const recorded = entries.filter((entry) => entry.seq !== null);
    if (recorded.length >= this.#unread || !hasOlder) {
      this.#firstUnread = recorded.at(-this.#unread)?.seq ?? recorded[0]?.seq ?? null;
      this.#unread = 0;
      return true;
    }
    if (entries.length + PAGE_SIZE > MAX_ENTRIES) {
      this.#unread = 0; // too far up to be shown together with the newest
    } else {
      this.#load("loadOlder");
    }
    return false;
  }

  /** To be called also when the window comes to the front. */
  noteSeen() {
    if (!this.isSeen) return;
    if (this.#firstUnread !== null) this.#isMarkerOld = true;
    this.#seenThrough = this.#shown.entries.findLast((entry) => entry.seq !== null)?.seq ?? 0;
    if (this.#seenThrough <= this.#readThrough) return;
    this.#readTimer ??= setTimeout(async () => {
      await this.#markRead();
      this.#readTimer = null;
    }, READ_AFTER_MS);
  }

  async #markRead() {
    try {
      while (this.#seenThrough > this.#readThrough) {
        const seq = this.#seenThrough;
        const left = await this.#room.markRead(seq);
        this.#readThrough = seq;
        this.#onRead(left);
      }
    } catch (error) {
      // After anything else the next message, or the next look, marks it again.
      if (error.code !== "NOT_JOINED") return;
      // The server keeps no mark of a room that one has only read over plain HTTP: this page alone knows.
      this.#readThrough = this.#seenThrough;
      this.#onRead(0);
    }
  }

  // ---- scrolling

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    if (clientHeight === 0) return; // hidden
    this.#isAtBottom = scrollHeight - scrollTop - clientHeight < NEAR_BOTTOM_PX;
    this.timeline.setFollowing(this.isAtNewest);
    this.#rememberPlace();
    this.#loadIfNear();
    this.noteSeen();
    this.#onChange(this);
  }

  /** The window is turned, a phone's keyboard opens, the box grows: one goes on reading the same. */
  #resized() {
    if (this.element.clientHeight === 0) return;
    if (this.#isAtBottom) this.#scrollToEnd();
    else this.#restorePlace();
  }

  #scrollToEnd() {
    this.element.scrollTop = this.element.scrollHeight;
  }

  /** To the end, but not past the first unread message. */
  #scrollToUnread() {
    this.#scrollToEnd();
    if (!this.#marker.isConnected) return;
    const above = this.#marker.getBoundingClientRect().top - this.element.getBoundingClientRect().top;
    if (above < 0) this.element.scrollTop += above - this.element.clientHeight / 4;
  }

  /** The first row that reaches into view; by halves, there are hundreds. */
  #firstInView() {
    const edge = this.element.getBoundingClientRect().top;
    const rows = this.#list.children;
    let low = 0;
    let high = rows.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle].getBoundingClientRect().bottom > edge) high = middle;
      else low = middle + 1;
    }
    return rows[low] ?? null;
  }

  #rememberPlace() {
    const { top, bottom } = this.element.getBoundingClientRect();
    this.#anchors = [];
    const remember = (element) => this.#anchors.push({ element, top: element.getBoundingClientRect().top - top });
    if (this.#pinned) remember(this.#pinned);
    for (let row = this.#firstInView(); row; row = row.nextElementSibling) {
      // Without the day above a message, which may go. Several: a few may be gone the next time.
      const element = row.querySelector("article") ?? row;
      if (element.getBoundingClientRect().top > bottom) break;
      remember(element);
    }
  }

  #restorePlace() {
    const anchor = this.#anchors.find(({ element }) => element.isConnected);
    if (!anchor) return;
    const top = anchor.element.getBoundingClientRect().top - this.element.getBoundingClientRect().top;
    this.element.scrollTop += top - anchor.top;
  }

  #load(method) {
    this.#lastAsked = method;
    this.timeline[method]();
  }

  #loadIfNear() {
    const { hasOlder, hasNewer, loading, error, gaps } = this.timeline.getSnapshot();
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    // After a failure only the button asks again: here it would hammer a server in trouble.
    if (loading || error || clientHeight === 0) return;
    const isUnreadable = gaps.some(({ reason, afterUid }) => reason === "tier_unavailable" && afterUid === null);
    if (hasOlder && !isUnreadable && scrollTop < NEAR_EDGE_PX) this.#load("loadOlder");
    else if (hasNewer && scrollHeight - scrollTop - clientHeight < NEAR_EDGE_PX) this.#load("loadNewer");
    else this.#fillIfInView(gaps);
  }

  /** Who reads down to a gap need not ask; who comes from below would lose what is in view. */
  #fillIfInView(gaps) {
    if (this.isAtNewest) return;
    const { top, bottom } = this.element.getBoundingClientRect();
    const gap = gaps.find((one) => {
      if (one.reason !== "missed" || one === this.#filled) return false;
      const place = this.#gapRows.get(keyOf(one))?.getBoundingClientRect();
      return place && place.top > (top + bottom) / 2 && place.top < bottom;
    });
    if (!gap) return;
    this.#filled = gap; // once: if it fails, the button is there
    this.fillAt(this.#gapRows.get(keyOf(gap)));
  }

  // ---- rendering

  #render() {
    const snapshot = this.timeline.getSnapshot();
    const isFirst = !this.#shown?.entries.length;
    const wasAtNewest = this.#isAtBottom && !this.#shown?.hasNewer;
    const isHidden = this.element.clientHeight === 0;
    if (!isHidden) this.#rememberPlace();
    this.#shown = snapshot;
    const isFound = this.#findFirstUnread(snapshot);
    this.#showRows(snapshot);
    this.#showEdges(snapshot);
    if (!isHidden) {
      // Whatever came in above, below, or both: the message at the top of the view stays there.
      if (!wasAtNewest) this.#restorePlace();
      else if (isFirst || isFound) this.#scrollToUnread();
      else this.#scrollToEnd();
    }
    this.#scrolled();
    if (isHidden) this.#onChange(this);
  }

  #showRows({ entries, gaps }) {
    const wanted = new Set(); // in order
    const addGaps = (uid) => {
      const here = gaps.filter((gap) => gap.afterUid === uid);
      for (const gap of here) wanted.add(this.#gapRow(gap));
      return here.length > 0;
    };
    let previous = null;
    let isApart = addGaps(null);
    for (const entry of entries) {
      if (entry.seq !== null && entry.seq === this.#firstUnread) {
        wanted.add(this.#marker);
        isApart = true;
      }
      const row = this.#row(entry);
      row.place(previous, isApart);
      wanted.add(row.element);
      isApart = addGaps(entry.uid);
      previous = entry;
    }

    const hadFocus = this.#list.contains(document.activeElement);
    arrange(this.#list, wanted); // a page or a message costs what it brings
    for (const [uid, row] of this.#rows) if (!wanted.has(row.element)) this.#rows.delete(uid);
    for (const [key, element] of this.#gapRows) if (!wanted.has(element)) this.#gapRows.delete(key);
    if (hadFocus && !this.#list.contains(document.activeElement)) this.element.focus({ preventScroll: true });
  }

  #row(entry) {
    let row = this.#rows.get(entry.uid);
    if (!row) this.#rows.set(entry.uid, (row = new MessageRow(entry, entry.from === this.#myId)));
    else if (row.entry !== entry) row.update(entry);
    return row;
  }

  #gapRow(gap) {
    const key = keyOf(gap);
    let element = this.#gapRows.get(key);
    if (!element) this.#gapRows.set(key, (element = clone("gap")));
    const [words, action] = GAPS[gap.reason] ?? GAPS.no_seq;
    element.firstElementChild.textContent = words;
    element.lastElementChild.textContent = action;
    element.lastElementChild.hidden = action === "";
    return element;
  }

  #showEdges({ entries, hasOlder, hasNewer, loading, error, gaps }) {
    const top = this.element.querySelector(".top-edge");
    const bottom = this.element.querySelector(".bottom-edge");
    const part = (edge, name) => edge.querySelector(`.${name}`);
    const isAbove = this.#lastAsked === "loadOlder";
    for (const [edge, isAsked] of [[top, isAbove], [bottom, !isAbove]]) {
      part(edge, "loading").hidden = !(loading && isAsked);
      part(edge, "trouble").hidden = !(error && !loading && isAsked);
    }
    bottom.hidden = !hasNewer;
    const isEnd = !hasOlder && !loading;
    const isCutOff = gaps.some((gap) => gap.afterUid === null); // told in words by its row
    part(top, "beginning").hidden = !isEnd || isCutOff;
    const isEmpty = entries.length === 0;
    part(top, "beginning").querySelector("h2").textContent = isEmpty
      ? "Nothing here yet"
      : "This is the beginning of the conversation";
    part(top, "beginning").querySelector("p").textContent = isEmpty
      ? "Be the first to write something."
      : `Everything ever said in ${this.#room.name ?? this.#room.id} is below.`;
  }
}

const keyOf = (gap) => `${gap.afterUid} ${gap.reason}`;
