/** Reads new messages out, through the page's `role="log"`. */
import { $, plural } from "./helpers.js";

const EVERY_MS = 1000;
const READ_OUT = 3; // of a flood only the number is told
const MAX_LINES = 20;

let waiting = [];

export function announce(line) {
  waiting.push(line);
  if (waiting.length === 1) setTimeout(say, EVERY_MS);
}

function say() {
  const lines = waiting.length <= READ_OUT ? waiting : [plural(waiting.length, "new message", "new messages")];
  waiting = [];
  for (const line of lines) {
    const item = document.createElement("p");
    item.textContent = line;
    $("announcer").append(item);
  }
  while ($("announcer").childElementCount > MAX_LINES) $("announcer").firstElementChild.remove();
}
