// Small helpers for the page.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; texts are set as text, never as HTML. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "data") Object.assign(element.dataset, value);
    else if (key.startsWith("aria") || key === "role") element.setAttribute(key.replace(/[A-Z]/g, (c) => "-" + c.toLowerCase()), value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A text of the server as nodes: commands and options in the letters of a terminal, and never broken after a hyphen. */
export const prose = (text) => text.split(/(`[^`]+`|--[a-z-]+(?: [A-Z]+)?)/).map((part, k) =>
  k % 2 ? make("code", { className: part[0] === "-" ? "option" : "", textContent: part.replaceAll("`", "") }) : part);

const MOST_NOTICES = 3;

/** A message that stays until it is closed, another view is opened, or some seconds are over. `about` says what it is about. */
export function notice({ what, action = "", about = "", seconds = 0 }) {
  const close = make("button", { className: "quiet", textContent: "✕", ariaLabel: "Close", title: "Close" });
  const box = make("div", { className: "notice" }, about ? make("span", { className: "about", textContent: `${about}: ` }) : null,
    make("strong", {}, ...prose(sentence(what))), " ", make("span", {}, ...prose(sentence(action))), close);
  close.onclick = () => box.remove();
  const others = [...byId("notices").children].filter((old) => old.textContent !== box.textContent);
  byId("notices").replaceChildren(...others.slice(1 - MOST_NOTICES), box);
  if (seconds) setTimeout(() => box.remove(), seconds * 1000);
}

/** The message of a failure. */
export const failed = (error, about = "", seconds = 0) => notice({ what: error.what ?? String(error), action: error.action, about, seconds });

export const clearNotices = () => byId("notices").replaceChildren();

export const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".") : "");

export const named = (id) => `Scan ${short(id)}`;

/** A short public name of a scan: the first digits of its id. */
export const short = (id) => id.replace(/^(scan|upload)-/, "").slice(0, 8);
