/** Who one is. The demo has no accounts: the server believes the name. */
import { $, ask } from "./helpers.js";

const KEY = "dialogue-demo-name";
const MAX_LENGTH = 40;

function suggestion() {
  const pick = (list) => list[Math.floor(Math.random() * list.length)];
  const first = ["Quiet", "Bright", "Gentle", "Swift", "Curious", "Patient", "Merry", "Clever"];
  const second = ["Otter", "Heron", "Maple", "Comet", "Badger", "Willow", "Falcon", "Harbor"];
  return `${pick(first)} ${pick(second)}`;
}

/** Kept in sessionStorage, not localStorage: two windows are two people. */
function stored(name) {
  try {
    if (name !== undefined) sessionStorage.setItem(KEY, name);
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // storage may be forbidden; the name then lasts as long as the page
  }
}

export async function chooseName({ again = false } = {}) {
  const given = new URLSearchParams(location.search).get("name")?.trim() || stored();
  if (given && !again) return given.slice(0, MAX_LENGTH);
  const field = $("name");
  field.value = given || suggestion();
  const answer = ask($("welcome"));
  field.select();
  if (!(await answer) && again) return given; // Escape
  const name = field.value.trim() || suggestion();
  stored(name);
  return name;
}
