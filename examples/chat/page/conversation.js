/** One room on the screen: its messages, the typing users, and the field to write in. */

import { announce, avatar, bdi, dayKey, dayOf, h, hourOf, icon, iconButton, nameOf, paragraphs, perFrame, roomAvatar } from "./dom.js";
import { confirm, editRoom, showMembers, showReaders } from "./dialogs.js";
import { VirtualList } from "./list.js";

const LONGEST = 20_000;
const GROUP_MILLISECONDS = 5 * 60_000;
const COLLAPSED = 1_500; // Longer messages are folded, as are messages of many lines.
const COLLAPSED_LINES = 30;
const READERS_WITHIN = 200; // The newest messages that show who has read up to them.
const OLDER_WITHIN = 1_200; // The distance to the beginning, in pixels, at which the next page is loaded.
const PAGE = 100;

const REASONS = {
  "already-in-use": "its id is taken",
  forbidden: "you may not write here",
  "not-a-member": "you are no longer a member",
  "not-found": "the room is gone",
  "too-large": "it is too long",
};

const RECEIPTS = { sending: ["clock", "Sending"], sent: ["check", "Sent"], failed: ["alert", "Not sent"] };

/** The part of a text that is shown at first. Each line costs an element. */
function beginning(text) {
  return text.split("\n", COLLAPSED_LINES).join("\n").slice(0, COLLAPSED).replace(/[\ud800-\udbff]$/, "");
}

export class Conversation {
  #client;
  #room = null;
  #items = new WeakMap();
  #unreadFrom = null;
  #drafts = new Map();
  #unfolded = new Set();
  #quoted = null;
  #edited = null;
  #focusedKey = null;
  #list;
  #wasAtEnd = true;
  #staysUnread = false;
  #fresh = 0;
  #complaining = null;
  #watched = "";

