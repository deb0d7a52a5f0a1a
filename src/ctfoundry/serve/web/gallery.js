// The list of scans.

import { get, send } from "/static/api.js";
import { byId, failed, make, named, prose, sentence, short } from "/static/dom.js";
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
    failed(error);
  } finally {
    cards.classList.remove("busy");
  }
}

function card(scan, open) {
  const gone = scan.state === "unavailable";
  const tag = scan.state === "upload" ? "this session" : scan.indexed ? "" : "not in the index";
  const box = make("button", { className: `card ${scan.state}`, title: scan.id, disabled: gone, onclick: () => open(scan.id) },
    gone ? make("span", { className: "picture none" }, make("span", {}, ...prose(sentence(scan.problem)))) : picture(scan.id, (button) => { button.disabled = true; }),
    make("span", { className: "row" }, make("strong", { textContent: short(scan.id) }), make("span", { className: "tag", textContent: tag })));
  if (scan.state !== "upload") return box;
  const remove = make("button", { className: "quiet", textContent: "Remove", onclick: async () => {
    try {
      await send("DELETE", `/api/scans/${scan.id}`);
      await list(open);
    } catch (error) { failed(error, named(scan.id)); }
  } });
  return make("div", { className: "carded" }, box, remove);
}
