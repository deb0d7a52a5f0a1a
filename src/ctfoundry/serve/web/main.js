// The page: which view is open, what the address says of it, keys, theme, files.

import { bytes, get, listen, send, upload } from "/static/api.js";
import { choose } from "/static/choosing.js";
import { byId, clearNotices, failed, make, named, notice, short } from "/static/dom.js";
import { Finding } from "/static/finding.js";
import { list } from "/static/gallery.js";
import { Scan } from "/static/scan.js";
import { Viewer } from "/static/viewer.js";

if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", "/" + location.hash); // the cookie has it now

const viewer = new Viewer({ clicked, changed: () => { clearTimeout(noting); noting = setTimeout(note, 200); } });
const finding = new Finding({ jump, heated: () => overlays() });
let noting = 0, opening = 0;
viewer.broke = (error, id) => failed(error, named(id), 12);

// The address: #scan=ID&at=x,y,z&window=c,w&show=heat,colours&from=ID,x,y,z ------------------------------------------

const numbers = (text, count) => {
  const found = (text ?? "").split(",").map(Number);
  return text && found.length === count && found.every(Number.isFinite) ? found : null;
};

function state() {
  const given = new URLSearchParams(location.hash.slice(1)), from = (given.get("from") ?? "").split(",");
  const window = numbers(given.get("window"), 2);
  return {
    scan: given.get("scan"), at: numbers(given.get("at"), 3), window: window && window[1] > 0 ? window : null,
    show: (given.get("show") ?? "").split(","),
    from: from.length === 4 && numbers(from.slice(1).join(","), 3) ? { scan: from[0], point: from.slice(1).map(Number) } : null,
  };
}

function address() {
  const text = (values) => values.map((v) => +v.toFixed(1)).join(",");
  const parts = [`scan=${encodeURIComponent(viewer.scan.id)}`, `at=${text(viewer.point)}`];
  const w = viewer.view.window;
  if (w[0] !== viewer.scan.window[0] || w[1] !== viewer.scan.window[1]) parts.push(`window=${text(w)}`);
  const shown = ["heat", "colours"].filter((name) => byId(name).checked);
  if (shown.length) parts.push(`show=${shown}`);
  if (finding.query) parts.push(`from=${encodeURIComponent(finding.query.scan)},${text(finding.query.point)}`);
  return "#" + parts.join("&");
}

const note = () => { if (viewer.scan) history.replaceState(null, "", address()); };

async function route() {
  clearTimeout(noting);
  clearNotices(); // they are about what was done before
  const wanted = state();
  if (!wanted.scan) return showGallery();
  for (const name of ["heat", "colours"]) byId(name).checked = wanted.show.includes(name);
  finding.heatOn = byId("heat").checked;
  if (!wanted.from) finding.clear(); // what was sought before is no answer for this view
  await open(wanted.scan, { point: wanted.at, window: wanted.window });
  if (wanted.from && viewer.scan && !same(wanted.from)) {
    const source = wanted.from.scan === viewer.scan.id ? viewer.scan : { id: wanted.from.scan };
    finding.search(source, wanted.from.point, viewer.view.window);
  }
  return undefined;
}

const same = (from) => finding.query?.scan === from.scan && from.point.every((v, i) => Math.abs(v - finding.query.point[i]) < 0.06);

// Views ----------------------------------------------------------------------------------------------------------------

function showGallery() {
  opening += 1;
  viewer.close();
  finding.clear();
  byId("viewer").hidden = true;
  byId("gallery").hidden = false;
  byId("crumb").textContent = "";
  byId("reading").textContent = "";
  document.title = "ctfoundry";
  return list(enter);
}

function home() {
  clearTimeout(noting);
  if (viewer.scan) note();
  history.pushState(null, "", "/");
  route();
}

const enter = (id) => { location.hash = `#scan=${encodeURIComponent(id)}`; };

