"use strict";
// Maps side by side. One point is one scan in all of them: hovering over it in one map rings it in the others.
(() => {
  const data = JSON.parse(document.getElementById("clusters-data").textContent);
  const root = document.getElementById("clusters");
  const shown = data.labels.map(() => true);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  let hovered = -1;
  const maps = [];

  const shapes = [
    (c, r) => c.arc(0, 0, r, 0, 2 * Math.PI),
    (c, r) => c.rect(-0.9 * r, -0.9 * r, 1.8 * r, 1.8 * r),
    (c, r) => { c.moveTo(0, -1.25 * r); c.lineTo(1.15 * r, 0.85 * r); c.lineTo(-1.15 * r, 0.85 * r); c.closePath(); },
    (c, r) => { c.moveTo(0, -1.3 * r); c.lineTo(1.3 * r, 0); c.lineTo(0, 1.3 * r); c.lineTo(-1.3 * r, 0); c.closePath(); },
  ];
  const radius = () => Math.max(3, Math.min(6, 60 / Math.sqrt(data.ids.length)));

  function drawAll() { maps.forEach((map) => map.draw()); }

  function legend() {
    const box = document.createElement("div");
    box.className = "legend";
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "labels shown");
    const buttons = data.labels.map((label, k) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = 28;
      const c = canvas.getContext("2d");
      c.translate(14, 14);
      c.fillStyle = label.colour;
      c.beginPath();
      shapes[k % shapes.length](c, 8);
      c.fill();
      button.append(canvas, document.createTextNode(`${label.name} (${label.count})`));
      button.addEventListener("click", () => set(k, !shown[k]));
      box.append(button);
      return button;
    });
    function set(k, on) {
      shown[k] = on;
      buttons[k].setAttribute("aria-pressed", String(on));
      drawAll();
    }
    const all = document.createElement("button");
    all.type = "button";
    all.className = "all";
    all.textContent = "all / none";
    all.addEventListener("click", () => { const on = !shown.every(Boolean); shown.forEach((_, k) => set(k, on)); });
    box.append(all);
    root.append(box);
  }

  function makeMap(panel) {
    const figure = document.createElement("figure");
    const title = document.createElement("figcaption");
    title.textContent = panel.title;
    const canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${panel.title}: a map of ${data.ids.length} points. Arrow keys move, plus and minus zoom, 0 resets.`);
    figure.append(title, canvas);
    grid.append(figure);
    const view = { scale: 1, x: 0, y: 0 };
    const size = () => canvas.clientWidth;
    const place = (i) => {
      const half = size() / 2;
      return [half + (panel.x[i] * 0.93 * view.scale + view.x) * half, half - (panel.y[i] * 0.93 * view.scale + view.y) * half];
    };
    function draw() {
      const ratio = window.devicePixelRatio || 1, side = size();
      if (!side) return;
      canvas.width = canvas.height = Math.round(side * ratio);
      const c = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
      c.scale(ratio, ratio);
      c.clearRect(0, 0, side, side);
      c.strokeStyle = style.getPropertyValue("--paper").trim() || "#fff";
      c.lineWidth = 0.8;
      const r = radius();
      data.ids.forEach((_, i) => {
        if (!shown[data.of[i]]) return;
        const [x, y] = place(i);
        if (x < -r || y < -r || x > side + r || y > side + r) return;
        c.save();
        c.translate(x, y);
        c.globalAlpha = 0.85;
        c.fillStyle = data.labels[data.of[i]].colour;
        c.beginPath();
        shapes[data.of[i] % shapes.length](c, r);
        c.fill();
        c.stroke();
        c.restore();
      });
      if (hovered >= 0 && shown[data.of[hovered]]) {
        const [x, y] = place(hovered);
        c.strokeStyle = style.getPropertyValue("--ink").trim() || "#000";
        c.lineWidth = 2;
        c.beginPath();
        c.arc(x, y, r + 4, 0, 2 * Math.PI);
        c.stroke();
      }
    }
    function zoom(factor, px, py) {
      const half = size() / 2, u = (px - half) / half, v = (half - py) / half;
      const next = Math.min(Math.max(view.scale * factor, 0.5), 200), f = next / view.scale;
      view.x = u - (u - view.x) * f;
      view.y = v - (v - view.y) * f;
      view.scale = next;
      draw();
    }
    function reset() { view.scale = 1; view.x = view.y = 0; draw(); }
    function at(px, py) {
      let best = -1, least = (radius() + 5) ** 2;
      data.ids.forEach((_, i) => {
        if (!shown[data.of[i]]) return;
        const [x, y] = place(i), far = (x - px) ** 2 + (y - py) ** 2;
        if (far < least) { least = far; best = i; }
      });
      return best;
    }
    let drag = null;
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      zoom(Math.exp(-e.deltaY * 0.0015), e.offsetX, e.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (e) => {
      drag = [e.clientX, e.clientY];
      canvas.setPointerCapture(e.pointerId);
    });
    canvas.addEventListener("pointerup", () => { drag = null; });
    canvas.addEventListener("pointercancel", () => { drag = null; });
    canvas.addEventListener("pointermove", (e) => {
      if (drag) {
        view.x += (e.clientX - drag[0]) * 2 / size();
        view.y -= (e.clientY - drag[1]) * 2 / size();
        drag = [e.clientX, e.clientY];
        draw();
        return;
      }
      hover(at(e.offsetX, e.offsetY), e.clientX, e.clientY);
    });
    canvas.addEventListener("pointerleave", () => hover(-1));
    canvas.addEventListener("dblclick", reset);
    canvas.addEventListener("keydown", (e) => {
      const half = size() / 2, step = { ArrowLeft: [0.15, 0], ArrowRight: [-0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[e.key];
      if (step) { view.x += step[0]; view.y += step[1]; draw(); }
      else if (e.key === "+" || e.key === "=") zoom(1.3, half, half);
      else if (e.key === "-") zoom(1 / 1.3, half, half);
      else if (e.key === "0") reset();
      else return;
      e.preventDefault();
    });
    maps.push({ draw });
  }

  function hover(i, x, y) {
    if (i !== hovered) {
      hovered = i;
      drawAll();
      tip.replaceChildren();
      if (i >= 0) {
        const thumb = data.thumbs[data.ids[i]];
        if (thumb) { const image = new Image(); image.src = thumb; image.alt = ""; tip.append(image); }
        const name = document.createElement("b");
        name.textContent = data.labels[data.of[i]].name;
        const id = document.createElement("span");
        id.textContent = data.ids[i];
        tip.append(name, id);
      }
    }
    tip.hidden = i < 0;
    if (i >= 0) {
      tip.style.left = `${Math.min(x + 14, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${Math.min(y + 14, innerHeight - tip.offsetHeight - 8)}px`;
    }
  }

  legend();
  const grid = document.createElement("div");
  grid.className = "maps";
  root.append(grid);
  data.panels.forEach(makeMap);
  drawAll();
  new ResizeObserver(drawAll).observe(grid);
  dark.addEventListener("change", drawAll);
})();
