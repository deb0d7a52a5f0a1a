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

/** A message at the top of the page that stays until it is closed, or for some seconds. */
export function notice(what, action = "", seconds = 0) {
  const close = make("button", { className: "quiet", textContent: "✕", ariaLabel: "Close" });
  const box = make("div", { className: "notice" }, make("strong", { textContent: sentence(what) }), make("span", { textContent: sentence(action) }), close);
  close.onclick = () => box.remove();
  for (const old of [...byId("notices").children]) if (old.textContent === box.textContent) old.remove();
  byId("notices").append(box);
  if (seconds) setTimeout(() => box.remove(), seconds * 1000);
  return box;
}

export const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".") : "");

/** A short public name of a scan: the first digits of its id. */
export const short = (id) => id.replace(/^(scan|upload)-/, "").slice(0, 8);
