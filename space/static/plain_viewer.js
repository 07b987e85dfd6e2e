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
  static LETTERS = { axial: "RLAP", coronal: "RLSI", sagittal: "APSI" }; // left, right, top, bottom of the picture
  static gradient = "linear-gradient(90deg, rgb(76, 0, 89), rgb(178, 0, 45), rgb(255, 64, 22), rgb(255, 255, 0))";

  constructor(canvas, onMove, onMeasure) {
    Object.assign(this, {
      canvas, onMove, onMeasure, scan: null, map: null, alpha: 0.55, name: "planes", tiles: [], mode: "point", drag: null,
      isCrosshairShown: true, scale: 1, shift: [0, 0],
    });
    this.ready = Promise.resolve();
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  async load(url, intensityWindow) {
    this.scan = await PlainVolume.fetch(url);
    this.map = null;
    this.intensityWindow = intensityWindow;
    this.reset();
  }

  async overlay(map, opacity, level) {
    this.map = map && { volume: await PlainVolume.fetch(map.url), low: level, high: map.high };
    this.alpha = opacity;
    this.draw();
  }

  window(limits) { this.intensityWindow = limits; this.draw(); }
  opacity(value) { this.alpha = value; this.draw(); }
  level(value) { if (this.map) this.map.low = value; this.draw(); }
  layout(name) { this.name = name === "render" ? "planes" : name; this.draw(); }
  tool(name) { this.mode = name; }
  crosshair(isShown) { this.isCrosshairShown = isShown; this.draw(); }
  zoom(factor) { this.scale = Math.min(16, Math.max(1, this.scale * factor)); this.draw(); }
  step() { return this.scan.spacing; }

  reset() {
    Object.assign(this, { scale: 1, shift: [0, 0], drag: null });
    this.place(this.scan.size.map((size) => Math.floor(size / 2)));
  }

  goto(mm) { this.place(PlainVolume.apply(this.scan.inverse, mm)); }

  // Counted along the axes of the patient as NiiVue counts them: from the right, from the back, from the feet.
  slice(axis) {
    const count = this.scan.size[axis];
    return [axis === 2 ? this.voxel[axis] : count - 1 - this.voxel[axis], count];
  }

  setSlice(axis, index) {
    const voxel = [...this.voxel];
    voxel[axis] = axis === 2 ? index : this.scan.size[axis] - 1 - index;
    this.place(voxel);
  }

  place(voxel) {
    this.voxel = voxel.map((value, axis) => Math.min(this.scan.size[axis] - 1, Math.max(0, Math.round(value))));
    const mm = PlainVolume.apply(this.scan.affine, this.voxel);
    this.draw();
    this.onMove(mm, [this.scan.nearest(this.voxel)]);
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
    this.drawDrag(pen);
  }

  drawPlane(pen, name, left, top, [width, height]) {
    const [across, down, through] = PlainBackend.PLANES[name];
    const { size, spacing } = this.scan;
    const fit = Math.min(width / (size[across] * spacing[across]), height / (size[down] * spacing[down])) * 0.98;
    const scale = fit * this.scale;
    const shown = [size[across] * spacing[across] * scale, size[down] * spacing[down] * scale];
    const tile = {
      across, down, through, shown, flip: down === 2, box: [left, top, width, height], scale,
      left: left + (width - shown[0]) / 2 + this.shift[0], top: top + (height - shown[1]) / 2 + this.shift[1],
    };
    const picture = new OffscreenCanvas(size[across], size[down]);
    const paper = picture.getContext("2d");
    const image = paper.createImageData(size[across], size[down]);
    this.paint(image.data, tile);
    paper.putImageData(image, 0, 0);
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width, height);
    pen.clip();
    pen.drawImage(picture, tile.left, tile.top, ...shown);
    if (this.isCrosshairShown) {
      const at = [(this.voxel[across] + 0.5) / size[across], (this.voxel[down] + 0.5) / size[down]];
      if (tile.flip) at[1] = 1 - at[1];
      pen.strokeStyle = "rgba(90, 205, 255, 0.8)";
      pen.beginPath();
      pen.moveTo(tile.left + at[0] * shown[0], top);
      pen.lineTo(tile.left + at[0] * shown[0], top + height);
      pen.moveTo(left, tile.top + at[1] * shown[1]);
      pen.lineTo(left + width, tile.top + at[1] * shown[1]);
      pen.stroke();
    }
    this.drawLetters(pen, PlainBackend.LETTERS[name], left, top, width, height);
    pen.restore();
    return tile;
  }

  drawLetters(pen, letters, left, top, width, height) {
    pen.font = "600 15px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const places = [[12, height / 2], [width - 12, height / 2], [width / 2, 13], [width / 2, height - 13]];
    places.forEach(([x, y], number) => {
      pen.strokeStyle = "#000";
      pen.lineWidth = 3;
      pen.strokeText(letters[number], left + x, top + y);
      pen.fillStyle = "#ffd95a";
      pen.fillText(letters[number], left + x, top + y);
    });
    pen.lineWidth = 1;
  }

  drawDrag(pen) {
    if (!this.drag || (this.mode !== "ruler" && this.mode !== "region")) return;
    const { from, to } = this.drag;
    pen.strokeStyle = "#ffd95a";
    pen.lineWidth = 2;
    pen.beginPath();
    if (this.mode === "ruler") {
      pen.moveTo(...from);
      pen.lineTo(...to);
    } else {
      pen.rect(from[0], from[1], to[0] - from[0], to[1] - from[1]);
    }
    pen.stroke();
    pen.lineWidth = 1;
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
          const value = this.map.volume.linear(place);
          heat = (value - this.map.low) / Math.max(1e-6, this.map.high - this.map.low);
          weight = value > this.map.low ? this.alpha : 0;
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

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  tileAt([x, y]) {
    return this.tiles.find(({ box: [left, top, width, height] }) => x >= left && x < left + width && y >= top && y < top + height);
  }

  // A point of the screen in a tile -> voxel of its plane.
  voxelAt(tile, [x, y]) {
    const part = [(x - tile.left) / tile.shown[0], (y - tile.top) / tile.shown[1]];
    const voxel = [...this.voxel];
    voxel[tile.across] = part[0] * this.scan.size[tile.across] - 0.5;
    voxel[tile.down] = (tile.flip ? 1 - part[1] : part[1]) * this.scan.size[tile.down] - 0.5;
    return voxel;
  }

  down(event) {
    const from = this.at(event);
    const tile = this.scan && this.tileAt(from);
    if (!tile) return;
    const mode = event.button ? "pan" : this.mode;
    this.drag = { tile, from, to: from, mode, shift: [...this.shift] };
    if (mode === "point") this.place(this.voxelAt(tile, from));
    else if (event.pointerType !== "touch") this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.drag || !event.buttons) return;
    this.drag.to = this.at(event);
    const { tile, from, to, mode, shift } = this.drag;
    if (mode === "point") {
      if (this.tileAt(to) === tile || event.pointerType !== "touch") this.place(this.voxelAt(tile, to));
      return;
    }
    if (mode === "pan") this.shift = [shift[0] + to[0] - from[0], shift[1] + to[1] - from[1]];
    this.draw();
  }

  up() {
    if (!this.drag) return;
    const { tile, from, to, mode } = this.drag;
    if (mode === "ruler") this.onMeasure({ length: Math.hypot(to[0] - from[0], to[1] - from[1]) / tile.scale });
    if (mode === "region") this.onMeasure(this.region(this.voxelAt(tile, from), this.voxelAt(tile, to), tile));
    if (mode === "point" || mode === "pan") this.drag = null;
  }

  region(one, other, { across, down }) {
    const { size, spacing } = this.scan;
    const ends = [across, down].map((axis) => [one[axis], other[axis]].sort((a, b) => a - b).map(
      (value) => Math.min(size[axis] - 1, Math.max(0, Math.round(value))),
    ));
    const values = [];
    const voxel = [...this.voxel];
    for (voxel[across] = ends[0][0]; voxel[across] <= ends[0][1]; voxel[across]++) {
      for (voxel[down] = ends[1][0]; voxel[down] <= ends[1][1]; voxel[down]++) values.push(this.scan.nearest(voxel));
    }
    return { values, area: values.length * spacing[across] * spacing[down] };
  }

  wheel(event) {
    const tile = this.scan && this.tileAt(this.at(event));
    if (!tile) return;
    event.preventDefault();
    const voxel = [...this.voxel];
    voxel[tile.through] += Math.sign(event.deltaY) * (tile.through === 2 ? -1 : 1);
    this.place(voxel);
  }
}
window.PlainBackend = PlainBackend;
