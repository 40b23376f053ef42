/** Dialogs: members and invitations, rooms, readers, the user's own profile, sessions, and questions. */

import { agoOf, announce, avatar, bdi, h, icon, iconButton, nameOf } from "./dom.js";

function open(title, content, className = "") {
  const dialog = h("dialog", { className, "aria-label": title });
  dialog.append(
    h("header", {}, h("h2", {}, title), iconButton("close", "Close", () => dialog.close())),
    h("div", { className: "content" }, ...content),
  );
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

const problem = () => h("p", { className: "problem", role: "alert" });

/** Whether the user confirms. */
export function confirm(title, words, yes) {
  return new Promise((resolve) => {
    let isSure = false;
    const choose = (value) => () => {
      isSure = value;
      dialog.close();
    };
    const dialog = open(
      title,
      [
        h("p", {}, words),
        h(
          "div",
          { className: "buttons" },
          h("button", { type: "button", onclick: choose(false) }, "Cancel"),
          h("button", { type: "button", className: "primary danger", onclick: choose(true) }, yes),
        ),
      ],
      "small",
    );
    dialog.addEventListener("close", () => resolve(isSure));
    dialog.querySelector(".primary").focus();
  });
}

export function personRow(client, user, ...more) {
  return [
    avatar(user, user.id, { online: client.isOnline(user.id) ?? undefined }),
    h("span", { className: "words" }, h("strong", {}, bdi(nameOf(user))), h("span", {}, bdi(`@${user.username}`))),
    ...more,
  ];
}

/** The members of a room, and a search for people to invite. */
export function showMembers(client, room) {
  const search = h("input", { type: "search", placeholder: "Find people to invite", "aria-label": "Find people to invite", dir: "auto" });
  const found = h("ul", { className: "people" });
  const members = h("ul", { className: "people members" });
  const error = problem();
  const rows = new Map();
  const draw = () => {
    const people = [...room.members].map(([userId, role]) => ({ userId, role, user: client.user(userId) }));
    people.sort((a, b) => Number(client.isOnline(b.userId) ?? 0) - Number(client.isOnline(a.userId) ?? 0) || nameOf(a.user).localeCompare(nameOf(b.user)));
    const focused = members.contains(document.activeElement) ? document.activeElement : null;
    const shown = people.filter(({ user }) => user).map(({ user, role }) => memberRow(user, role));
    members.replaceChildren(...shown);
    if (!focused) return;
    // A moved or replaced element would lose the focus.
    const again = focused.isConnected ? focused : rows.get(focused.dataset.id)?.node.querySelector(focused.localName);
    (again ?? search).focus();
  };
  /** The same element as before unless it looks different, because the user may be choosing in it. */
  const memberRow = (user, role) => {
    const { nickname } = room.memberMetadata.get(user.id) ?? {};
    const mark = JSON.stringify([user, role, room.role, nickname, client.isOnline(user.id)]);
    if (rows.get(user.id)?.mark === mark) return rows.get(user.id).node;
    const node = h("li", {}, ...personRow(client, user, h("span", { className: "powers" }, ...powers(user, role))));
    if (typeof nickname === "string") node.querySelector(".words span").append(" · ", bdi(nickname));
    rows.set(user.id, { node, mark });
    return node;
  };
  /** The actions of this user on a member. The server decides, and refuses an action if permissions have changed. */
  const powers = (user, role) => {
    const isAdmin = room.role === "admin";
    const mayRemove = user.id !== client.userId && (isAdmin || (room.role === "moderator" && role === "member"));
    const roles = ["member", "moderator", "admin"].map((one) => h("option", { value: one, selected: one === role }, one));
    const change = ({ target }) => setRole(user, target, role);
    return [
      isAdmin
        ? h("select", { "aria-label": `Role of ${nameOf(user)}`, "data-id": user.id, onchange: change }, roles)
        : role !== "member" && h("span", { className: "role" }, role),
      mayRemove && iconButton("trash", `Remove ${nameOf(user)}`, () => remove(user), { "data-id": user.id }),
    ];
  };
  const setRole = async (user, select, before) => {
    error.textContent = "";
    try {
      await room.setRole(user.id, select.value);
    } catch (refused) {
      select.value = before;
      error.textContent = `The role of ${nameOf(user)} was not changed: ${refused.message}`;
    }
  };
  const remove = async (user) => {
    error.textContent = "";
    const name = nameOf(user);
    if (!(await confirm(`Remove ${name}?`, "Messages that are in the room stay there.", "Remove"))) return;
    try {
      await room.remove(user.id);
      announce(`${name} was removed`);
      search.focus();
    } catch (refused) {
      error.textContent = `${name} was not removed: ${refused.message}`;
    }
  };
  const invite = async (user) => {
    error.textContent = "";
    try {
      await room.invite(user.id);
      await room.loadMembers();
      search.value = "";
      found.replaceChildren();
      search.focus();
    } catch (refused) {
      error.textContent = refused.message;
    }
  };
  search.addEventListener("input", async () => {
    const prefix = search.value.trim();
    const people = prefix ? await client.searchUsers(prefix).catch(() => []) : [];
    if (prefix !== search.value.trim()) return;
    found.replaceChildren(
      ...people.map((user) => {
        const isMember = room.members.has(user.id);
        const action = isMember
          ? h("span", { className: "role" }, "member")
          : h("button", { type: "button", onclick: () => invite(user) }, icon("invite"), "Invite");
        return h("li", {}, ...personRow(client, user, action));
      }),
    );
  });
  const leave = async () => {
    if (!(await confirm("Leave this room?", "To come back you need an invitation, unless it is a public room.", "Leave"))) return;
    try {
      await room.leave();
      dialog.close();
    } catch (refused) {
      error.textContent = refused.message;
    }
  };
  const end = [client.on("messages", draw), client.on("presence", draw), client.on("people", draw)];
  const dialog = open(room.name, [
    room.description && h("p", { className: "quiet", dir: "auto" }, room.description),
    search,
    error,
    found,
    h("h3", {}, "Members"),
    members,
    h("div", { className: "buttons" }, h("button", { type: "button", className: "danger", onclick: leave }, icon("leave"), "Leave the room")),
  ]);
  end.push(client.on("gone", (gone) => gone === room && dialog.close()));
  dialog.addEventListener("close", () => end.forEach((off) => off()));
  draw();
  room.loadMembers().catch(() => {});
}

/** Create a room. `created` is called with it. */
export function newRoom(client, created) {
  const error = problem();
  const name = h("input", { name: "name", required: true, maxLength: 100, autocomplete: "off", dir: "auto", autofocus: true });
  const description = h("input", { name: "description", maxLength: 400, autocomplete: "off", dir: "auto" });
  const isPublic = h("input", { type: "checkbox", name: "public" });
  const form = h(
    "form",
    {
      onsubmit: async (event) => {
        event.preventDefault();
        error.textContent = "";
        try {
          const options = { description: description.value.trim() || null, isPrivate: !isPublic.checked };
          const room = await client.createRoom(name.value.trim(), options);
          dialog.close();
          created(room);
        } catch (refused) {
          error.textContent = refused.message;
        }
      },
    },
    h("label", {}, "Name", name),
    h("label", {}, "What is it about?", description),
    h("label", { className: "check" }, isPublic, h("span", {}, "Everybody may find it and join")),
    error,
    h(
      "div",
      { className: "buttons" },
      h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "submit", className: "primary" }, "Make the room"),
    ),
  );
  const dialog = open("New room", [form], "small");
}

