/** Dialogs: members and invitations, a new room, sessions, and questions. */

import { agoOf, avatar, bdi, h, icon, iconButton, nameOf } from "./dom.js";

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

/** Whether the user says yes. */
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
  const members = h("ul", { className: "people" });
  const error = problem();
  const draw = () => {
    const people = [...room.members].map(([userId, role]) => ({ userId, role, user: client.user(userId) }));
    people.sort((a, b) => Number(client.isOnline(b.userId) ?? 0) - Number(client.isOnline(a.userId) ?? 0) || nameOf(a.user).localeCompare(nameOf(b.user)));
    members.replaceChildren(
      ...people
        .filter(({ user }) => user)
        .map(({ user, role }) => h("li", {}, ...personRow(client, user, role !== "member" && h("span", { className: "role" }, role)))),
    );
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
  dialog.addEventListener("close", () => end.forEach((off) => off()));
  draw();
  room.loadMembers().catch(() => {});
}

/** Make a room. `created` is called with it. */
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

/** "Firefox on Linux", as far as the name of the browser tells. */
function deviceOf(session) {
  const agent = String(session.data?.device ?? "");
  const browser = /Edg\//.test(agent) ? "Edge" : /Firefox\//.test(agent) ? "Firefox" : /Chrom(?:e|ium)\//.test(agent) ? "Chrome" : /Safari\//.test(agent) ? "Safari" : null;
  const system = /Android/.test(agent) ? "Android" : /iPhone|iPad/.test(agent) ? "iOS" : /Mac OS/.test(agent) ? "macOS" : /Windows/.test(agent) ? "Windows" : /Linux|X11/.test(agent) ? "Linux" : null;
  if (!browser) return agent.slice(0, 40) || "An unknown device";
  return system ? `${browser} on ${system}` : browser;
}

/** Where the user is logged in, with a button to end each session. */
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
              h("span", {}, isThis ? "This session" : `Last seen ${agoOf(session.seen_at)}`),
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
