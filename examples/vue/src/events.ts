// Written by `dialogue types examples.chat.config:dialogue`: change the declarations, and run it again.
// createDialogueClient<Events, SentEvents>({ url }), and then room.on("…", (event) => event.data) is checked.

/** What a message holds. */
export interface Message {
  text: string;
  username: string;
}

/** An event has new data. */
export interface EditData {
  /** The seq of the event. */
  target_seq: number;
  /** The event's name. */
  event: string;
  /** Its data from now on; missing where a later change has made it void. */
  data?: unknown;
}

/** An event has been deleted. */
export interface DeleteData {
  /** The seq of the event. */
  target_seq: number;
  /** The event's name. */
  event: string;
  /** Its sender has been erased, too. */
  erased?: true;
}

/** Data of the events, by name, as it comes. */
export interface Events {
  message: Message;
  typing: unknown;
  "$edit": EditData;
  "$delete": DeleteData;
}

/** Data of the events that clients may trigger, by name, as it is sent. */
export interface SentEvents {
  message: Message;
  typing: unknown;
}
