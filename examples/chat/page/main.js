/** The chat: the login, the layout, and the global keys. */

import { Client } from "/hubbub.js";

import { Conversation } from "./conversation.js";
import { confirm } from "./dialogs.js";
import { h, icon, perFrame } from "./dom.js";
import { loginPage, post } from "./login.js";
import { Sidebar } from "./sidebar.js";

const app = document.getElementById("app");
const KNOWN = "hubbub-user"; // So that the chat also opens without a network, and shows unsent messages.

const WORDS = {
  connecting: "Connecting…",
  catching_up: "Catching up…",
  waiting: "No connection. What you write is sent as soon as there is one.",
  idle: "Connecting…",
};

/** If the browser blocks storage, the chat only opens with a network. */
function known() {
  try {
    return localStorage.getItem(KNOWN);
  } catch {
    return null;
  }
}

function remember(userId) {
  try {
    if (userId) localStorage.setItem(KNOWN, userId);
    else localStorage.removeItem(KNOWN);
  } catch {
    // As above.
  }
}

async function start() {
  let response = null;
  try {
    response = await fetch("/api/me");
  } catch {
    // Without a network the last user is assumed.
  }
  if (response?.status === 401) return logIn();
  const userId = response?.ok ? (await response.json()).id : known();
  if (userId) enter(userId);
  else logIn("The server does not answer.");
}

function logIn(words) {
  remember(null);
  document.title = "hubbub";
  history.replaceState(null, "", "/");
  app.replaceChildren(loginPage({ words, entered: enter }));
}

function enter(userId) {
  remember(userId);
  const session = new AbortController(); // Removes the listeners of this user.
  const { signal } = session;
  // A separate name for each user, so that nothing is sent as another user.
  const client = new Client({ url: "/chat", userId, name: userId });
  globalThis.chat = client; // For the console of the browser.

  const open = (room) => {
    location.hash = `#${room.id}`;
    show(room);
  };
  const back = () => {
    location.hash = "";
  };
  let isLeaving = false;
  const logOut = async () => {
    isLeaving = true;
    try {
      await post("/api/logout");
    } catch (refused) {
      isLeaving = false;
      if (client.state === "stopped") return ended(client.reason);
      if (await confirm("You are still logged in", `The server did not end your session: ${refused.message}`, "Try again")) logOut();
      return;
    }
    client.stop();
    session.abort();
    await client.clear();
    logIn();
  };
  const ended = (reason) => {
    client.stop();
    session.abort();
    logIn(reason.code === 4401 ? "Your session has ended. Please log in again." : (reason.detail ?? "The server has ended the connection."));
  };
  const sidebar = new Sidebar(client, { onopen: open, onlogout: logOut });
  const conversation = new Conversation(client, { onback: back, signal });
  const nothing = h("main", { className: "nothing" }, h("img", { src: "/icon.svg", alt: "", width: 72, height: 72 }), h("p", {}, "Choose a room, or search for someone to talk to."));
  const shell = h("div", { className: "shell" }, sidebar.element, nothing);
  app.replaceChildren(shell);

  function show(room) {
    if (shell.lastChild === nothing) nothing.replaceWith(conversation.element);
    shell.classList.add("in-room");
    sidebar.current = room;
    conversation.open(room);
  }

  function leaveRoom() {
    if (shell.lastChild !== nothing) conversation.element.replaceWith(nothing);
    shell.classList.remove("in-room");
    sidebar.current = null;
    conversation.close();
    drawTitle();
  }

  function followAddress() {
    const room = client.room(location.hash.slice(1));
    if (room?.role) show(room);
    else if (!location.hash) leaveRoom();
  }

  const drawTitle = perFrame(() => {
    const unread = client.rooms.reduce((sum, room) => sum + (room === conversation.room ? 0 : Math.min(room.unread, 99)), 0);
    const name = document.title.replace(/^\(\d+\+?\) /, "");
    document.title = unread ? `(${unread > 99 ? "99+" : unread}) ${name}` : name;
  });

  let waited = null;
  const drawStatus = () => {
    clearTimeout(waited);
    const words = WORDS[client.state] ?? "";
    const draw = () => {
      conversation.status.replaceChildren(...(words ? [icon(client.state === "waiting" ? "alert" : "clock"), words] : []));
      conversation.status.classList.toggle("shown", Boolean(words));
    };
    // A short interruption is not shown.
    if (words) waited = setTimeout(draw, client.state === "waiting" ? 400 : 1_000);
    else draw();
  };

  client.on("rooms", () => {
    drawTitle();
    if (!conversation.room && location.hash) followAddress();
  });
  client.on("ready", () => {
    if (!location.hash && matchMedia("(min-width: 760px)").matches) openFirst();
  });
  client.on("gone", (room) => room === conversation.room && back());
  client.on("state", (state, reason) => {
    drawStatus();
    if (state === "stopped" && reason && !isLeaving) ended(reason);
  });

  /** On a wide screen the newest room is open at the start. */
  function openFirst() {
    const off = client.on("rooms", () => {
      if (!client.rooms.length) return;
      off();
      if (!location.hash) open(client.rooms[0]);
    });
  }

  addEventListener("hashchange", followAddress, { signal });
  const key = (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "k") {
      sidebar.focusSearch();
    } else if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      const room = sidebar.neighbour(event.key === "ArrowUp" ? -1 : 1);
      if (room) open(room);
    } else {
      return;
    }
    event.preventDefault();
  };
  document.addEventListener("keydown", key, { signal });
  client.start();
  drawStatus();
}

start();
