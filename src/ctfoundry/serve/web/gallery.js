// The list of scans.

import { get, send } from "/static/api.js";
import { byId, make, notice, short } from "/static/dom.js";
import { picture } from "/static/finding.js";

const PAGE = 60;

/** Show the first scans; `open(id)` is called for the one that a person chooses. */
export async function list(open, offset = 0) {
  const cards = byId("cards");
  if (!offset) {
    cards.classList.add("busy");
    byId("count").textContent = "";
  }
  try {
    const { total, scans } = await get(`/api/scans?offset=${offset}&count=${PAGE}`);
    if (!offset) cards.replaceChildren();
    cards.append(...scans.map((scan) => card(scan, open)));
    byId("count").textContent = `${total.toLocaleString("en")}`;
    byId("empty").hidden = total > 0;
    const more = offset + scans.length < total;
    byId("more").hidden = !more;
    byId("more").firstElementChild.onclick = () => list(open, offset + PAGE);
  } catch (error) {
    notice(error.what ?? String(error), error.action);
  } finally {
    cards.classList.remove("busy");
  }
}

function card(scan, open) {
  const gone = scan.state === "unavailable";
  const tag = scan.state === "upload" ? "this session" : scan.indexed ? "" : "not in the index";
  const box = make("button", { className: `card ${scan.state}`, title: scan.id, disabled: gone, onclick: () => open(scan.id) },
    gone ? make("span", { className: "picture none", textContent: "unavailable" }) : picture(scan.id),
    make("span", { className: "row" }, make("strong", { textContent: short(scan.id) }), make("span", { className: gone ? "dim" : "tag", textContent: gone ? scan.problem : tag })));
  if (scan.state !== "upload") return box;
  const remove = make("button", { className: "quiet", textContent: "Remove", onclick: async () => {
    try {
      await send("DELETE", `/api/scans/${scan.id}`);
      await list(open);
    } catch (error) { notice(error.what, error.action); }
  } });
  return make("div", { className: "carded" }, box, remove);
}
