/** Small tools for elements, people and times. Text is only inserted as text: this chat uses no innerHTML. */

/** An element. Properties that begin with "on" are listeners. Others that the element lacks become attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "role" && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  add: "M12 5v14M5 12h14",
  alert: "M12 8v5M12 16.500v.01M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18",
  back: "M15 5l-7 7 7 7",
  check: "M5 12.500l4.500 4.500L19 7.500",
  checks: "M2 12.500l4.500 4.500L16 7.500M11.500 16.500l.5.5 9.500-9.500",
  clock: "M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18M12 7.500V12l3 2",
  close: "M6 6l12 12M18 6L6 18",
  devices: "M3 5h13v9H3zM1.500 17.500h11M17 9h4.500v10.500H17z",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20l1-4L16.500 4.500l3 3L8 19zM14 7l3 3",
  hash: "M9.500 4L7.500 20M16.500 4l-2 16M4.500 9h16M3.500 15h16",
  invite: "M10 4a4 4 0 1 1 0 8 4 4 0 0 1 0-8M3 20c0-4 3-6 7-6 1.500 0 2.800.3 4 .8M18 14.500v6M15 17.500h6",
  leave: "M14 4H5v16h9M10 12h11M17 8l4 4-4 4",
  lock: "M6 11h12v9H6zM8.500 11V8a3.500 3.500 0 0 1 7 0v3",
  eye: "M2 12c4-9 16-9 20 0-4 9-16 9-20 0M12 9a3 3 0 1 1 0 6 3 3 0 0 1 0-6",
  person: "M12 4a4 4 0 1 1 0 8 4 4 0 0 1 0-8M4 20.500c0-4 3.500-6.500 8-6.500s8 2.500 8 6.500",
  settings: "M4 7h9M17 7h3M15 5a2 2 0 1 1 0 4 2 2 0 0 1 0-4M4 17h3M11 17h9M9 15a2 2 0 1 1 0 4 2 2 0 0 1 0-4",
  unread: "M21 11v7H3V6h10M3 7l9 6 4-2.500M19 3a2.500 2.500 0 1 1 0 5 2.500 2.500 0 0 1 0-5",
  people: "M9 4a4 4 0 1 1 0 8 4 4 0 0 1 0-8M2 20c0-4 3-6 7-6s7 2 7 6M16 4.500a4 4 0 0 1 0 7M18.500 14.500c2.200.7 3.500 2.500 3.500 5.500",
  reply: "M9.500 6L4 11.500 9.500 17M4 11.500h10c4 0 6 2.500 6 6.500",
  search: "M10.500 4a6.500 6.500 0 1 1 0 13 6.500 6.500 0 0 1 0-13M15.500 15.500L21 21",
  send: "M4 12L3.500 4.500 21 12 3.500 19.500zM4 12h8",
  trash: "M4 7h16M9.500 7V4h5v3M6 7l1 13h10l1-13M10 11v5.500M14 11v5.500",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon. Its label is for screen readers, and is the tooltip. */
export function iconButton(name, label, onclick, properties = {}) {
  return h("button", { type: "button", className: "icon-button", title: label, "aria-label": label, onclick, ...properties }, icon(name));
}

/** A name, which cannot change the direction of the text around it. */
export function bdi(text, className) {
  return h("bdi", { className: className ?? "" }, text);
}

export const nameOf = (user) => user?.display_name || user?.username || "Deleted account";

const HUES = [12, 32, 84, 150, 172, 200, 228, 262, 292, 330];

/** One of ten colours, always the same for an id. */
function hueOf(id) {
  let sum = 0;
  for (const character of id ?? "") sum = (sum * 31 + character.charCodeAt(0)) >>> 0;
  return sum % HUES.length;
}

/** The address of a user's picture, if the policy of this page allows it. */
function pictureOf(user) {
  if (!user?.avatar_url) return null;
  let address;
  try {
    address = new URL(user.avatar_url, location.href);
  } catch {
    return null;
  }
  return address.protocol === "https:" || address.origin === location.origin ? address.href : null;
}

export function avatar(user, id, { online } = {}) {
  const letters = [...nameOf(user)][0]?.toUpperCase() ?? "?";
  const element = h("span", { className: `avatar hue-${hueOf(id)}`, "aria-hidden": "true" }, user || !id ? letters : "");
  const address = pictureOf(user);
  if (address) {
    const picture = h("img", { src: address, alt: "", loading: "lazy", referrerPolicy: "no-referrer", onerror: () => picture.remove() });
    element.append(picture);
  }
  if (online !== undefined) element.append(h("span", { className: online ? "dot online" : "dot" }));
  return element;
}

export function roomAvatar(room) {
  return h("span", { className: `avatar room hue-${hueOf(room.id)}`, "aria-hidden": "true" }, icon(room.isPrivate ? "lock" : "hash"));
}

const hour = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: "long" });
const shortWeekday = new Intl.DateTimeFormat(undefined, { weekday: "short" });
const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long" });
const fullDate = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });
const shortDate = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const shortMonth = new Intl.DateTimeFormat(undefined, { month: "short", year: "numeric" });
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });

const midnight = (time) => new Date(time).setHours(0, 0, 0, 0);
const daysAgo = (time) => Math.round((midnight(Date.now()) - midnight(time)) / 86_400_000);

export const hourOf = (time) => hour.format(new Date(time));

export function dayOf(time) {
  const days = daysAgo(time);
  if (days <= 1) {
    const text = relative.format(-days, "day");
    return text[0].toUpperCase() + text.slice(1);
  }
  if (days < 7) return weekday.format(new Date(time));
  return (new Date(time).getFullYear() === new Date().getFullYear() ? date : fullDate).format(new Date(time));
}

/** A short form of the time, for the list of rooms. */
export function shortTimeOf(time) {
  const days = daysAgo(time);
  if (days === 0) return hourOf(time);
  const format = days < 7 ? shortWeekday : new Date(time).getFullYear() === new Date().getFullYear() ? shortDate : shortMonth;
  return format.format(new Date(time));
}

export function agoOf(time) {
  const minutes = Math.round((Date.now() - new Date(time)) / 60_000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return relative.format(-minutes, "minute");
  return minutes < 24 * 60 ? relative.format(-Math.round(minutes / 60), "hour") : relative.format(-daysAgo(time), "day");
}

export const dayKey = midnight;

const LINK = /https?:\/\/[^\s<>"'\u202a-\u202e\u2066-\u2069]+[^\s<>"'.,;:!?)\]\u202a-\u202e\u2066-\u2069]/g;

/** Text with links. Each paragraph has the direction of its first letter. */
export function paragraphs(text) {
  return text.split("\n").map((line) => {
    const paragraph = h("p", { dir: "auto" });
    let at = 0;
    for (const found of line.matchAll(LINK)) {
      paragraph.append(line.slice(at, found.index), link(found[0]));
      at = found.index + found[0].length;
    }
    paragraph.append(line.slice(at) || (at ? "" : "\u200b"));
    return paragraph;
  });
}

function link(address) {
  return h("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow", dir: "ltr" }, address);
}

let announcing = null;

/** Have a screen reader announce the text, without moving the focus. */
export function announce(text) {
  const region = document.getElementById("announcements");
  region.textContent = "";
  clearTimeout(announcing);
  announcing = setTimeout(() => (region.textContent = text), 50);
}

/** A function that runs at most once per frame, however often it is called. */
export function perFrame(draw) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    // A hidden tab has no frames. Its title and lists are still updated.
    const now = () => {
      isDue = false;
      draw();
    };
    if (document.hidden) setTimeout(now, 100);
    else requestAnimationFrame(now);
  };
}
