import { createApp } from "vue";

import Chat from "./Chat.vue";
import { createDialogueClient } from "./dialogue.js";
import type { Events, SentEvents } from "./events.js";

const username = new URLSearchParams(location.search).get("name") ?? `Guest ${Math.floor(Math.random() * 1000)}`;

// One client for the whole page.
const client = createDialogueClient<Events, SentEvents>({
  url: "http://127.0.0.1:3000",
  auth: { user_id: username },
});
client.onError((error) => console.error(error));
client.connect().catch(() => {}); // onError has told it

createApp(Chat, { client, roomId: "general", username }).mount("#root");
