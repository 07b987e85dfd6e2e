// NIfTI -> three planes on a 2D canvas: what the page shows where NiiVue or WebGL2 cannot be had. The same interface as
// NiivueBackend in viewer.js. It reads what Volume.to_nifti writes: little-endian NIfTI-1 of int16 or float32 with an sform.
"use strict";

class PlainVolume {
  static async fetch(url) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    let bytes = await answer.arrayBuffer();
    const head = new Uint8Array(bytes, 0, 2);
    if (head[0] === 0x1f && head[1] === 0x8b) {
      const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      bytes = await new Response(unpacked).arrayBuffer();
    }
    return new PlainVolume(bytes);
  }

  constructor(bytes) {
    const header = new DataView(bytes);
    this.size = [0, 1, 2].map((axis) => header.getInt16(42 + 2 * axis, true));
    const offset = header.getFloat32(108, true);
    this.data = header.getInt16(70, true) === 16 ? new Float32Array(bytes, offset) : new Int16Array(bytes, offset);
    this.affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => header.getFloat32(280 + 16 * row + 4 * column, true)));
    this.inverse = PlainVolume.invert(this.affine);
    this.spacing = [0, 1, 2].map((column) => Math.hypot(...this.affine.map((row) => row[column])));
  }

  static invert(a) {
    const [[b, c, d], [e, f, g], [h, i, j]] = a;
    const det = b * (f * j - g * i) - c * (e * j - g * h) + d * (e * i - f * h);
    const inverse = [
      [f * j - g * i, d * i - c * j, c * g - d * f],
      [g * h - e * j, b * j - d * h, d * e - b * g],
      [e * i - f * h, c * h - b * i, b * f - c * e],
    ].map((row) => row.map((value) => value / det));
    return inverse.map((row) => [...row, -row.reduce((sum, value, axis) => sum + value * a[axis][3], 0)]);
  }

  static apply(matrix, point) {
    return matrix.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);
  }

  nearest(voxel) {
    const [i, j, k] = voxel.map((value, axis) => Math.min(this.size[axis] - 1, Math.max(0, Math.round(value))));
    return this.data[(k * this.size[1] + j) * this.size[0] + i];
  }

  linear(voxel) {
    const low = voxel.map((value, axis) => Math.min(this.size[axis] - 1, Math.max(0, Math.floor(value))));
    const part = voxel.map((value, axis) => Math.min(1, Math.max(0, value - low[axis])));
    let sum = 0;
    for (let corner = 0; corner < 8; corner++) {
      let weight = 1;
      const at = low.map((value, axis) => {
        const up = (corner >> axis) & 1;
        weight *= up ? part[axis] : 1 - part[axis];
        return Math.min(this.size[axis] - 1, value + up);
      });
      if (weight) sum += weight * this.data[(at[2] * this.size[1] + at[1]) * this.size[0] + at[0]];
    }
    return sum;
  }
}

class PlainBackend {
  // columns and rows of a plane in voxel axes (x to the left, y to the back, z to the head); z is drawn head up
  static PLANES = { axial: [0, 1, 2], coronal: [0, 2, 1], sagittal: [1, 2, 0] };

