/** The rooms of the user, with a search that also finds people and public rooms. */

import { avatar, bdi, h, icon, iconButton, nameOf, perFrame, roomAvatar, shortTimeOf } from "./dom.js";
import { newRoom, personRow, showProfile, showSessions } from "./dialogs.js";

const SEARCH_AFTER_MILLISECONDS = 150;

export class Sidebar {
  #client;
  #onopen;
  #current = null;
  #nodes = new Map();
  #searching = null;

  constructor(client, { onopen, onlogout }) {
    this.#client = client;
    this.#onopen = onopen;
    this.search = h("input", {
      type: "search",
      placeholder: "Search rooms and people",
      "aria-label": "Search rooms and people",
      "aria-keyshortcuts": "Control+K Meta+K",
      dir: "auto",
      oninput: () => this.#searched(),
      onkeydown: (event) => this.#key(event),
    });
    this.list = h("ul", { className: "rooms", onkeydown: (event) => this.#keyInList(event) });
    this.found = h("div", { className: "found", hidden: true, onkeydown: (event) => this.#keyInList(event) });
    this.me = h("div", { className: "me" });
    const menu = h(
      "div",
      { className: "account" },
      this.me,
      iconButton("person", "Your profile", () => showProfile(client)),
      iconButton("devices", "Your sessions", () => showSessions(client)),
      iconButton("leave", "Log out", onlogout),
    );
    this.element = h(
      "nav",
      { className: "sidebar", "aria-label": "Rooms" },
      h(
        "header",
        { className: "bar" },
        h("label", { className: "search" }, icon("search"), this.search),
        iconButton("add", "New room", () => newRoom(client, onopen)),
      ),
      h("div", { className: "scroll" }, this.list, this.found),
      menu,
    );
    this.update = perFrame(() => this.#update());
    for (const event of ["rooms", "people", "presence", "state", "typing"]) client.on(event, this.update);
    this.update();
  }

  set current(room) {
    this.#current = room;
    this.update();
  }

  focusSearch() {
    this.search.focus();
    this.search.select();
  }

  /** The room above or below the current one. */
  neighbour(step) {
    const { rooms } = this.#client;
    const at = rooms.indexOf(this.#current);
    return rooms[Math.min(rooms.length - 1, Math.max(0, at + step))];
  }

  #update() {
    const client = this.#client;
    const user = client.user(client.userId);
    const states = { live: "Online", catching_up: "Catching up", connecting: "Connecting", waiting: "Offline", stopped: "Offline", idle: "Offline" };
    const name = user ? nameOf(user) : "";
    this.me.replaceChildren(
      avatar(user, client.userId, { online: client.state === "live" }),
      h("span", { className: "words" }, h("strong", {}, bdi(name)), h("span", {}, states[client.state])),
    );
    const rows = client.rooms.map((room) => this.#row(room));
    let next = this.list.firstChild;
    for (const row of rows) {
      if (row === next) next = next.nextSibling;
      else this.list.insertBefore(row, next);
    }
    while (next) {
      const gone = next;
      next = next.nextSibling;
      gone.remove();
    }
    this.element.classList.toggle("empty", !rows.length);
  }

  #row(room) {
    const client = this.#client;
    const { lastMessage: last } = room;
    const partner = room.isDirect ? client.user(room.partnerId) : null;
    const author = last && last.user_id === client.userId ? "You" : room.isDirect ? null : last && nameOf(client.user(last.user_id));
    const waits = room.messages.at(-1)?.status === "sending";
    const typing = room.typing.length > 0;
    const mark = JSON.stringify([
      room.name,
      room.isPrivate,
      nameOf(partner),
      partner?.avatar_url,
      room.isDirect ? client.isOnline(room.partnerId) : null,
      last?.id,
      last?.updated_at,
      author,
      room.unread,
      typing,
      waits,
      room === this.#current,
      last && shortTimeOf(last.created_at),
    ]);
    const known = this.#nodes.get(room);
    if (known?.mark === mark) return known.node;
    const node = known?.node ?? h("li", {});
    const button = node.firstChild ?? h("button", { type: "button", onclick: () => this.#onopen(room) });
    const online = room.isDirect ? client.isOnline(room.partnerId) : undefined;
    const preview = typing
      ? h("span", { className: "preview typing" }, room.isDirect ? "typing…" : h("span", {}, bdi(nameOf(client.user(room.typing[0]))), " is typing…"))
      : h(
          "span",
          { className: "preview" },
          author && last && !last.deleted_at ? h("span", { className: "author" }, bdi(author), ": ") : null,
          last ? h("span", { className: "said", dir: "auto" }, last.deleted_at ? "Message deleted" : last.content.slice(0, 140)) : h("i", {}, "No messages yet"),
        );
    button.replaceChildren(
      room.isDirect ? avatar(partner, room.partnerId, { online }) : roomAvatar(room),
      h(
        "span",
        { className: "words" },
        h("span", { className: "line" }, h("strong", {}, bdi(room.isDirect ? nameOf(partner) : room.name)), last && h("time", { dateTime: last.created_at }, shortTimeOf(last.created_at))),
        h("span", { className: "line" }, preview, waits && icon("clock"), room.unread > 0 && h("span", { className: "badge", "aria-label": `${room.unread} unread` }, room.unread > 99 ? "99+" : `${room.unread}`)),
      ),
    );
    if (room === this.#current) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
    node.className = room.unread ? "unread" : "";
    if (!node.firstChild) node.append(button);
    this.#nodes.set(room, { node, mark });
    return node;
  }

  #searched() {
    const words = this.search.value.trim();
    this.list.hidden = Boolean(words);
    this.found.hidden = !words;
    clearTimeout(this.#searching);
    if (!words) return;
    this.#drawFound(words, [], []);
    this.#searching = setTimeout(async () => {
      const client = this.#client;
      const [people, rooms] = await Promise.all([
        client.searchUsers(words).catch(() => []),
        client.publicRooms(words).catch(() => []),
      ]);
      if (words === this.search.value.trim()) this.#drawFound(words, people, rooms);
    }, SEARCH_AFTER_MILLISECONDS);
  }

  #drawFound(words, people, rooms) {
    const client = this.#client;
    const folded = words.toLocaleLowerCase();
    const label = (room) => (room.isDirect ? nameOf(client.user(room.partnerId)) : room.name);
    const own = client.rooms.filter((room) => label(room).toLocaleLowerCase().includes(folded)).slice(0, 20);
    const choose = (action) => async () => {
      this.search.value = "";
      this.#searched();
      const room = await action();
      if (room) this.#onopen(room);
    };
    const row = (content, action) => h("li", {}, h("button", { type: "button", onclick: choose(action) }, ...content));
    const section = (title, rows) => (rows.length ? [h("h3", {}, title), h("ul", { className: "rooms" }, ...rows)] : []);
    const sections = [
      ...section(
        "Your rooms",
        own.map((room) => row([room.isDirect ? avatar(client.user(room.partnerId), room.partnerId) : roomAvatar(room), h("span", { className: "words" }, h("strong", {}, bdi(label(room))))], () => room)),
      ),
      ...section(
        "People",
        people.filter((user) => user.id !== client.userId).map((user) => row(personRow(client, user), () => client.direct(user.id))),
      ),
      ...section(
        "Public rooms",
        rooms.filter((room) => !client.room(room.id)?.role).map((room) => row([h("span", { className: "avatar room hue-4" }, icon("hash")), h("span", { className: "words" }, h("strong", {}, bdi(room.name)), h("span", {}, bdi(room.description ?? "Join this room")))], () => client.join(room.id))),
      ),
    ];
    this.found.replaceChildren(...(sections.length ? sections : [h("p", { className: "quiet" }, "Nothing found.")]));
  }

  #key(event) {
    if (event.key === "Escape") {
      this.search.value = "";
      this.#searched();
    } else if (event.key === "Enter") {
      (this.search.value ? this.found : this.list).querySelector("button")?.click();
    } else if (event.key === "ArrowDown") {
      (this.search.value ? this.found : this.list).querySelector("button")?.focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  #keyInList(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step || event.altKey) return;
    const buttons = [...event.currentTarget.querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    event.preventDefault();
    (next ?? this.search).focus();
  }
}
