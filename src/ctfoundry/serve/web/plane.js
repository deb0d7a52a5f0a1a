// Drawing one plane of a scan on a canvas: voxels through a window, overlays, crosshair, letters, scale bar.
//
// A view is {point, middle, zoom, scale, window, cross, heat, colours, mark, ring}: `point` and `middle` (the centre of the canvas) are
// voxel positions, `scale` is CSS pixels per millimetre at zoom 1, `window` [centre, width].

import { PLANES } from "/static/scan.js";

const BARS_MM = [200, 100, 50, 20, 10, 5, 2, 1];
const INFERNO = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];
const HEAT = new Uint32Array(256).map((_, value) => {
  const place = (value / 255) * 8, low = Math.min(7, Math.floor(place)), share = place - low;
  const [r, g, b] = [0, 1, 2].map((i) => Math.round(INFERNO[low][i] * (1 - share) + INFERNO[low + 1][i] * share));
  const alpha = Math.round(215 * Math.max(0, (value / 255 - 0.3) / 0.7));
  return ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
});

/** CSS pixels per millimetre at which a scan's body fits into canvases of these planes: one scale for all. */
export function fitting(scan, canvases) {
  const scales = Object.entries(canvases).map(([plane, canvas]) => {
    const { down, across } = PLANES[plane];
    return Math.min(
      canvas.clientWidth / ((scan.last[across] - scan.first[across]) * scan.spacing[across]),
      canvas.clientHeight / ((scan.last[down] - scan.first[down]) * scan.spacing[down]),
    );
  });
  return Math.max(1e-3, Math.min(...scales) * 0.95);
}

/** Where a voxel position falls on the canvas (CSS pixels), and back. */
export function placing(canvas, plane, scan, view) {
  const { down, across, up } = PLANES[plane];
  const s = view.scale * view.zoom, sx = scan.spacing[across] * s, sy = scan.spacing[down] * s * (up ? -1 : 1);
  const [cx, cy] = [canvas.clientWidth / 2, canvas.clientHeight / 2];
  return {
    x: (v) => cx + (v - view.middle[across]) * sx,
    y: (v) => cy + (v - view.middle[down]) * sy,
    voxel(x, y) {
      const voxel = [...view.point];
      voxel[across] = view.middle[across] + (x - cx) / sx;
      voxel[down] = view.middle[down] + (y - cy) / sy;
      return voxel;
    },
    sx, sy,
  };
}

let table = { key: "" };

/** Colours of all int16 values for a window. */
function windowed(scan, [centre, width]) {
  const key = `${centre}/${width}/${scan.slope}/${scan.intercept}`;
  if (table.key === key) return table.colours;
  const colours = new Uint32Array(65536), low = centre - width / 2;
  for (let i = 0; i < 65536; i++) {
    const value = (i - 32768) * scan.slope + scan.intercept;
    const grey = Math.max(0, Math.min(255, Math.round(((value - low) / width) * 255)));
    colours[i] = (0xff000000 | (grey << 16) | (grey << 8) | grey) >>> 0;
  }
  table = { key, colours };
  return colours;
}

