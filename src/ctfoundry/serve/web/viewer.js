// The three linked planes of the open scan: window, slices, zoom, pan, crosshair.

import { byId, make } from "/static/dom.js";
import { draw, fitting, placing } from "/static/plane.js";
import { PLANES } from "/static/scan.js";

const PRESETS = [["Auto", null], ["Lung", [-600, 1500]], ["Soft tissue", [40, 400]], ["Bone", [400, 1800]], ["Brain", [40, 80]]];
const DRAGS = [["window", "Window"], ["pan", "Pan"], ["slices", "Slices"]];
const NAMES = Object.keys(PLANES);

export class Viewer {
  /** `clicked(point)` after a click on a point, `changed()` after any change of the view. */
  constructor({ clicked, changed }) {
    Object.assign(this, { clicked, changed, scan: null, drag: "window", active: "axial", canvases: {} });
    for (const plane of NAMES) {
      const canvas = make("canvas", { tabIndex: 0, ariaLabel: `${plane} plane`, data: { plane } });
      this.canvases[plane] = canvas;
      byId("planes").append(make("figure", { data: { plane } }, canvas));
      this.listenTo(canvas, plane);
    }
    PRESETS.forEach(([name], i) => byId("presets").append(
      make("button", { textContent: name, title: `${name} window (${i + 1})`, onclick: () => this.preset(i) })));
    DRAGS.forEach(([key, name]) => byId("drags").append(
      make("button", { textContent: name, title: `Dragging changes the ${name.toLowerCase()}`, data: { key }, onclick: () => this.dragging(key) })));
    this.dragging("window");
    new ResizeObserver(() => { this.fit(); this.redraw(); }).observe(byId("planes"));
  }

  /** Show a scan; `state` may hold a point (world mm) and a window. */
  open(scan, { point, window } = {}) {
    this.scan = scan;
    scan.failed = (error) => this.broke?.(error, scan.id);
    const start = scan.inside(point ? scan.voxel(point) : scan.voxel(scan.centre).map(Math.round));
    this.view = {
      point: start, middle: [...scan.middle], zoom: 1, scale: 1, spacing: scan.spacing,
      window: window ?? [...scan.window], cross: this.view?.cross ?? true, heat: null, colours: null,
    };
    this.fit();
    this.marked();
    this.redraw();
    this.read();
  }

  close() {
    this.scan = null;
  }

  get point() {
    return this.scan.world(this.view.point);
  }

  /** Show a part of the view anew: `{point, heat, colours, window, ...}`. */
  change(part) {
    Object.assign(this.view, part);
    this.redraw();
    this.changed();
  }

  goto(point) {
    this.change({ point: this.scan.inside(this.scan.voxel(point)) });
    this.read();
  }

  fit() {
    if (this.scan && byId("planes").clientWidth) this.view.scale = fitting(this.scan, this.canvases);
  }

  reset() {
    this.fit();
    this.change({ zoom: 1, middle: [...this.scan.middle], window: [...this.scan.window] });
    this.marked();
  }

  preset(i) {
    this.change({ window: [...(PRESETS[i][1] ?? this.scan.window)] });
    this.marked();
  }

  dragging(key) {
    this.drag = key;
    for (const button of byId("drags").children) button.setAttribute("aria-pressed", button.dataset.key === key);
    byId("planes").dataset.drag = key;
  }

  step(count) {
    const axis = PLANES[this.active].through, point = [...this.view.point];
    point[axis] = Math.round(point[axis]) + count;
    this.change({ point: this.scan.inside(point) });
    this.read();
  }

  choose(offset) {
    this.active = NAMES[(NAMES.indexOf(this.active) + offset + 3) % 3];
    this.canvases[this.active].focus();
    this.redraw();
  }

  zoom(factor) {
    this.change({ zoom: Math.min(20, Math.max(0.5, this.view.zoom * factor)) });
  }

  redraw() {
    if (!this.scan || this.due) return;
    this.due = requestAnimationFrame(() => {
      this.due = 0;
      if (!this.scan) return;
      for (const plane of NAMES) {
        const there = draw(this.canvases[plane], plane, this.scan, this.view, () => { this.redraw(); this.read(); });
        this.canvases[plane].parentElement.classList.toggle("busy", !there);
        this.canvases[plane].parentElement.classList.toggle("active", plane === this.active);
      }
    });
  }

