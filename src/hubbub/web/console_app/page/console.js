// The console: figures each second, and on demand the log of a room, the sessions of a user and the findings.
// All text of users is inserted as text in a <bdi>, so that it can neither run nor reorder the text around it.

import { Plot } from "./plot.js";

const EVERY_MILLISECONDS = 1_000;
const DEADLINE_MILLISECONDS = 15_000;

const byId = (id) => document.getElementById(id);
const mayChange = document.body.dataset.changes === "yes";

class Refusal extends Error {}

async function ask(path, options = {}) {
  const signal = AbortSignal.timeout(DEADLINE_MILLISECONDS);
  const answer = await fetch(new URL(path, import.meta.url), { ...options, signal });
  if (answer.ok) return answer.json();
  const problem = await answer.json().catch(() => ({}));
  throw new Refusal(problem.detail ?? `the answer is ${answer.status}`);
}

/** An element with properties and children. Text stays text. */
function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

const bdi = (text) => make("bdi", {}, text);

// Formats of numbers.

const UNKNOWN = "–";
const whole = (value) => (value == null ? UNKNOWN : Math.round(value).toLocaleString("en"));
const about = (value) => (value == null ? UNKNOWN : `≈ ${whole(value)}`);
const share = (value) => (value == null ? UNKNOWN : `${(value * 100).toFixed(1)} %`);
const rate = (value) => (value == null ? UNKNOWN : value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 }));
const seconds = (value) => (value == null ? UNKNOWN : `${value.toFixed(1)} s`);

const inMilliseconds = (value) => (value == null ? UNKNOWN : milliseconds(value * 1000));

function milliseconds(value) {
  if (value >= 60_000) return `${(value / 60_000).toFixed(1)} min`;
  return value >= 1_000 ? `${(value / 1_000).toFixed(1)} s` : `${value.toPrecision(3)} ms`;
}

function bytes(value) {
  if (value == null) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1);
  return `${(value / 1000 ** power).toFixed(power === 0 ? 0 : 1)} ${units[power]}`;
}

function ago(text) {
  const minutes = Math.round((Date.now() - Date.parse(text)) / 60_000);
  const format = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (Math.abs(minutes) < 60) return format.format(-minutes, "minute");
  return Math.abs(minutes) < 48 * 60 ? format.format(-Math.round(minutes / 60), "hour") : format.format(-Math.round(minutes / 1440), "day");
}

// Figures of the last second.

const plots = {
  messages: new Plot(byId("messages_plot"), "Messages per second in the last five minutes"),
  commands: new Plot(byId("commands_plot"), "Commands per second in the last five minutes"),
};

function list(id, rows) {
  byId(id).replaceChildren(...rows.map(([name, value, title = ""]) =>
    make("div", { title }, make("dt", {}, name), make("dd", {}, value))));
}

function showServers({ postgresql, redis }) {
  const servers = [postgresql, redis];
  byId("servers").replaceChildren(...servers.map(({ name, where, error }) =>
    make("span", { className: error === null ? "server ok" : "server bad", title: where }, name,
      make("small", {}, error === null ? where : "does not answer"))));
  const errors = servers.filter(({ error }) => error !== null);
  byId("errors").hidden = errors.length === 0;
  byId("errors").replaceChildren(...errors.map(({ name, error }) => make("span", {}, `${name}: `, bdi(error))));
}

