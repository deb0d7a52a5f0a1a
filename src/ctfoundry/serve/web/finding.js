// The same place in the other scans, and the most similar scans: requests, cards, and the overlays that belong to them.

import { bytes, get, listen, send } from "/static/api.js";
import { byId, failed, make, named, prose, sentence, short } from "/static/dom.js";
import { draw, fitting } from "/static/plane.js";
import { PLANES, Scan } from "/static/scan.js";

const MOST_CARDS = 60;

export class Finding {
  /** `jump(id, point)` opens a scan at a point; `heated()` is called when the heat map of the open scan may have come. */
  constructor({ jump, heated }) {
    Object.assign(this, { jump, heated, job: null, running: false, speed: "", query: null, hits: new Map(), heatOn: false, heats: new Map(), open: null });
    this.seen = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && this.show(entry.target.hit)), { rootMargin: "200px" });
    new ResizeObserver(() => this.redraw()).observe(byId("hits"));
  }

  clear() {
    this.stop();
    this.seen.disconnect();
    Object.assign(this, { job: null, query: null });
    this.hits.clear();
    this.heats.clear();
    byId("hits").replaceChildren(make("p", { className: "hint", textContent: `Click a point in a plane: its place is looked for in all other scans. ${this.speed}` }));
    byId("state").textContent = "";
  }

  stop() {
    if (!this.running) return false;
    send("DELETE", `/api/jobs/${this.job}`).catch(() => {});
    return true;
  }

  /** Look for a point (world mm) of a scan in all others. */
  async search(scan, point, window) {
    this.clear();
    const query = (this.query = { scan: scan.id, point, window });
    this.busy(true, "Waiting…");
    try {
      const { job } = await send("POST", "/api/jobs", { kind: "search", scan: scan.id, point });
      if (this.query !== query) return void send("DELETE", `/api/jobs/${job}`).catch(() => {});
      this.job = job;
      byId("hits").replaceChildren();
      let missed = 0;
      const last = await listen(job, (event) => {
        if (this.query !== query) return;
        if (event.type === "waiting") this.busy(true, event.ahead ? `Waiting, ${event.ahead} before this one` : "Waiting…");
        if (event.type === "progress") this.busy(true, `${Math.max(0, event.done - 1)} of ${event.total - 1} scans`, event.done / event.total); // the first is the scan itself
        if (event.type === "hit") this.add(event);
        if (event.type === "missed") { missed += 1; this.add(event); }
      });
      if (this.query !== query) return;
      const count = [...this.hits.values()].filter((hit) => hit.point && hit.scan !== scan.id).length;
      const absent = [...this.hits.values()].filter((hit) => hit.present === false && hit.scan !== scan.id).length;
      const unsure = count && [...this.hits.values()].every((hit) => hit.confidence == null) ? " · uncalibrated: similarity is no probability" : "";
      this.busy(false, (last.type === "cancelled" ? `Stopped after ${count}` : `Searched ${count} ${count === 1 ? "scan" : "scans"}${missed ? `, ${missed} could not be searched` : ""}${absent ? `, perhaps not in ${absent} of them` : ""}`) + unsure);
      if (!count && !missed) byId("hits").append(make("p", { className: "hint", textContent: "There is no other scan to search in." }));
    } catch (error) {
      if (this.query !== query) return;
      this.busy(false, "");
      failed(error, `Search from ${short(scan.id)}`);
    }
  }

  busy(running, text, share = null) {
    this.running = running;
    byId("state").textContent = text;
    byId("stop").hidden = !running;
    byId("progress").hidden = !running;
    if (share === null) byId("progress").removeAttribute("value");
    else byId("progress").value = share;
  }

  add(event) {
    const own = event.scan === this.query.scan;
    const hit = { ...event, own, job: this.job };
    if (own && hit.point) hit.point = this.query.point;
    this.hits.set(event.scan, hit);
    if (this.hits.size > MOST_CARDS && !own) return;
    const title = make("strong", { textContent: short(event.scan), title: event.scan });
    hit.card = make("article", { className: "hit", data: { scan: event.scan } });
    if (event.type === "missed") {
      hit.card.append(make("div", { className: "row" }, title), none(event.what));
      byId("hits").append(hit.card);
      return;
    }
    hit.canvases = Object.fromEntries(Object.keys(PLANES).map((plane) => [plane, make("canvas", { ariaLabel: `${plane} plane of the found place` })]));
    const doubt = event.present === false ? make("span", { className: "tag warn", textContent: "perhaps not in this scan" })
      : event.confidence == null ? null : make("span", { className: "tag", textContent: `confidence ${event.confidence.toFixed(2)}`, title: "share of such answers that were right on phantoms" });
    const bar = make("meter", { min: 0, max: 1, value: Math.max(0, event.similarity), title: "cosine similarity" });
    const facts = own ? make("span", { className: "tag", textContent: "sought" }) : make("span", { className: "number", textContent: event.similarity.toFixed(3) });
    const open = make("button", { textContent: own ? "Back to it" : "Open here", onclick: () => this.jump(event.scan, hit.point) });
    hit.card.append(make("div", { className: "row" }, title, own ? null : bar, facts, own ? null : doubt, make("span", { className: "spring" }), open), make("div", { className: "trio busy" }, ...Object.values(hit.canvases)));
    hit.card.hit = hit;
    hit.card.querySelector(".trio").onclick = () => this.jump(event.scan, hit.point);
    const before = [...byId("hits").children].find((card) => !own && !card.hit?.own && (!card.hit || card.hit.similarity < event.similarity));
    if (own) byId("hits").prepend(hit.card);
    else byId("hits").insertBefore(hit.card, before ?? null);
    this.seen.observe(hit.card);
    this.mark();
    if (event.scan === this.open) this.heated();
  }

  /** Show which card is that of the open scan. */
  mark() {
    for (const hit of this.hits.values()) hit.card?.classList.toggle("current", hit.scan === this.open);
  }

  /** Load and draw a card that has come into sight. */
  async show(hit) {
    if (!hit?.canvases) return;
    try {
      hit.volume ??= new Scan(await get(`/api/scans/${hit.scan}`));
    } catch (error) {
      if (!hit.canvases) return;
      hit.canvases = null;
      hit.card.querySelector(".trio").replaceWith(none(error.what ?? String(error)));
      hit.card.querySelector("button").disabled = error.status === 410;
      return;
    }
    if (this.heatOn) hit.heat = await this.heat(hit.scan).catch(() => null); // the open scan's tells why
    this.paint(hit);
  }

  paint(hit) {
    if (!hit.volume || !hit.card.isConnected) return;
    const scan = hit.volume, point = scan.inside(scan.voxel(hit.point));
    const box = around(scan, point);
    const view = {
      point, middle: box.middle, zoom: 1, scale: fitting(box, hit.canvases), spacing: scan.spacing, small: true, mark: true,
      window: this.query.window && scan.unit === "HU" ? this.query.window : scan.window, heat: this.heatOn ? hit.heat : null,
    };
    const there = Object.entries(hit.canvases).map(([plane, canvas]) => draw(canvas, plane, scan, view, () => this.paint(hit)));
    hit.card.querySelector(".trio").classList.toggle("busy", !there.every(Boolean));
  }

  redraw() {
    for (const hit of this.hits.values()) if (hit.canvases) this.paint(hit);
  }

  /** The heat map over a scan of the present search; null where there is none. */
  async heat(id) {
    const hit = this.hits.get(id);
    if (!hit?.point) return null;
    const key = `${hit.job}/${id}`;
    if (!this.heats.has(key)) {
      this.heats.set(key, bytes(`/api/jobs/${hit.job}/heat/${id}`).then(({ data, shape }) => ({ key, shape, data: new Uint8Array(data) })));
      this.heats.get(key).catch(() => this.heats.delete(key));
    }
    return this.heats.get(key);
  }

  heating(on) {
    this.heatOn = on;
    for (const hit of this.hits.values()) {
      const box = hit.card?.getBoundingClientRect();
      if (box && box.top < window.innerHeight + 200) this.show(hit);
    }
  }

  /** The most similar scans. */
  async similar(id) {
    const box = byId("neighbours");
    box.replaceChildren(make("p", { className: "hint", textContent: "…" }));
    try {
      let found = await send("POST", `/api/scans/${id}/similar?k=8`);
      if (found.job) {
        box.replaceChildren(make("p", { className: "hint", textContent: "Embedding this scan…" }));
        await listen(found.job, (event) => { if (event.type === "neighbours") found = event; });
      }
      if (this.open !== id) return;
      box.replaceChildren(...(found.neighbours ?? []).map((n) => make("button", { className: "neighbour", title: n.id, onclick: () => this.jump(n.id) },
        picture(n.id, (button) => { button.disabled = true; }), make("span", {}, make("strong", { textContent: short(n.id) }), make("span", { className: "number", textContent: n.similarity.toFixed(3), title: "Cosine similarity of the two scans' vectors. All CTs are much alike to a network: their order says more than the number." })))));
      if (!box.children.length) box.append(make("p", { className: "hint", textContent: "The index holds no other scan." }));
    } catch (error) {
      if (this.open === id) box.replaceChildren(make("p", { className: "hint", }, ...prose(sentence(error.what ?? String(error)))));
    }
  }
}

