/** Small parts: elements, names, days and times. */

export const $ = (id) => document.getElementById(id);

/** A new copy of what is in the template *name*`-template`. */
export const clone = (name) => $(`${name}-template`).content.firstElementChild.cloneNode(true);

export const plural = (count, one, many) => `${count.toLocaleString()} ${count === 1 ? one : many}`;

/** Makes *wanted*, a Set, the children of *parent*, in its order; what is in its place is not touched. */
export function arrange(parent, wanted) {
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let place = parent.firstElementChild;
  for (const element of wanted) {
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
}

/** A name in a sentence: one that is written from right to left must not turn the sentence round. */
export function bdi(name) {
  const element = document.createElement("bdi");
  element.textContent = name;
  return element;
}

/** A dialog's answer: true after a button with the value "ok", false after Cancel and Escape. */
export function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
  });
}

export function confirmed(title, text) {
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  return ask($("confirm"));
}

/** What stays until it is dismissed or there is something newer. */
export function showNotice(text) {
  $("notice").firstElementChild.textContent = text;
  $("notice").hidden = text === "";
}

// ----------------------------------------------------------------------------------------- names

const letters = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** An emoji may be several code points; half of one is no initial. */
const firstLetters = (word, count) => [...letters.segment(word)].slice(0, count).map(({ segment }) => segment);

function initials(name) {
  const words = name.split(/[^\p{L}\p{N}\p{M}]+/u).filter(Boolean);
  if (words.length === 0) return firstLetters(name.trim(), 1).join("") || "?";
  if (words.length === 1) return firstLetters(words[0], 2).join("").toUpperCase();
  return [words[0], words.at(-1)].flatMap((word) => firstLetters(word, 1)).join("").toUpperCase();
}

export function paintAvatar(element, name) {
  let hash = 0;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 100_003;
  element.style.setProperty("--hue", String((hash * 47) % 360));
  element.textContent = initials(name);
}

// --------------------------------------------------------------------------------- days and times

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const fullFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const dayFormat = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const oldDayFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const relativeFormat = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });

export const dayOf = (timestamp) => new Date(timestamp).setHours(0, 0, 0, 0);
export const clockLabel = (timestamp) => clockFormat.format(timestamp);
export const fullLabel = (timestamp) => fullFormat.format(timestamp);

export function dayLabel(day) {
  const ago = Math.round((dayOf(Date.now()) - day) / 86_400_000); // rounded: a day may have 23 hours
  if (ago >= 300) return oldDayFormat.format(day);
  if (ago >= 2) return dayFormat.format(day);
  const label = relativeFormat.format(-ago, "day");
  return label.charAt(0).toUpperCase() + label.slice(1);
}

export function timeLabel(timestamp) {
  const minutes = Math.floor((Date.now() - timestamp) / 60_000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return relativeFormat.format(-minutes, "minute");
  return clockFormat.format(timestamp);
}