function showFigures(figures) {
  const { postgresql: { state: stored }, redis: { state: live, name }, pool, processes, typing, points } = figures;
  showServers(figures);
  plots.messages.show(points.map(([at, messages]) => [at, messages]));
  plots.commands.show(points.map(([at, , commands]) => [at, commands]));
  byId("messages_per_second").value = rate(points.at(-1)?.[1]);
  byId("commands_per_second").value = rate(points.at(-1)?.[2]);
  byId("redis_name").textContent = name.split(" ")[0];
  const [typists, typedIn, isMore] = typing ?? [null, 0, false];
  list("chat", [
    ["online", whole(live.online), "users with a device"],
    ["typing", `${isMore ? "over " : ""}${whole(typists)}`, `in ${typedIn} rooms`],
    ["sessions", (figures.is_estimate ? about : whole)(live.sessions)],
    ["followers", whole(processes.followers), `in ${processes.number} processes: connections of a gateway, and other users of hub.follow`],
    ["sends, p50", inMilliseconds(processes.sends_p50), "of the last ten seconds in all processes, until the message is stored"],
    ["sends, p99", inMilliseconds(processes.sends_p99), "of the last ten seconds in all processes, until the message is stored"],
    ["channels followed", whole(live.channels), "of Redis: one for each room that a process follows, and a few more"],
    ["users", about(stored.users)],
    ["rooms", about(stored.rooms)],
    ["messages", about(stored.messages)],
  ]);
  list("postgresql", [
    ["connections", stored.connections == null ? UNKNOWN : `${stored.connections} of ${stored.max_connections}`],
    ["in hubbub pools", whole(stored.pooled)],
    ["pool of this process", `${pool.in_use} of ${pool.limit} in use${pool.waiting ? `, ${pool.waiting} wait` : ""}`],
    ["active", whole(stored.active)],
    ["waiting for a lock", whole(stored.waiting)],
    ["longest transaction", seconds(stored.longest_seconds ?? (stored.connections == null ? null : 0))],
    ["commits per second", rate(stored.commits_per_second)],
    ["block cache hits", share(stored.hits)],
  ]);
  list("redis", [
    ["memory", live.maxmemory ? `${bytes(live.memory)} of ${bytes(live.maxmemory)}` : bytes(live.memory)],
    ["clients", whole(live.clients)],
    ["keys evicted", whole(live.evicted)],
    ["commands per second", rate(live.commands_per_second)],
    ["key lookup hits", share(live.hits)],
  ]);
  showBusiest(figures.rooms);
  showStatements(figures.statements);
}

/** A room has an id, a name and its share of the newest messages. */
function showBusiest(rooms) {
  const most = Math.max(...rooms.map(([, , part]) => part));
  const empty = make("li", { className: "note" }, "No messages in the last minute.");
  keep(byId("busiest"), rooms.length ? rooms.map(([id, name, part]) => {
    const button = make("button", { onclick: () => showLog(id) }, bdi(name));
    button.dataset.key = id;
    return make("li", {}, button, make("progress", { max: 1, value: part / most }), make("span", {}, `${Math.round(part * 100)} %`));
  }) : [empty]);
}