  /** Which preset the window is. */
  marked() {
    const same = (w) => w[0] === this.view.window[0] && w[1] === this.view.window[1];
    const on = PRESETS.findIndex(([, w], i) => (i ? same(w) : same(this.scan.window)));
    [...byId("presets").children].forEach((button, i) => button.setAttribute("aria-pressed", i === on));
  }

  /** Value and place under the pointer, or at the crosshair. */
  read(plane = this.active, voxel = this.view.point) {
    if (!this.scan) return;  // a slice came in after its scan was closed
    const inside = voxel.every((v, axis) => v >= -0.5 && v <= this.scan.shape[axis] - 0.5);
    const value = inside ? this.scan.value(plane, this.scan.inside(voxel)) : null;
    const place = this.scan.world(voxel).map((v) => v.toFixed(1)).join(", ");
    const number = value === null ? "–" : Math.abs(this.scan.slope - 1) < 1e-9 ? value : value.toPrecision(4);
    byId("reading").textContent = `${number} ${this.scan.unit}   (${place}) mm   W ${Math.round(this.view.window[1])} C ${Math.round(this.view.window[0])}`;
  }

  listenTo(canvas, plane) {
    const { through, down, across, up } = PLANES[plane];
    let from = null, rolled = 0;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return placing(canvas, plane, this.scan, this.view).voxel(event.clientX - box.left, event.clientY - box.top);
    };
    canvas.oncontextmenu = (event) => event.preventDefault();
    canvas.onfocus = () => { this.active = plane; this.redraw(); };
    canvas.onpointerdown = (event) => {
      if (!this.scan) return;
      canvas.setPointerCapture(event.pointerId);
      this.active = plane;
      const kind = event.button === 1 || event.shiftKey ? "pan" : event.button === 2 ? "zoom" : this.drag;
      from = { x: event.clientX, y: event.clientY, moved: false, kind, button: event.button, rest: 0 };
      if (event.button === 1) event.preventDefault();
    };
    canvas.onpointermove = (event) => {
      if (!this.scan) return;
      if (!from) return this.read(plane, at(event));
      const dx = event.clientX - from.x, dy = event.clientY - from.y;
      if (!from.moved && Math.hypot(dx, dy) < 4) return undefined;
      Object.assign(from, { moved: true, x: event.clientX, y: event.clientY });
      if (from.kind === "pan") {
        const { sx, sy } = placing(canvas, plane, this.scan, this.view), middle = [...this.view.middle];
        middle[across] -= dx / sx;
        middle[down] -= dy / sy;
        this.change({ middle });
      } else if (from.kind === "zoom") this.zoom(Math.exp(-dy / 150));
      else if (from.kind === "slices") {
        from.rest += dy;
        const steps = Math.trunc(from.rest / 4);
        from.rest -= steps * 4;
        if (steps) this.step(through === 1 ? steps : -steps);
      } else {
        const [centre, width] = this.view.window, speed = Math.max(0.2, width / 300);
        this.change({ window: [centre - dy * speed, Math.max(1, width + dx * speed)] });
        this.marked();
        this.read();
      }
      return undefined;
    };
    canvas.onpointerup = (event) => {
      if (from && !from.moved && from.button === 0 && this.scan) {
        const voxel = at(event);
        if (voxel.every((v, axis) => v >= -0.5 && v <= this.scan.shape[axis] - 0.5)) {
          this.change({ point: this.scan.inside(voxel) });
          this.read();
          this.clicked(this.point);
        }
      }
      from = null;
    };
    canvas.onpointercancel = () => { from = null; };
    canvas.onpointerleave = () => { if (this.scan && !from) this.read(); };
    canvas.addEventListener("wheel", (event) => {
      if (!this.scan) return;
      event.preventDefault();
      this.active = plane;
      if (event.ctrlKey) return this.zoom(Math.exp(-event.deltaY / 300));
      rolled += event.deltaMode ? event.deltaY * 40 : event.deltaY;
      const steps = Math.trunc(rolled / 40) || (Math.abs(event.deltaY) >= 40 ? Math.sign(event.deltaY) : 0);
      if (!steps) return undefined;
      rolled = 0;
      this.step(Math.sign(steps) * (up || plane === "axial" ? (plane === "coronal" ? 1 : -1) : 1));
      return undefined;
    }, { passive: false });
  }
}