/** Change or delete a room. */
export function editRoom(client, room) {
  const error = problem();
  const name = h("input", { name: "name", required: true, maxLength: 100, autocomplete: "off", dir: "auto", value: room.name });
  const description = h("input", { name: "description", maxLength: 400, autocomplete: "off", dir: "auto", value: room.description ?? "" });
  const isPublic = h("input", { type: "checkbox", name: "public", checked: !room.isPrivate });
  const before = { name: room.name, description: room.description, isPrivate: room.isPrivate };
  const save = async (event) => {
    event.preventDefault();
    error.textContent = "";
    const now = { name: name.value.trim(), description: description.value.trim() || null, isPrivate: !isPublic.checked };
    const changes = Object.fromEntries(Object.entries(now).filter(([field, value]) => value !== before[field]));
    try {
      if (Object.keys(changes).length) await room.update(changes);
      dialog.close();
    } catch (refused) {
      error.textContent = `The room was not changed: ${refused.message}`;
    }
  };
  const remove = async () => {
    error.textContent = "";
    if (!(await confirm(`Delete ${room.name}?`, "The room and all its messages disappear for all members, for ever.", "Delete the room"))) return;
    try {
      await room.deleteRoom();
    } catch (refused) {
      error.textContent = `The room was not deleted: ${refused.message}`;
    }
  };
  const form = h(
    "form",
    { onsubmit: save },
    h("label", {}, "Name", name),
    h("label", {}, "What is it about?", description),
    h("label", { className: "check" }, isPublic, h("span", {}, "Everybody may find it and join")),
    error,
    h(
      "div",
      { className: "buttons" },
      h("button", { type: "button", className: "danger", onclick: remove }, icon("trash"), "Delete"),
      h("span", { className: "space" }),
      h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "submit", className: "primary" }, "Save"),
    ),
  );
  const dialog = open("Edit the room", [form], "small");
  const off = client.on("gone", (gone) => gone === room && dialog.close());
  dialog.addEventListener("close", off);
  name.focus();
}