  constructor(canvas, onMove) {
    Object.assign(this, { canvas, onMove, scan: null, map: null, alpha: 0.55, name: "planes", tiles: [], linked: [] });
    this.ready = Promise.resolve();
    canvas.addEventListener("pointerdown", (event) => this.click(event));
    canvas.addEventListener("pointermove", (event) => event.buttons && this.click(event));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  async load(url, intensityWindow) {
    this.scan = await PlainVolume.fetch(url);
    this.map = null;
    this.intensityWindow = intensityWindow;
    this.place(this.scan.size.map((size) => Math.floor(size / 2)));
  }

  async overlay(map, opacity) {
    this.map = map && { volume: await PlainVolume.fetch(map.url), low: map.low, high: map.high };
    this.alpha = opacity;
    this.draw();
  }

  window(limits) { this.intensityWindow = limits; this.draw(); }
  opacity(value) { this.alpha = value; this.draw(); }
  layout(name) { this.name = name === "render" ? "planes" : name; this.draw(); }
  step() { return this.scan.spacing; }
  link(other) { this.linked.push(other); }

  goto(mm, isEcho = false) {
    this.place(PlainVolume.apply(this.scan.inverse, mm), isEcho);
  }

  place(voxel, isEcho = false) {
    this.voxel = voxel.map((value, axis) => Math.min(this.scan.size[axis] - 1, Math.max(0, Math.round(value))));
    const mm = PlainVolume.apply(this.scan.affine, this.voxel);
    this.draw();
    this.onMove(mm, [this.scan.nearest(this.voxel)]);
    if (!isEcho) for (const other of this.linked) if (other.scan) other.goto(mm, true);
  }

  // ---- drawing ----

  draw() {
    if (!this.scan) return;
    const { canvas } = this;
    canvas.width = canvas.clientWidth;
    canvas.height = canvas.clientHeight;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#0a0c0f";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const names = this.name === "planes" ? Object.keys(PlainBackend.PLANES) : [this.name];
    const across = names.length > 1 ? 2 : 1;
    this.tiles = names.map((name, index) => {
      const box = [canvas.width / across, canvas.height / across];
      return this.drawPlane(pen, name, (index % across) * box[0], Math.floor(index / across) * box[1], box);
    });
  }

  drawPlane(pen, name, left, top, [width, height]) {
    const [across, down, through] = PlainBackend.PLANES[name];
    const { size, spacing } = this.scan;
    const scale = Math.min(width / (size[across] * spacing[across]), height / (size[down] * spacing[down])) * 0.98;
    const shown = [size[across] * spacing[across] * scale, size[down] * spacing[down] * scale];
    const tile = {
      across, down, through, left: left + (width - shown[0]) / 2, top: top + (height - shown[1]) / 2, shown, flip: down === 2,
    };
    const picture = new OffscreenCanvas(size[across], size[down]);
    const paper = picture.getContext("2d");
    const image = paper.createImageData(size[across], size[down]);
    this.paint(image.data, tile);
    paper.putImageData(image, 0, 0);
    pen.drawImage(picture, tile.left, tile.top, ...shown);
    const at = [(this.voxel[across] + 0.5) / size[across], (this.voxel[down] + 0.5) / size[down]];
    if (tile.flip) at[1] = 1 - at[1];
    pen.strokeStyle = "rgba(90, 205, 255, 0.8)";
    pen.beginPath();
    pen.moveTo(tile.left + at[0] * shown[0], tile.top);
    pen.lineTo(tile.left + at[0] * shown[0], tile.top + shown[1]);
    pen.moveTo(tile.left, tile.top + at[1] * shown[1]);
    pen.lineTo(tile.left + shown[0], tile.top + at[1] * shown[1]);
    pen.stroke();
    return tile;
  }

  paint(pixels, { across, down, through, flip }) {
    const { size } = this.scan;
    const [low, high] = this.intensityWindow;
    const voxel = [0, 0, 0];
    voxel[through] = this.voxel[through];
    for (let row = 0, at = 0; row < size[down]; row++) {
      voxel[down] = flip ? size[down] - 1 - row : row;
      for (let column = 0; column < size[across]; column++, at += 4) {
        voxel[across] = column;
        const hu = this.scan.data[(voxel[2] * size[1] + voxel[1]) * size[0] + voxel[0]];
        const grey = (255 * (hu - low)) / (high - low);
        let weight = 0;
        let heat = 0;
        if (this.map) {
          const place = PlainVolume.apply(this.map.volume.inverse, PlainVolume.apply(this.scan.affine, voxel));
          heat = (this.map.volume.linear(place) - this.map.low) / (this.map.high - this.map.low);
          weight = heat > 0 ? this.alpha : 0;
        }
        heat = Math.min(1, Math.max(0, heat));
        pixels[at] = grey * (1 - weight) + weight * 255 * Math.min(1, 0.3 + 1.2 * heat);
        pixels[at + 1] = grey * (1 - weight) + weight * 255 * Math.max(0, 1.5 * heat - 0.5);
        pixels[at + 2] = grey * (1 - weight) + weight * 255 * (0.35 * (1 - heat));
        pixels[at + 3] = 255;
      }
    }
  }

  // ---- pointer ----

  find(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const tile = this.tiles.find(
      (t) => x >= t.left && x < t.left + t.shown[0] && y >= t.top && y < t.top + t.shown[1],
    );
    return tile && { tile, part: [(x - tile.left) / tile.shown[0], (y - tile.top) / tile.shown[1]] };
  }

  click(event) {
    const found = this.scan && this.find(event);
    if (!found) return;
    const { across, down, flip } = found.tile;
    const voxel = [...this.voxel];
    voxel[across] = found.part[0] * this.scan.size[across] - 0.5;
    voxel[down] = (flip ? 1 - found.part[1] : found.part[1]) * this.scan.size[down] - 0.5;
    this.place(voxel);
  }

  wheel(event) {
    const found = this.scan && this.find(event);
    if (!found) return;
    event.preventDefault();
    const voxel = [...this.voxel];
    voxel[found.tile.through] += Math.sign(event.deltaY) * (found.tile.through === 2 ? -1 : 1);
    this.place(voxel);
  }
}
window.PlainBackend = PlainBackend;