  constructor(client, { onback, signal }) {
    this.#client = client;
    this.title = h("div", { className: "title" });
    this.scroller = h("div", { className: "scroller", tabIndex: 0, role: "group", "aria-label": "Messages, arrow keys go through them" });
    this.typing = h("div", { className: "typing", "aria-live": "off" });
    this.newest = h("button", { type: "button", className: "newest", hidden: true, onclick: () => this.toNewest() });
    this.banner = h("div", { className: "banner", hidden: true });
    this.field = h("textarea", {
      rows: 1,
      dir: "auto",
      placeholder: "Message",
      "aria-label": "Message",
      autocomplete: "off",
      enterKeyHint: "send",
      oninput: () => this.#typed(),
      onkeydown: (event) => this.#key(event),
    });
    this.count = h("span", { className: "count", "aria-live": "polite" });
    this.submit = h("button", { type: "submit", className: "send", title: "Send", "aria-label": "Send" }, icon("send"));
    const composer = h(
      "form",
      {
        className: "composer",
        onsubmit: (event) => {
          event.preventDefault();
          this.#submit();
        },
      },
      this.banner,
      h("div", { className: "field" }, this.field, this.count, this.submit),
    );
    this.status = h("div", { className: "status", role: "status" });
    this.notice = h("div", { className: "status", role: "alert" });
    this.element = h(
      "main",
      { className: "conversation" },
      h(
        "header",
        { className: "bar" },
        iconButton("back", "Back to the rooms", onback, { className: "icon-button back" }),
        this.title,
      ),
      this.status,
      this.notice,
      h("section", { className: "messages", "aria-label": "Messages" }, this.scroller, this.newest),
      this.typing,
      composer,
    );
    this.#list = new VirtualList(this.scroller, { render: (item) => this.#draw(item), scrolled: () => this.#scrolled() });
    this.scroller.addEventListener("keydown", (event) => this.#keyInList(event));
    this.update = perFrame(() => this.#update());
    client.on("messages", (room) => room === this.#room && this.update());
    client.on("typing", (room) => room === this.#room && this.#drawTyping());
    client.on("people", () => this.update());
    client.on("presence", () => this.#drawTitle());
    client.on("rooms", () => this.#watch());
    client.on("message", (room, message) => room === this.#room && this.#arrived(message));
    document.addEventListener("visibilitychange", () => this.#markRead(), { signal });
    window.addEventListener("focus", () => this.#markRead(), { signal });
  }

  get room() {
    return this.#room;
  }

  async open(room) {
    if (room === this.#room) return;
    this.#keepDraft();
    this.#room?.forgetOlder(PAGE);
    this.#room = room;
    this.#fresh = 0;
    this.#focusedKey = null;
    this.#staysUnread = false;
    this.#unreadFrom = room.unread ? room.lastReadSeq : null;
    this.#leaveBanner();
    this.field.value = this.#drafts.get(room.id) ?? "";
    this.#grow();
    this.#list.clear();
    this.#watch();
    this.#update();
    if (matchMedia("(hover: hover)").matches) this.field.focus();
    try {
      await room.load();
      if (!room.isDirect || !room.members.size) await room.loadMembers();
    } catch {
      // Without a connection the loaded messages are shown, and the client loads the room after it reconnects.
    }
  }

  close() {
    this.#keepDraft();
    this.#room?.forgetOlder(PAGE);
    this.#room = null;
    this.#list.clear();
    this.#watch();
  }

  /** The presence of the members of this room, and of the newest direct rooms, which the list of rooms shows. */
  #watch() {
    const direct = this.#client.rooms.filter((room) => room.isDirect && room !== this.#room);
    const ids = [...(this.#room ? [this.#room] : []), ...direct].slice(0, this.#client.limits.watched_rooms ?? 10).map((room) => room.id);
    const mark = [...ids].sort().join();
    if (mark === this.#watched) return;
    this.#watched = mark;
    this.#client.watch(ids);
  }

  toNewest() {
    this.#staysUnread = false;
    this.#fresh = 0;
    this.#list.toEnd();
    this.#drawNewest();
    this.#markRead();
  }

  // ------------------------------------------------------------------------------------------------------ the list

  #update() {
    if (!this.#room) return;
    this.#drawTitle();
    this.#drawTyping();
    this.#list.set(this.#itemsOf(this.#room));
    this.element.classList.toggle("loading", !this.#room.isLoaded);
    this.#drawNewest();
    this.#markRead();
    this.#scrolled();
  }

  /** Messages, days, and the line above unread messages. An item is a new object only if it looks different. */
  #itemsOf(room) {
    const items = [];
    const messages = room.messages.filter((message) => !message.deleted_at || message.reply_to || message.seq !== null);
    const readers = this.#readersOf(room, messages);
    if (room.hasOlder) items.push({ key: "-older", kind: "older", mark: "", guess: 56 });
    else if (room.isLoaded) items.push({ key: "-beginning", kind: "beginning", mark: [room.name, room.description, room.isPrivate].join("|"), guess: 150 });
    let previous = null;
    let hasLine = false;
    for (let at = 0; at < messages.length; at++) {
      const message = messages[at];
      const next = messages[at + 1];
      const day = dayKey(message.created_at);
      const isNewDay = !previous || dayKey(previous.created_at) !== day;
      if (isNewDay) items.push({ key: `-day ${day}`, kind: "day", mark: dayOf(message.created_at), day: message.created_at, guess: 44 });
      const isUnread = this.#unreadFrom !== null && message.seq > this.#unreadFrom && message.user_id !== this.#client.userId;
      const isFirstUnread = isUnread && !hasLine;
      if (isFirstUnread) {
        hasLine = true;
        items.push({ key: "-unread", kind: "unread", mark: "", guess: 36 });
      }
      const isFirst = isNewDay || isFirstUnread || !this.#isGroup(previous, message);
      const isLast = !next || !this.#isGroup(message, next) || dayKey(next.created_at) !== day;
      const author = this.#client.user(message.user_id);
      const target = message.reply_to ? room.message(message.reply_to) : null;
      const mark = [
        isFirst ? "f" : "",
        isLast ? "l" : "",
        nameOf(author),
        author?.avatar_url,
        readers.get(message.id)?.join() ?? "",
        target ? target.updated_at : "",
        this.#isRead(message),
        this.#unfolded.has(message.id),
        this.#edited === message.id,
      ].join("|");
      let item = this.#items.get(message);
      if (item?.mark !== mark) {
        item = { key: message.id, kind: "message", message, mark, isFirst, isLast, readers: readers.get(message.id) ?? [] };
        item.guess = Math.min(420, 42 + 21 * Math.floor(message.content.length / 60)) + (isFirst ? 20 : 0);
        this.#items.set(message, item);
      }
      items.push(item);
      previous = message;
    }
    return items;
  }

  #isGroup(a, b) {
    return a.user_id === b.user_id && new Date(b.created_at) - new Date(a.created_at) < GROUP_MILLISECONDS;
  }

  /** The readers by the last message that they have read, below which their pictures are shown. */
  #readersOf(room, messages) {
    const readers = new Map();
    if (room.isDirect || room.members.size > 50) return readers; // A direct room shows a second check instead.
    const oldest = Math.max(0, messages.length - READERS_WITHIN);
    for (const [userId, seq] of room.readMarks) {
      let at = messages.length - 1;
      while (at >= oldest && (messages[at].seq ?? Infinity) > seq) at--;
      if (at < oldest) continue;
      const { id } = messages[at];
      readers.set(id, [...(readers.get(id) ?? []), userId]);
    }
    return readers;
  }

  #isRead({ seq }) {
    return this.#room.isDirect && seq !== null && seq <= (this.#room.readMarks.get(this.#room.partnerId) ?? 0);
  }

  #draw(item) {
    if (item.kind === "older") return h("li", { className: "older" }, h("span", { className: "spinner" }), "Loading earlier messages");
    if (item.kind === "day") return h("li", { className: "day" }, h("span", {}, dayOf(item.day)));
    if (item.kind === "unread") return h("li", { className: "unread-line" }, h("span", {}, "New"));
    if (item.kind === "beginning") return this.#drawBeginning();
    return this.#drawMessage(item);
  }

  #drawBeginning() {
    const room = this.#room;
    const user = room.isDirect ? this.#client.user(room.partnerId) : null;
    const picture = room.isDirect ? avatar(user, room.partnerId) : roomAvatar(room);
    picture.classList.add("large");
    const words = room.isDirect ? "This is the beginning of your conversation." : (room.description ?? "This is the beginning of the room.");
    const name = room.isDirect ? nameOf(user) : room.name;
    return h("li", { className: "beginning" }, picture, h("h2", {}, bdi(name)), h("p", { dir: "auto" }, words));
  }

  #drawMessage({ message, isFirst, isLast, readers }) {
    const room = this.#room;
    const isOwn = message.user_id === this.#client.userId;
    const author = this.#client.user(message.user_id);
    const classes = ["message", isOwn ? "own" : "other", message.status, isFirst && "first", isLast && "last"];
    if (message.deleted_at) classes.push("deleted");
    if (this.#edited === message.id) classes.push("in-edit");
    const bubble = h("div", { className: "bubble" });
    if (isFirst && !isOwn && !room.isDirect) {
      bubble.append(h("div", { className: `author hue-text ${avatar(author, message.user_id).classList[1]}` }, bdi(nameOf(author))));
    }
    if (message.reply_to && !message.deleted_at) bubble.append(this.#drawQuote(message.reply_to));
    bubble.append(this.#drawText(message));
    bubble.append(this.#drawMeta(message, isOwn));
    const seen = readers.filter((userId) => userId !== message.user_id);
    const described = `${isOwn ? "You" : nameOf(author)}, ${hourOf(message.created_at)}`;
    return h(
      "li",
      {
        className: classes.filter(Boolean).join(" "),
        tabIndex: -1,
        "data-id": message.id,
        "aria-label": described,
        onfocus: () => (this.#focusedKey = message.id),
      },
      h(
        "div",
        { className: "row" },
        !isOwn && !room.isDirect && (isLast ? avatar(author, message.user_id) : h("span", { className: "avatar none" })),
        bubble,
        !message.deleted_at && message.status === "sent" && this.#drawActions(message, isOwn),
      ),
      message.status === "failed" && this.#drawFailure(message),
      seen.length > 0 && this.#drawReaders(seen),
    );
  }

  #drawText(message) {
    if (message.deleted_at) return h("div", { className: "text" }, h("p", {}, "This message was deleted"));
    const shown = this.#unfolded.has(message.id) ? message.content : beginning(message.content);
    const isLong = shown.length < message.content.length;
    const text = h("div", { className: isLong ? "text folded" : "text" }, paragraphs(shown));
    if (/^\p{Extended_Pictographic}(?:[\p{Extended_Pictographic}\u200d\ufe0f])*$/u.test(message.content) && message.content.length < 10) {
      text.classList.add("emoji");
    }
    if (!isLong) return text;
    const unfold = () => {
      this.#unfolded.add(message.id);
      this.#update();
    };
    return h("div", {}, text, h("button", { type: "button", className: "unfold", onclick: unfold }, "Show all"));
  }

  #drawMeta(message, isOwn) {
    const meta = h("div", { className: "meta" });
    if (message.is_edited && !message.deleted_at) meta.append(h("span", {}, "edited"));
    meta.append(h("time", { dateTime: message.created_at }, hourOf(message.created_at)));
    if (isOwn && !message.deleted_at) {
      const [name, label] = this.#isRead(message) ? ["checks", "Read"] : RECEIPTS[message.status];
      meta.append(h("span", { className: "receipt", role: "img", "aria-label": label, title: label }, icon(name)));
    }
    return meta;
  }

  #drawQuote(id) {
    const target = this.#room.message(id);
    const content = !target ? "An earlier message" : target.deleted_at ? "A deleted message" : target.content;
    const author = target && !target.deleted_at ? nameOf(this.#client.user(target.user_id)) : null;
    return h(
      "button",
      { type: "button", className: "quote", onclick: () => this.#goTo(id), "aria-label": "Go to the message that this one answers" },
      author && h("strong", {}, bdi(author)),
      h("span", { dir: "auto" }, content.slice(0, 200)),
    );
  }

  #drawActions(message, isOwn) {
    const mayDelete = this.#mayDelete(message);
    return h(
      "div",
      { className: "actions" },
      iconButton("reply", "Reply (R)", () => this.#reply(message), { tabIndex: -1 }),
      isOwn && iconButton("edit", "Edit (E)", () => this.#edit(message), { tabIndex: -1 }),
      isOwn && iconButton("eye", "Who has read it (W)", () => showReaders(this.#client, this.#room, message), { tabIndex: -1 }),
      !isOwn && iconButton("unread", "Mark as unread (U)", () => this.#markUnread(message), { tabIndex: -1 }),
      mayDelete && iconButton("trash", "Delete (Del)", () => this.#delete(message), { tabIndex: -1 }),
    );
  }

  #mayDelete({ user_id }) {
    return user_id === this.#client.userId || ["admin", "moderator"].includes(this.#room.role);
  }

  #drawFailure(message) {
    const room = this.#room;
    return h(
      "div",
      { className: "failure", role: "alert" },
      `Not sent: ${REASONS[message.error] ?? message.detail ?? message.error}.`,
      h("button", { type: "button", className: "link", onclick: () => room.retry(message.id) }, "Try again"),
      h("button", { type: "button", className: "link", onclick: () => room.discard(message.id) }, "Discard"),
    );
  }

  #drawReaders(userIds) {
    const names = userIds.map((userId) => nameOf(this.#client.user(userId)));
    const label = `Read by ${names.join(", ")}`;
    const pictures = userIds.slice(0, 8).map((userId) => avatar(this.#client.user(userId), userId));
    return h("div", { className: "readers", role: "img", "aria-label": label, title: label }, pictures);
  }

  #scrolled() {
    const room = this.#room;
    if (!room) return;
    if (room.hasOlder && this.#list.above < OLDER_WITHIN) {
      room.loadOlder(PAGE).catch(() => {}); // The next scroll tries again.
    }
    if (this.#list.isAtEnd !== this.#wasAtEnd) {
      this.#wasAtEnd = this.#list.isAtEnd;
      if (this.#wasAtEnd) this.#fresh = 0;
      this.#drawNewest();
    }
    this.#markRead();
  }

  #arrived(message) {
    announce(`${nameOf(this.#client.user(message.user_id))}: ${message.content.slice(0, 300)}`);
    if (this.#list.isAtEnd && document.hasFocus()) return;
    if (this.#list.isAtEnd) this.#unreadFrom ??= message.seq - 1;
    else this.#fresh++;
    this.#drawNewest();
  }

  #drawNewest() {
    this.newest.hidden = this.#list.isAtEnd || !this.#room?.messages.length;
    const label = this.#fresh ? `${this.#fresh} new` : "";
    this.newest.replaceChildren(icon("down"), label);
    this.newest.setAttribute("aria-label", label ? `${label} messages, go to the newest` : "Go to the newest message");
  }

  #markRead() {
    const room = this.#room;
    if (room?.isLoaded && !this.#staysUnread && this.#list.isAtEnd && !document.hidden && document.hasFocus()) room.markRead();
  }

  /** Mark as unread. The room stays unread until it is opened again, or the user scrolls to its end. */
  async #markUnread(message) {
    const room = this.#room;
    this.#staysUnread = true;
    try {
      await room.markUnread(message.seq);
      if (room !== this.#room) return;
      this.#unreadFrom = message.seq - 1;
      this.update();
      announce("Marked as unread");
    } catch (error) {
      this.#staysUnread = false;
      this.#complain(`The message was not marked as unread: ${error.message}`);
    }
  }

  /** Go to a message, even if it is several pages back. */
  async #goTo(id) {
    const room = this.#room;
    for (let page = 0; page < 50 && !room.message(id) && room.hasOlder; page++) await room.loadOlder(200);
    if (room !== this.#room || !room.message(id)) return;
    this.#update();
    const node = this.#list.show(id);
    node?.focus({ preventScroll: true });
    node?.classList.add("found");
    setTimeout(() => node?.classList.remove("found"), 1_600);
  }

  // ---------------------------------------------------------------------------------------------- title and typing

  #drawTitle() {
    const room = this.#room;
    if (!room) return;
    const client = this.#client;
    const user = room.isDirect ? client.user(room.partnerId) : null;
    const online = [...room.members.keys()].filter((userId) => client.isOnline(userId)).length;
    let below = "";
    if (room.isDirect) below = { true: "Online", false: "Offline", undefined: "" }[client.isOnline(room.partnerId)];
    else if (room.members.size) below = `${room.members.size} members${online ? `, ${online} online` : ""}`;
    const mark = [room.id, room.name, nameOf(user), below];
    mark.push(room.isDirect ? client.isOnline(room.partnerId) : "", user?.avatar_url, room.isPrivate, room.role);
    if (this.title.dataset.mark === mark.join("|")) return;
    this.title.dataset.mark = mark.join("|");
    const picture = room.isDirect ? avatar(user, room.partnerId, { online: client.isOnline(room.partnerId) }) : roomAvatar(room);
    const words = h("div", { className: "words" }, h("h1", {}, bdi(room.isDirect ? nameOf(user) : room.name)), h("p", {}, below));
    const open = () => showMembers(client, room);
    const buttons = room.isDirect ? [] : [iconButton("people", "Members and invitations", open)];
    if (!room.isDirect && room.role === "admin") buttons.push(iconButton("settings", "Edit the room", () => editRoom(client, room)));
    this.title.replaceChildren(picture, words, ...buttons);
    document.title = `${room.isDirect ? nameOf(user) : room.name} · hubbub`;
  }

  #drawTyping() {
    const names = (this.#room?.typing ?? []).map((userId) => nameOf(this.#client.user(userId)));
    this.typing.classList.toggle("shown", names.length > 0);
    if (!names.length) return;
    const many = names.length > 3 ? ["Several people"] : names;
    const words = many.flatMap((name, at) => [at ? (at === many.length - 1 ? " and " : ", ") : "", bdi(name)]);
    const dots = h("span", { className: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
    this.typing.replaceChildren(dots, h("span", {}, ...words, many.length > 1 || names.length > 3 ? " are typing" : " is typing"));
  }

  // ------------------------------------------------------------------------------------------------------- writing

  #submit() {
    const room = this.#room;
    const content = this.field.value.trim();
    if (!room || !content || [...content].length > LONGEST) return;
    if (this.#edited) {
      const id = this.#edited;
      this.#leaveBanner();
      this.field.value = this.#drafts.get(room.id) ?? "";
      if (content !== room.message(id)?.content) {
        room.edit(id, content).catch((error) => this.#notChanged(room, id, content, error));
      }
    } else {
      room.send(content, { replyTo: this.#quoted });
      this.field.value = "";
      this.#drafts.delete(room.id);
      this.#unreadFrom = null;
      this.#leaveBanner();
      this.toNewest();
    }
    room.stopTyping();
    this.#grow();
    this.field.focus();
  }

  #typed() {
    this.#grow();
    if (this.#edited || !this.#room) return;
    if (this.field.value.trim()) this.#room.startTyping();
    else this.#room.stopTyping();
  }

  #grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, 200)}px`;
    const left = LONGEST - [...this.field.value].length;
    this.count.textContent = left < 1_000 ? `${left}` : "";
    this.count.classList.toggle("over", left < 0);
    this.submit.disabled = !this.field.value.trim() || left < 0;
  }

  #keepDraft() {
    if (this.#room && !this.#edited) this.#drafts.set(this.#room.id, this.field.value);
  }

  #key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.#submit();
    } else if (event.key === "Escape" && (this.#quoted || this.#edited)) {
      event.stopPropagation();
      this.#cancel();
    } else if (event.key === "ArrowUp" && !this.field.value && !event.altKey) {
      const own = (message) => message.user_id === this.#client.userId && message.status === "sent" && !message.deleted_at;
      const last = this.#room?.messages.findLast(own);
      if (!last) return;
      event.preventDefault();
      this.#edit(last);
    }
  }

  /** Up and down move between messages. Letters act on the focused message. */
  #keyInList(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button, a")) return;
    const messages = this.#room?.messages ?? [];
    const at = messages.findIndex((message) => message.id === this.#focusedKey);
    const message = messages[at];
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step) {
      const next = messages[at < 0 ? messages.length - 1 : at + step];
      event.preventDefault();
      if (next) this.#list.show(next.id, { nearest: true })?.focus({ preventScroll: true });
      else if (step > 0) this.field.focus();
    } else if (message && message.status === "sent" && !message.deleted_at) {
      const isOwn = message.user_id === this.#client.userId;
      if (event.key === "r") this.#reply(message);
      else if (event.key === "e" && isOwn) this.#edit(message);
      else if (event.key === "w" && isOwn) showReaders(this.#client, this.#room, message);
      else if (event.key === "u" && !isOwn) this.#markUnread(message);
      else if (event.key === "Delete" && this.#mayDelete(message)) this.#delete(message);
      else return;
      event.preventDefault();
    }
  }

  #reply(message) {
    if (this.#edited) this.#cancel();
    this.#quoted = message.id;
    const author = nameOf(this.#client.user(message.user_id));
    this.#showBanner("reply", [h("strong", {}, "Reply to ", bdi(author)), h("span", { dir: "auto" }, message.content.slice(0, 200))]);
  }

  #edit(message) {
    this.#keepDraft();
    this.#quoted = null;
    this.#edited = message.id;
    this.#showBanner("edit", [h("strong", {}, "Edit message"), h("span", { dir: "auto" }, message.content.slice(0, 200))]);
    this.field.value = message.content;
    this.#grow();
    this.field.setSelectionRange(message.content.length, message.content.length);
    this.update();
  }

  /** Put the text back into the field, unless the field has another text by now. */
  #notChanged(room, id, content, error) {
    const message = room.message(id);
    if (this.#room === room && message && !message.deleted_at && !this.#edited && !this.field.value.trim()) {
      this.#edit(message);
      this.field.value = content;
      this.#grow();
    }
    this.#complain(`The message was not changed: ${REASONS[error.error] ?? error.message}`);
  }

  async #delete(message) {
    const room = this.#room;
    const isSure = await confirm("Delete this message?", "It disappears for all members of the room.", "Delete");
    if (isSure) room.delete(message.id).catch((error) => this.#complain(`The message was not deleted: ${error.message}`));
  }

  #complain(words) {
    clearTimeout(this.#complaining);
    this.notice.replaceChildren(icon("alert"), words);
    this.notice.classList.add("shown");
    this.#complaining = setTimeout(() => this.notice.classList.remove("shown"), 8_000);
  }

  #showBanner(name, words) {
    this.banner.replaceChildren(icon(name), h("div", { className: "words" }, ...words), iconButton("close", "Cancel (Esc)", () => this.#cancel()));
    this.banner.hidden = false;
    this.field.focus();
  }

  #cancel() {
    const wasEdit = this.#edited;
    this.#leaveBanner();
    if (wasEdit) this.field.value = this.#drafts.get(this.#room?.id) ?? "";
    this.#grow();
    this.field.focus();
  }

  #leaveBanner() {
    if (this.#edited) this.update();
    this.#quoted = this.#edited = null;
    this.banner.hidden = true;
  }
}