/** The user's own name and picture, which everyone in the chat sees. */
export async function showProfile(client) {
  const error = problem();
  const user = client.user(client.userId) ?? (await client.request({ type: "me" }).catch(() => null));
  const name = h("input", { name: "display_name", maxLength: 100, autocomplete: "name", dir: "auto", value: user?.display_name ?? "", placeholder: user?.username ?? "" });
  const picture = h("input", { name: "avatar_url", maxLength: 500, inputMode: "url", autocomplete: "photo", dir: "ltr", value: user?.avatar_url ?? "", placeholder: "https://" });
  const save = async (event) => {
    event.preventDefault();
    error.textContent = "";
    const changes = {};
    if (name.value.trim() !== (user?.display_name ?? "")) changes.displayName = name.value.trim() || null;
    if (picture.value.trim() !== (user?.avatar_url ?? "")) changes.avatarUrl = picture.value.trim() || null;
    try {
      if (Object.keys(changes).length) await client.updateProfile(changes);
      dialog.close();
    } catch (refused) {
      error.textContent = `Your profile was not changed: ${refused.message}`;
    }
  };
  const form = h(
    "form",
    { onsubmit: save },
    user && h("div", { className: "person" }, ...personRow(client, user)),
    h("label", {}, "Display name", name),
    h("label", {}, "Address of your picture", picture),
    error,
    h(
      "div",
      { className: "buttons" },
      h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "submit", className: "primary" }, "Save"),
    ),
  );
  const dialog = open("Your profile", [form], "small");
  name.focus();
}

/** The readers of one of the user's own messages, updated live. */
export function showReaders(client, room, message) {
  const list = h("ul", { className: "people" });
  const words = h("p", { className: "quiet", role: "status" }, "Loading…");
  const error = problem();
  const marks = () => [...room.readMarks].join();
  let drawn = null;
  const draw = async () => {
    if (drawn === marks()) return;
    drawn = marks();
    try {
      const readers = (await room.readers(message.id)).filter(({ userId }) => userId !== client.userId && client.user(userId));
      words.textContent = readers.length ? "" : "Not read yet.";
      list.replaceChildren(
        ...readers.map(({ userId, readAt }) => {
          const time = readAt && h("time", { className: "role", dateTime: readAt }, agoOf(readAt));
          return h("li", {}, ...personRow(client, client.user(userId), time));
        }),
      );
    } catch (refused) {
      words.textContent = "";
      error.textContent = refused.message;
    }
  };
  const dialog = open("Read by", [words, error, list], "small");
  const end = [client.on("messages", (changed) => changed === room && draw()), client.on("gone", (gone) => gone === room && dialog.close())];
  dialog.addEventListener("close", () => end.forEach((off) => off()));
  draw();
}

/** A name such as "Firefox on Linux", as far as the browser's user agent has it. */
function deviceOf(session) {
  const agent = String(session.data?.device ?? "");
  const browser = /Edg\//.test(agent) ? "Edge" : /Firefox\//.test(agent) ? "Firefox" : /Chrom(?:e|ium)\//.test(agent) ? "Chrome" : /Safari\//.test(agent) ? "Safari" : null;
  const system = /Android/.test(agent) ? "Android" : /iPhone|iPad/.test(agent) ? "iOS" : /Mac OS/.test(agent) ? "macOS" : /Windows/.test(agent) ? "Windows" : /Linux|X11/.test(agent) ? "Linux" : null;
  if (!browser) return agent.slice(0, 40) || "An unknown device";
  return system ? `${browser} on ${system}` : browser;
}

/** The sessions of the user, each with a button that ends it. */
export async function showSessions(client) {
  const list = h("ul", { className: "people sessions" });
  const error = problem();
  open("Your sessions", [h("p", { className: "quiet" }, "A session that you end is logged out at once, wherever it is."), error, list]);
  const draw = async () => {
    try {
      const { items, current } = await client.sessions();
      const recent = items.toSorted((a, b) => (b.id === current) - (a.id === current) || b.seen_at.localeCompare(a.seen_at));
      list.replaceChildren(
        ...recent.map((session) => {
          const isThis = session.id === current;
          const end = async () => {
            await client.revokeSession(session.id).catch((refused) => (error.textContent = refused.message));
            await draw();
          };
          return h(
            "li",
            {},
            h("span", { className: "avatar device", "aria-hidden": "true" }, icon("devices")),
            h(
              "span",
              { className: "words" },
              h("strong", {}, bdi(deviceOf(session))),
              h("span", {}, isThis ? "Active now" : `Last seen ${agoOf(session.seen_at)}`),
            ),
            isThis ? h("span", { className: "role" }, "this one") : h("button", { type: "button", className: "danger", onclick: end }, "End"),
          );
        }),
      );
    } catch (refused) {
      error.textContent = refused.message;
    }
  };
  await draw();
}