/** A canvas of one pixel a value, rows turned where they run upwards. */
function painted(held, width, height, up, colour) {
  const canvas = held.canvas ?? document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  for (let row = 0; row < height; row++) {
    const from = row * width, to = (up ? height - 1 - row : row) * width;
    for (let column = 0; column < width; column++) pixels[to + column] = colour(from + column);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** One slice of an overlay on a coarse grid: `pixel(index)` of the grid's values. */
function slab(held, plane, scan, overlay, index, pixel) {
  const { through, down, across, up } = PLANES[plane];
  const [, h, w] = overlay.shape, stride = [h * w, w, 1];
  const k = Math.min(overlay.shape[through] - 1, Math.floor(((index + 0.5) * overlay.shape[through]) / scan.shape[through]));
  const columns = overlay.shape[across], rows = overlay.shape[down];
  return painted(held, columns, rows, up, (i) =>
    pixel(k * stride[through] + Math.floor(i / columns) * stride[down] + (i % columns) * stride[across]));
}

const held = new WeakMap();

/** Draw; `again` is called when a slice that was missing has come. Returns whether the slice was there. */
export function draw(canvas, plane, scan, view, again) {
  const { through, down, across, up, letters } = PLANES[plane];
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return false;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  }
  if (!held.has(canvas)) held.set(canvas, { image: {}, heat: {}, colours: {} });
  const own = held.get(canvas), index = Math.round(scan.inside(view.point)[through]);
  const context = canvas.getContext("2d"), place = placing(canvas, plane, scan, view);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);

  const values = scan.slice(plane, index, again, !view.small);
  const left = place.x(-0.5), right = place.x(scan.shape[across] - 0.5);
  const [top, bottom] = [place.y(-0.5), place.y(scan.shape[down] - 0.5)].sort((a, b) => a - b);
  const lay = (source, alpha) => {
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(source, left, top, right - left, bottom - top);
    context.globalAlpha = 1;
  };
  if (values) {
    const key = `${scan.id}/${index}/${view.window}`;
    if (own.image.key !== key) {
      const colours = windowed(scan, view.window);
      own.image = { key, canvas: painted(own.image, scan.shape[across], scan.shape[down], up, (i) => colours[values[i] + 32768]) };
    }
    lay(own.image.canvas, 1);
  } else if (own.image.key?.startsWith(`${scan.id}/`)) lay(own.image.canvas, 0.5); // the last one, dimmed, until this has come: no flicker
  for (const [name, alpha, pixel] of [["colours", 0.55, (o) => (i) => o.words[i]], ["heat", 1, (o) => (i) => HEAT[o.data[i]]]]) {
    const overlay = view[name];
    if (!overlay) continue;
    const key = `${overlay.key}/${index}`;
    if (own[name].key !== key) own[name] = { key, canvas: slab(own[name], plane, scan, overlay, index, pixel(overlay)) };
    lay(own[name].canvas, alpha);
  }

  if (view.small && !values) return false;
  const [x, y] = [place.x(view.point[across]), place.y(view.point[down])];
  if (view.cross) cross(context, x, y, width, height);
  if (view.mark) ring(context, x, y, view.small ? 8 : 11);
  write(context, width, height, letters, view, place, plane, index, scan.shape[through]);
  return Boolean(values);
}

function cross(context, x, y, width, height) {
  const gap = 9;
  for (const [colour, line] of [["rgba(0,0,0,.45)", 3], ["rgba(242,179,61,.8)", 1]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.beginPath();
    const [u, v] = [Math.round(x) + 0.5, Math.round(y) + 0.5];
    context.moveTo(0, v); context.lineTo(u - gap, v); context.moveTo(u + gap, v); context.lineTo(width, v);
    context.moveTo(u, 0); context.lineTo(u, v - gap); context.moveTo(u, v + gap); context.lineTo(u, height);
    context.stroke();
  }
}

function ring(context, x, y, radius) {
  for (const [colour, line] of [["rgba(0,0,0,.6)", 4], ["#4cc3ff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }
}

function write(context, width, height, letters, view, place, plane, index, count) {
  const size = view.small ? 10 : 12;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0,0,0,.75)";
  context.fillStyle = "#e8ebee";
  context.textBaseline = "middle";
  const put = (text, x, y, align) => {
    context.textAlign = align;
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  };
  const half = 0.75 * size; // a dark field behind each letter, which may lie on white
  for (const [letter, u, v] of [[letters[0], half + 1, height / 2], [letters[1], width - half - 1, height / 2], [letters[2], width / 2, half + 1], [letters[3], width / 2, height - half - 1]]) {
    context.fillStyle = "rgba(0,0,0,.6)";
    context.beginPath();
    context.roundRect(u - half, v - half, 2 * half, 2 * half, 3);
    context.fill();
    context.fillStyle = "#e8ebee";
    context.textAlign = "center";
    context.fillText(letter, u, v + 0.5);
  }
  if (view.small) return;
  context.font = `${size}px system-ui, sans-serif`;
  const apart = +view.spacing[PLANES[plane].through].toFixed(2);
  put(`${width < 260 ? "" : `${plane}  `}${index + 1} / ${count}`, 8, size + 1, "left");
  if (width >= 260) put(`${apart} mm apart`, 8, 2.4 * size + 1, "left");
  const pixels = Math.abs(place.sx) / view.spacing[PLANES[plane].across];
  const bar = BARS_MM.find((mm) => mm * pixels <= 0.32 * width) ?? 1;
  const [x, y, long] = [10, height - 12, bar * pixels];
  for (const [colour, line] of [["rgba(0,0,0,.75)", 4], ["#e8ebee", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(x, y - 4); context.lineTo(x, y); context.lineTo(x + long, y); context.lineTo(x + long, y - 4);
    context.stroke();
  }
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0,0,0,.75)";
  put(`${bar} mm`, x, y - 13, "left");
}