async function open(id, { point, window } = {}) {
  const mine = (opening += 1);
  byId("gallery").hidden = true;
  byId("viewer").hidden = false;
  byId("crumb").textContent = short(id);
  byId("crumb").title = id;
  document.title = `${short(id)} · ctfoundry`;
  byId("planes").classList.add("opening");
  byId("find").disabled = true;
  byId("reading").textContent = "Opening…";
  finding.open = id;
  if (!finding.query) finding.clear();
  finding.mark();
  try {
    const scan = viewer.scan?.id === id ? viewer.scan : new Scan(await get(`/api/scans/${encodeURIComponent(id)}`));
    if (mine !== opening) return;
    viewer.open(scan, { point, window });
    byId("crumb").title = `${id}\n${scan.shape.join(" × ")} voxels of ${scan.spacing.map((mm) => +mm.toFixed(2)).join(" × ")} mm (up, back, left)`;
    if (scan.oblique > 1) notice({ what: `the slices are tilted by ${scan.oblique}°`, action: "the letters name the nearest directions", about: named(id), seconds: 8 });
    finding.similar(id);
    overlays();
  } catch (error) {
    if (mine !== opening) return;
    failed(error, named(id));
    viewer.close();
    showGallery();
    history.replaceState(null, "", "/");
  } finally {
    if (mine === opening) {
      byId("planes").classList.remove("opening");
      byId("find").disabled = false;
    }
  }
}

/** Open another scan, at a point where one is given, with the search and the window kept. */
function jump(id, point) {
  clearTimeout(noting);
  if (viewer.scan) note();
  const parts = new URLSearchParams(location.hash.slice(1));
  const kept = ["window", "show", ...(point ? ["from"] : [])].filter((key) => parts.has(key)).map((key) => `${key}=${parts.get(key)}`);
  if (!point) finding.clear();
  location.hash = "#" + [`scan=${encodeURIComponent(id)}`, ...(point ? [`at=${point.map((v) => +v.toFixed(1))}`] : []), ...kept].join("&");
  byId("planes").scrollIntoView({ block: "nearest" });
}

function clicked(point) {
  if (byId("onclick").checked) finding.search(viewer.scan, point, viewer.view.window).then(overlays);
}

function find() {
  if (viewer.scan) finding.search(viewer.scan, viewer.point, viewer.view.window).then(overlays);
}

// Overlays -------------------------------------------------------------------------------------------------------------

const coloured = new Map();

async function overlays() {
  const scan = viewer.scan;
  if (!scan) return;
  try {
    const heat = byId("heat").checked ? await finding.heat(scan.id) : null;
    if (viewer.scan === scan) viewer.change({ heat: byId("heat").checked ? heat : null });
    if (byId("colours").checked && !coloured.has(scan.id)) {
      coloured.set(scan.id, colours(scan.id));
      coloured.get(scan.id).catch(() => coloured.delete(scan.id)).finally(() => working(""));
      if (coloured.size > 6) coloured.delete(coloured.keys().next().value);
    }
    const made = byId("colours").checked ? await coloured.get(scan.id) : null;
    if (viewer.scan === scan) viewer.change({ colours: byId("colours").checked ? made : null });
  } catch (error) {
    if (viewer.scan === scan) failed(error, named(scan.id), 12);
  }
}

async function colours(id) {
  working("Colouring…");
  const { job } = await send("POST", "/api/jobs", { kind: "colours", scan: id });
  await listen(job, (event) => {
    if (event.type === "waiting") working(event.ahead ? `Colouring, ${event.ahead} before it` : "Colouring…");
    if (event.type === "progress") working(`Colouring, ${event.done} of ${event.total}`);
  });
  const { data, shape } = await bytes(`/api/scans/${id}/colours`);
  return { key: `colours/${id}`, shape, words: new Uint32Array(data) };
}

function working(text) {
  byId("work").textContent = text;
  byId("work").hidden = !text;
}

// Files ----------------------------------------------------------------------------------------------------------------

const FILE = "Your file"; // its name may be a patient's
let sending = false;

