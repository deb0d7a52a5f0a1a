// Which scan of an archive: a dialog over what the server found in it.

import { send } from "/static/api.js";
import { byId, make, notice } from "/static/dom.js";

const NAMES = { nifti: "NIfTI", nrrd: "NRRD", metaimage: "MetaImage" };
const millimetres = (spacing) => spacing.map((v) => +v.toFixed(2)).join(" × ");

function row(scan, k, first) {
  const [depth, height, width] = scan.shape, [d, h, w] = scan.spacing;
  const choice = make("input", { type: "radio", name: "choice", value: k, checked: first, disabled: scan.too_large, required: true });
  return make("label", { className: `offer${scan.too_large ? " none" : ""}` }, choice,
    make("strong", { textContent: `${depth} ${depth === 1 ? "slice" : "slices"}` }),
    make("span", { textContent: scan.plane }),
    make("span", { textContent: `${millimetres([w, h, d])} mm` }),
    make("span", { className: "dim", textContent: `${width} × ${height}` }),
    make("span", { className: "dim", textContent: scan.too_large ? "larger than this server takes" : [NAMES[scan.modality] ?? scan.modality, ...scan.detail].join(", ") }));
}

/** Ask a person for one of the scans that an archive offers, and have it read: the new scan, or null where nobody chose.
 *  `reading()` is called when a choice is made. */
export function choose(offer, reading) {
  const box = byId("offers"), list = byId("offered"), first = offer.scans.findIndex((scan) => !scan.too_large);
  list.replaceChildren(...offer.scans.map((scan, k) => row(scan, k, k === first)));
  const others = [offer.more && `${offer.more.toLocaleString("en")} smaller ones are not listed.`,
    offer.broken && `${offer.broken.toLocaleString("en")} ${offer.broken === 1 ? "is" : "are"} not listed: damaged, or with slices missing.`];
  const minutes = Math.max(1, Math.round(offer.seconds / 60));
  byId("offer-note").textContent = [...others, `The archive waits ${minutes} ${minutes === 1 ? "minute" : "minutes"}, then it is removed.`].filter(Boolean).join(" ");
  box.querySelector("[type=submit]").disabled = first < 0;
  const place = `/api/uploads/${offer.id}`;
  const gone = () => fetch(place, { method: "DELETE", keepalive: true, credentials: "same-origin" }).catch(() => {});
  return new Promise((resolve, reject) => {
    let over = false;
    const end = (settle) => {
      if (over) return;
      over = true;
      clearTimeout(late);
      removeEventListener("pagehide", gone);
      box.close();
      settle();
    };
    const leave = () => end(() => { gone(); resolve(null); });
    const late = setTimeout(() => end(() => {
      notice({ what: "no scan was chosen in time, and the archive was removed", action: "open it again" });
      resolve(null);
    }), offer.seconds * 1000);
    addEventListener("pagehide", gone);
    box.oncancel = (event) => { event.preventDefault(); leave(); };
    box.onclose = leave;
    byId("offer-leave").onclick = leave;
    box.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      const chosen = list.querySelector("input:checked");
      if (!chosen) return;
      end(() => { reading(); send("POST", place, { choice: Number(chosen.value) }).then(resolve, reject); });
    };
    box.showModal();
    (list.querySelector("input:checked") ?? byId("offer-leave")).focus();
  });
}
