/** Sign up and log in. */

import { h } from "./dom.js";

export async function post(path, body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) };
  const response = await fetch(path, options);
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  const field = problem.field ? `${problem.field[0].toUpperCase()}${problem.field.slice(1)} ` : "";
  throw new Error(`${field}${problem.detail ?? "The server does not answer."}`);
}

/** The page before the chat. `entered` is called with the id of the logged-in user. */
export function loginPage({ words, entered }) {
  let isNew = false;
  const error = h("p", { className: "problem", role: "alert" });
  const form = h("form", { className: "login", onsubmit: submit });
  const brand = [h("img", { src: "/icon.svg", alt: "", width: 44, height: 44 }), h("h1", {}, "hubbub")];

  const field = (label, properties) => h("label", {}, label, h("input", { required: true, ...properties }));

  function draw() {
    error.textContent = words ?? "";
    form.replaceChildren(
      ...brand,
      h("p", { className: "quiet" }, isNew ? "Make an account, and start to talk." : "Good to see you."),
      ...(isNew
        ? [
            field("Username", { name: "username", autocomplete: "username", maxLength: 50, dir: "auto", autofocus: true }),
            field("Email", { name: "email", type: "email", autocomplete: "email" }),
            field("Password", { name: "password", type: "password", autocomplete: "new-password", minLength: 8 }),
          ]
        : [
            field("Username or email", { name: "login", autocomplete: "username", dir: "auto", autofocus: true }),
            field("Password", { name: "password", type: "password", autocomplete: "current-password" }),
          ]),
      error,
      h("button", { type: "submit", className: "primary" }, isNew ? "Sign up" : "Log in"),
      h(
        "p",
        { className: "quiet" },
        isNew ? "You have an account? " : "You are new here? ",
        h("button", { type: "button", className: "link", onclick: turn }, isNew ? "Log in" : "Sign up"),
      ),
    );
    form.querySelector("input").focus();
  }

  function turn() {
    isNew = !isNew;
    words = "";
    draw();
  }

  async function submit(event) {
    event.preventDefault();
    const button = form.querySelector(".primary");
    button.disabled = true;
    error.textContent = "";
    try {
      const { id } = await post(isNew ? "/api/signup" : "/api/login", Object.fromEntries(new FormData(form)));
      entered(id);
    } catch (refused) {
      error.textContent = refused.message;
      button.disabled = false;
    }
  }

  draw();
  return h("div", { className: "login-page" }, form);
}