/** The body's box of a scan, and a place that may lie beyond it, in voxels. */
function around(scan, point) {
  const margin = scan.spacing.map((mm) => 30 / mm);
  const first = scan.first.map((v, axis) => Math.min(v, point[axis] - margin[axis]));
  const last = scan.last.map((v, axis) => Math.max(v, point[axis] + margin[axis]));
  return { first, last, middle: first.map((v, axis) => (v + last[axis]) / 2), spacing: scan.spacing };
}

/** A field that says why there is no picture. */
const none = (why) => make("p", { className: "picture none" }, make("span", {}, ...prose(sentence(why))));

/** The small picture of a scan; where it cannot be had the reason, and `gone(button around it)` is called. */
export function picture(id, gone) {
  const image = make("img", { src: `/api/scans/${id}/thumb`, alt: "", loading: "lazy" });
  const frame = make("span", { className: "picture busy" }, image);
  image.onload = () => frame.classList.remove("busy");
  image.onerror = async () => { // an image does not tell why
    if (!frame.isConnected) return; // its scan was removed meanwhile
    const why = await bytes(image.src).catch((error) => error);
    frame.className = "picture none";
    frame.replaceChildren(make("span", {}, ...prose(sentence(why.what ?? "no picture"))));
    if (why.status === 410) gone(frame.closest("button"));
  };
  return frame;
}