/** Replaces the children, and keeps the focus on the button with the same key. */
function keep(parent, children) {
  const key = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  parent.replaceChildren(...children);
  if (key) parent.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

function showStatements(statements) {
  const table = byId("statements");
  if (statements === null || statements.length === 0) {
    const words = statements === null ? "The extension pg_stat_statements is not there, or this role may not read it." : "No statement was counted.";
    table.replaceChildren(make("caption", { className: "note" }, words));
    return;
  }
  const head = ["total", "calls", "mean", "longest", "statement"].map((name) => make("th", { scope: "col" }, name));
  const rows = statements.map(([text, calls, total, mean, longest]) => make("tr", {},
    ...[milliseconds(total), whole(calls), milliseconds(mean), milliseconds(longest)].map((value) => make("td", {}, value)),
    make("td", { title: text ?? "" }, make("code", {}, text ?? "a text that may have values in it, or of another role"))));
  table.replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

let isAsking = false;

async function watch() {
  setTimeout(watch, EVERY_MILLISECONDS);
  if (document.hidden || isAsking) return;
  isAsking = true;
  const state = byId("state");
  let figures;
  try {
    figures = await ask("figures");
  } catch (error) {
    state.textContent = error instanceof Refusal ? error.message : "the console does not answer";
    state.className = "bad";
    return;
  } finally {
    isAsking = false;
  }
  showFigures(figures);
  state.textContent = "live";
  state.className = "ok";
}

// The log of a room.

const CHANGES = {
  message_edited: "edited a message",
  message_deleted: "deleted a message",
  member_joined: "joined",
  member_left: "left",
  role_changed: "has another role",
  member_changed: "has other metadata here",
  room_changed: "changed the room",
};

function whenIn(text) {
  const time = new Date(text);
  return time.toDateString() === new Date().toDateString() ? time.toLocaleTimeString() : time.toLocaleString();
}

function entry(event, { users, readers }) {
  const who = event.by ?? event.user_id ?? event.message?.user_id;
  const person = who == null ? make("i", {}, "deleted account")
    : make("button", { className: "person", onclick: () => showSessions(who) }, bdi(users[who] ?? who));
  const time = make("time", { dateTime: event.at, title: event.at }, whenIn(event.at));
  const item = make("li", {}, make("span", { className: "seq" }, `${event.seq}`), person);
  if (event.type !== "message_sent") {
    const detail = event.role ? ` (${event.role})` : event.name ? ": " : "";
    item.append(make("span", { className: "change" }, ` ${CHANGES[event.type] ?? event.type}${detail}`, ...(event.name ? [bdi(event.name)] : [])), time);
    return item;
  }
  const { message } = event;
  const mark = message.deleted_at ? "deleted" : message.is_edited ? "edited" : "";
  item.append(make("span", { className: "change" }, mark), time);
  if (!message.deleted_at) item.append(make("p", {}, bdi(message.content)));
  const read = readers[message.id];
  if (read) {
    const names = read.user_ids.flatMap((id, index) => [index ? ", " : "read by ", bdi(users[id] ?? id)]);
    item.append(make("p", { className: "note" }, ...(names.length ? names : ["read by no other member"]), read.more ? " and more" : ""));
  }
  return item;
}

let room = null; // { id, older }

async function showLog(key, before = null) {
  const note = byId("room_note"), log = byId("log");
  note.textContent = "asking";
  try {
    const found = await ask(`rooms/${encodeURIComponent(key)}/log${before === null ? "" : `?before=${before}`}`);
    const entries = found.entries.map((event) => entry(event, found));
    note.replaceChildren(make("strong", {}, bdi(found.room.name)), ` ${whole(found.room.last_seq)} entries, id ${found.room.id}`);
    room = { id: found.room.id, older: found.older };
    byId("older").hidden = found.older === null;
    if (before === null) {
      log.replaceChildren(...entries);
      log.scrollTop = log.scrollHeight;
    } else {
      const height = log.scrollHeight;
      log.prepend(...entries);
      log.scrollTop += log.scrollHeight - height;
    }
  } catch (error) {
    note.textContent = error.message;
  }
}

// The sessions of a user.

async function showSessions(key) {
  const note = byId("user_note"), sessions = byId("sessions");
  try {
    const found = await ask(`users/${encodeURIComponent(key)}/sessions`);
    const { user } = found;
    note.replaceChildren(make("strong", {}, bdi(user.username)), ` ${user.is_online ? "online" : "offline"}, ${found.sessions.length} sessions, id ${user.id}`);
    sessions.replaceChildren(...found.sessions.map((session) => {
      const item = make("li", {}, make("strong", {}, bdi(session.device || "unnamed device")),
        make("span", { className: "note" }, `seen ${ago(session.seen_at)}, began ${ago(session.created_at)}, ends ${ago(session.expires_at)}`));
      if (mayChange) item.append(make("button", { className: "danger", onclick: () => revoke(user.id, session.id) }, "Revoke"));
      return item;
    }));
  } catch (error) {
    sessions.replaceChildren();
    note.textContent = error.message;
  }
}

async function revoke(userId, sessionId) {
  try {
    await ask(`users/${userId}/sessions/${encodeURIComponent(sessionId)}`, { method: "DELETE" });
  } catch (error) {
    byId("user_note").textContent = error.message;
    return;
  }
  await showSessions(userId);
}

// The findings.

async function showFindings() {
  const findings = byId("findings");
  findings.replaceChildren(make("li", { className: "note" }, "asking both servers"));
  try {
    const { sections } = await ask("findings");
    const rows = sections.flatMap((section) => [
      ...(section.out_of_reach ? [["error", section.name, section.out_of_reach, ""]] : []),
      ...section.checks.flatMap((check) => check.findings.map(({ severity, meaning, remedy }) => [severity, `${section.name}, ${check.title}`, meaning, remedy])),
    ]);
    const order = ["error", "warning", "note"];
    rows.sort(([left], [right]) => order.indexOf(left) - order.indexOf(right));
    const checks = sections.flatMap((section) => section.checks);
    const skipped = checks.filter((check) => check.unseen).length;
    const total = make("li", { className: "note" }, `${checks.length} checks${skipped ? `, ${skipped} skipped for want of rights` : ""}. ${rows.length ? "" : "Nothing found."}`);
    findings.replaceChildren(...rows.map(([severity, where, meaning, remedy]) => make("li", { className: `finding ${severity}` },
      make("span", { className: "severity" }, severity), make("span", {}, make("strong", {}, where), " ", bdi(meaning), " ", make("em", {}, bdi(remedy))))), total);
  } catch (error) {
    findings.replaceChildren(make("li", {}, error.message));
  }
}

function onKey(id, show) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    show(new FormData(event.target).get("key").trim());
  });
}

onKey("room_form", showLog);
onKey("user_form", showSessions);
byId("older").addEventListener("click", () => showLog(room.id, room.older));
byId("again").addEventListener("click", showFindings);
watch();
showFindings();
