/** The box that one writes in: new messages, and changes of one's own. */
import { $, plural, showNotice } from "./helpers.js";

const MAX_LENGTH = 2000;

export class Composer {
  #text = $("text");
  #room = null;
  #drafts = new Map(); // by room id: what was written and not sent
  #edited = null; // the entry that is being changed
  #onSend;
  #onEditLast;

  /**
   * @param onSend called with what was written; throws if it cannot be taken
   * @param onEditLast called for ArrowUp in the empty box
   */
  constructor({ onSend, onEditLast, onEscape }) {
    this.#onSend = onSend;
    this.#onEditLast = onEditLast;
    this.#text.addEventListener("input", () => this.#changed());
    this.#text.addEventListener("keydown", (event) => {
      if (event.isComposing) return; // an input method's keys: Enter chooses a word
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        $("composer").requestSubmit();
      } else if (event.key === "Escape") {
        if (this.#edited) this.stopEditing();
        else onEscape();
      } else if (event.key === "ArrowUp" && this.#text.value === "") {
        event.preventDefault();
        this.#onEditLast();
      }
    });
    $("stop-editing").addEventListener("click", () => this.stopEditing());
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#fit();
  }

  setRoom(room, name) {
    if (this.#room) {
      this.stopEditing({ focus: false });
      this.#drafts.set(this.#room.id, this.#text.value);
      this.#tellTyping(false);
    }
    this.#room = room;
    this.#text.placeholder = `Message ${name}`;
    this.#text.value = this.#drafts.get(room.id) ?? "";
    this.#drafts.delete(room.id);
    this.#fit();
  }

  focus() {
    this.#text.focus();
  }

  edit(entry) {
    if (!this.#edited) this.#drafts.set(this.#room.id, this.#text.value);
    this.#edited = entry;
    this.#text.value = entry.data.text;
    $("editing").hidden = false;
    this.#fit();
    this.#text.focus();
  }

  stopEditing({ focus = true } = {}) {
    if (!this.#edited) return;
    this.#edited = null;
    $("editing").hidden = true;
    this.#text.value = this.#drafts.get(this.#room.id) ?? "";
    this.#drafts.delete(this.#room.id);
    this.#fit();
    if (focus) this.#text.focus();
  }

  /** Drops what was kept for a room that is no more. */
  forget(roomId) {
    this.#drafts.delete(roomId);
  }

  async #submit() {
    const text = this.#text.value.trim();
    const edited = this.#edited;
    if (!this.#room || text === "") return;
    showNotice("");
    this.#tellTyping(false);
    if (edited) {
      this.stopEditing();
      if (text === edited.data.text) return;
      try {
        await this.#room.edit(edited.seq, { ...edited.data, text });
      } catch (error) {
        showNotice(`The message was not changed: ${error.message}.`);
      }
      return;
    }
    try {
      this.#onSend(text);
    } catch (error) {
      showNotice(`${error.message}.`); // too many wait already; what was written stays in the box
      return;
    }
    this.#text.value = "";
    this.#fit();
    this.#text.focus();
  }

  #changed() {
    this.#fit();
    if (!this.#edited) this.#tellTyping(this.#text.value.trim() !== "");
  }

  #tellTyping(isTyping) {
    this.#room?.setTyping(isTyping).catch(() => {}); // nobody misses it
  }

  #fit() {
    this.#text.style.height = "auto";
    this.#text.style.height = `${this.#text.scrollHeight}px`;
    const left = MAX_LENGTH - this.#text.value.length;
    $("left").textContent = left < 200 ? plural(left, "character left", "characters left") : "";
    $("send").disabled = !this.#room || this.#text.value.trim() === "";
  }
}