async function take(file) {
  if (!file || sending) return;
  if (file.size > limit) return void notice({ what: `it is larger than the ${Math.round(limit / 2 ** 20)} MiB that this server takes`, about: FILE });
  sending = true;
  byId("upload").disabled = true;
  try {
    const reading = () => working("Reading the file…");
    let scan = await upload(file, (share) => (share < 1 ? working(`Sending, ${Math.round(share * 100)} %`) : reading()));
    if (scan.choose) {
      working("");
      scan = await choose(scan.choose, reading);
    }
    if (scan) enter(scan.id);
  } catch (error) {
    failed(error, FILE);
  } finally {
    sending = false;
    byId("upload").disabled = false;
    working("");
  }
}

let limit = Infinity;
byId("upload").onclick = () => byId("file").click();
byId("file").onchange = () => { take(byId("file").files[0]); byId("file").value = ""; };
addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  byId("drop").hidden = false;
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").hidden = true;
  take(event.dataTransfer.files[0]);
});

// Keys, theme ------------------------------------------------------------------------------------------------------------

const THEMES = { auto: ["light", "◐", "as the system"], light: ["dark", "☀", "light"], dark: ["auto", "☾", "dark"] };

function theme(name) {
  const known = THEMES[name] ? name : "auto";
  document.documentElement.dataset.theme = known;
  byId("theme").textContent = THEMES[known][1];
  byId("theme").title = `Theme: ${THEMES[known][2]} (T)`;
  try { localStorage.setItem("theme", known); } catch { /* private windows keep nothing */ }
}
const nextTheme = () => theme(THEMES[document.documentElement.dataset.theme][0]);
let remembered = "auto";
try { remembered = localStorage.getItem("theme") ?? "auto"; } catch { /* as above */ }
theme(remembered);
byId("theme").onclick = nextTheme;

const flip = (id) => { byId(id).checked = !byId(id).checked; byId(id).onchange?.(); };
byId("heat").onchange = () => { finding.heating(byId("heat").checked); overlays(); note(); };
byId("colours").onchange = () => { overlays(); note(); };
byId("help").onclick = () => byId("keys").showModal();
byId("find").onclick = find;
byId("stop").onclick = () => finding.stop();
byId("home").onclick = (event) => { event.preventDefault(); home(); };

const KEYS = {
  ArrowUp: () => viewer.step(viewer.active === "coronal" ? -1 : 1), ArrowDown: () => viewer.step(viewer.active === "coronal" ? 1 : -1),
  PageUp: () => viewer.step(viewer.active === "coronal" ? -10 : 10), PageDown: () => viewer.step(viewer.active === "coronal" ? 10 : -10),
  ArrowLeft: () => viewer.choose(-1), ArrowRight: () => viewer.choose(1),
  1: () => viewer.preset(0), 2: () => viewer.preset(1), 3: () => viewer.preset(2), 4: () => viewer.preset(3), 5: () => viewer.preset(4),
  Enter: find, f: find, h: () => flip("heat"), c: () => flip("colours"), x: () => viewer.change({ cross: !viewer.view.cross }),
  r: () => viewer.reset(), "+": () => viewer.zoom(1.25), "=": () => viewer.zoom(1.25), "-": () => viewer.zoom(0.8),
  Escape: () => { if (!finding.stop()) home(); },
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "?") return void byId("keys").showModal();
  if (event.key.toLowerCase() === "t") return void nextTheme();
  const on = document.activeElement, act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (!act || !viewer.scan || (event.key === "Enter" && on?.matches("button, input"))) return;
  event.preventDefault();
  act();
});

addEventListener("hashchange", route);
try {
  const about = await get("/api/state");
  limit = about.upload_bytes;
  byId("model").replaceChildren(make("span", { textContent: about.model.name }));
  const stored = about.maps.used && about.maps.stored;
  finding.speed = stored ? "Scans with a map stored in the index answer at once." : "The first search passes each scan through the network, which takes a while; later ones are quick.";
  byId("model").title = `levels searched in: ${about.model.levels.join(", ")}${stored ? ", as stored with the index" : ""}`;
  if (about.model.weights === "random") byId("model").append(make("span", { className: "tag warn", textContent: "random weights" }));
  await route();
} catch (error) {
  failed(error);
}
document.documentElement.dataset.ready = "yes";
