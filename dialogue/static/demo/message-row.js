/** One message, as an `<li>`. */
import { clockLabel, clone, dayLabel, dayOf, fullLabel, paintAvatar, timeLabel } from "./helpers.js";

const GROUP_MS = 5 * 60_000;
const LONG_CHARACTERS = 1000;
const LONG_LINES = 15;

/** It changes only when its entry does, or the entry before it. */
export class MessageRow {
  element = clone("message");
  article = this.element.querySelector("article");
  #part = (name) => this.element.querySelector(`.${name}`);
  #author = this.#part("author");
  #when = this.#part("when");
  #clock = this.#part("clock");
  #text = this.#part("text");
  #expand = this.element.querySelector("[data-do=expand]");
  #isOwn;
  #previous;
  #isApart = false;

  constructor(entry, isOwn) {
    this.#isOwn = isOwn;
    this.element.dataset.uid = entry.uid;
    this.element.classList.toggle("own", isOwn);
    this.update(entry);
  }

  update(entry) {
    this.entry = entry;
    const isLasting = entry.status === "recorded" && entry.seq !== null && !entry.deleted;
    const text = entry.deleted ? "This message was deleted." : String(entry.data?.text ?? "");
    const { classList } = this.element;
    classList.toggle("sending", entry.status === "sending");
    classList.toggle("failed", entry.status === "failed");
    classList.toggle("gone", Boolean(entry.deleted));

    this.#author.textContent = entry.from;
    paintAvatar(this.#part("avatar"), entry.from);
    this.#text.textContent = text; // never innerHTML: others wrote it
    this.article.ariaLabel = `${entry.from}: ${text.slice(0, 300)}`;
    this.#part("edited").hidden = !entry.edited || Boolean(entry.deleted);
    this.#part("actions").hidden = !this.#isOwn || !isLasting;
    this.#part("fate").hidden = entry.status !== "failed";
    if (entry.status === "failed") {
      this.#part("fate").firstElementChild.textContent = `Not sent: ${entry.error?.message ?? "it was refused"}`;
    }
    this.#fold(text.length > LONG_CHARACTERS || text.split("\n", LONG_LINES + 1).length > LONG_LINES);

    for (const time of [this.#when, this.#clock]) {
      time.dateTime = new Date(entry.timestamp).toISOString();
      time.title = fullLabel(entry.timestamp);
    }
    this.#clock.textContent = clockLabel(entry.timestamp);
    this.refreshTime();
    this.#previous = undefined; // its time may be another now: it has to be placed again
  }

  #fold(isLong) {
    this.#text.classList.toggle("folded", isLong);
    this.#expand.hidden = !isLong;
  }

  expand() {
    this.#fold(false);
    this.article.focus({ preventScroll: true }); // the button that had the focus is gone
  }

  /**
   * Groups it with the entry before it (null: there is none) unless something stands between them,
   * and sets a day apart from the day before.
   */
  place(previous, isApart) {
    if (previous === this.#previous && isApart === this.#isApart) return;
    this.#previous = previous;
    this.#isApart = isApart;
    const day = dayOf(this.entry.timestamp);
    const isNewDay = previous === null || dayOf(previous.timestamp) !== day;
    const heading = this.#part("day");
    heading.hidden = !isNewDay;
    if (isNewDay) heading.firstElementChild.textContent = dayLabel(day);
    const isSoon = previous !== null && this.entry.timestamp - previous.timestamp < GROUP_MS;
    const follows = !isNewDay && !isApart && isSoon && previous.from === this.entry.from;
    this.element.classList.toggle("follows", follows);
  }

  /** "3 minutes ago" grows old. */
  refreshTime() {
    this.#when.textContent = this.entry.status === "sending" ? "sending…" : timeLabel(this.entry.timestamp);
  }
}
