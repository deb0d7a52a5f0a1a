// One scan: where its voxels lie, and its slices as they come from the server.
// Voxels are [k, j, i] along S, P, L; points are [x, y, z] in world millimetres (RAS+).

import { bytes } from "/static/api.js";

/** Of each plane: the voxel axes through it, down it and across it; whether its rows run upwards; letters left, right, top, bottom. */
export const PLANES = {
  axial: { through: 0, down: 1, across: 2, up: false, letters: "RLAP" },
  coronal: { through: 1, down: 0, across: 2, up: true, letters: "RLSI" },
  sagittal: { through: 2, down: 0, across: 1, up: true, letters: "APSI" },
};

const BLOCK_BYTES = 2 << 20;
const KEPT_BYTES = 192 << 20;
const kept = new Map(); // key -> {data, bytes}, in order of use, over all scans
let used = 0;

function keep(key, block, size) {
  kept.set(key, { block, size });
  used += size;
  for (const [old, { size: bytes }] of kept) {
    if (used <= KEPT_BYTES || old === key) break;
    kept.delete(old);
    used -= bytes;
  }
}

export class Scan {
  constructor(facts) {
    Object.assign(this, facts);
    this.inverse = inverse(this.affine);
    this.loading = new Map();
    // the body's box in voxels: what is shown at first
    const [low, high] = this.box, corners = [];
    for (let i = 0; i < 8; i++) corners.push(this.voxel([0, 1, 2].map((axis) => ((i >> axis) & 1 ? high : low)[axis])));
    this.first = [0, 1, 2].map((axis) => Math.max(-0.5, Math.min(...corners.map((c) => c[axis]))));
    this.last = [0, 1, 2].map((axis) => Math.min(this.shape[axis] - 0.5, Math.max(...corners.map((c) => c[axis]))));
    this.middle = this.first.map((v, axis) => (v + this.last[axis]) / 2);
  }

  /** World millimetres of a voxel position. */
  world(voxel) {
    return this.affine.slice(0, 3).map((row) => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
  }

  /** Voxel position, not rounded, of a world point. */
  voxel(point) {
    return this.inverse.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);
  }

  /** The nearest position inside the scan. */
  inside(voxel) {
    return voxel.map((v, axis) => Math.min(Math.max(v, 0), this.shape[axis] - 1));
  }

  /** The slice of a plane if it is there, else null; asks the server for its block, and calls `then` when it has come. */
  slice(plane, index, then, ahead = true) {
    const { through, down, across } = PLANES[plane];
    const size = this.shape[down] * this.shape[across];
    const many = Math.max(1, Math.min(16, Math.floor(BLOCK_BYTES / (size * 2))));
    const first = Math.floor(index / many) * many;
    const found = this.block(plane, first, Math.min(many, this.shape[through] - first), then);
    if (ahead && found) {
      const next = index - first >= many / 2 ? first + many : first - many; // the block that is entered next
      if (next >= 0 && next < this.shape[through]) this.block(plane, next, Math.min(many, this.shape[through] - next), () => {});
    }
    return found ? found.subarray((index - first) * size, (index - first + 1) * size) : null;
  }

  block(plane, first, count, then) {
    const key = `${this.id}/${plane}/${first}`;
    const held = kept.get(key);
    if (held) {
      kept.delete(key);
      kept.set(key, held);
      return held.block;
    }
    const waiting = this.loading.get(key);
    if (waiting) {
      waiting.push(then);
      return null;
    }
    this.loading.set(key, [then]);
    bytes(`/api/scans/${this.id}/slices?plane=${plane}&first=${first}&count=${count}`)
      .then(({ data }) => keep(key, new Int16Array(data), data.byteLength), (error) => { this.failed?.(error); })
      .finally(() => {
        const calls = this.loading.get(key);
        this.loading.delete(key);
        if (kept.has(key)) for (const call of calls) call();
      });
    return null;
  }

  /** The value at a voxel of a plane's slice, in the scan's unit; null while it is not there. */
  value(plane, voxel) {
    const { through, down, across } = PLANES[plane];
    const at = voxel.map(Math.round);
    const values = this.slice(plane, at[through], () => {}, false);
    return values ? values[at[down] * this.shape[across] + at[across]] * this.slope + this.intercept : null;
  }
}

/** First three rows of the inverse of an affine matrix. */
function inverse(m) {
  const [a, b, c] = m;
  const cross = (u, v) => [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
  const columns = [cross(b, c), cross(c, a), cross(a, b)];
  const det = a[0] * columns[0][0] + a[1] * columns[0][1] + a[2] * columns[0][2];
  return [0, 1, 2].map((row) => {
    const r = columns.map((column) => column[row] / det);
    return [...r, -(r[0] * a[3] + r[1] * b[3] + r[2] * c[3])];
  });
}
