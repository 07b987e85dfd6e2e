// State from the server -> the scan on the page: toolbar, crosshair in mm, slices, rulers, keyboard. NiiVue draws, or
// plain_viewer.js where NiiVue or WebGL2 cannot be had. Nothing here asks another host for anything.
(() => {
  "use strict";

  const WINDOWS = {
    lung: [-1350, 150], mediastinum: [-160, 240], bone: [-500, 1300], liver: [-20, 140], brain: [0, 80],
  };
  const LAYOUTS = ["planes", "axial", "coronal", "sagittal", "render"];
  const TOOLS = ["point", "pan", "ruler", "region"];
  const SURFACES = { bone: [180, 1200], soft: [-200, 300], lung: [-950, -500] };
  const PLANE_AXIS = { axial: 2, coronal: 1, sagittal: 0, planes: 2, render: 2 };
  const viewers = {};
  const source = document.currentScript.src;
  const drawers = Promise.all(["niivue.umd.js", "plain_viewer.js"].map(bring));

  // A script from beside this one. NiiVue may not be there: whoever waits goes on with the plain viewer.
  function bring(name) {
    return new Promise((done) => {
      const script = document.createElement("script");
      script.src = new URL(name, source);
      script.onload = script.onerror = done;
      document.head.append(script);
    });
  }

  // What NiiVue calls the tools of the left button (its DRAG_MODE); the other buttons and its keys do nothing of their own.
  const NIIVUE_TOOLS = { point: 8, pan: 3, ruler: 2, region: 6 };

  class NiivueBackend {
    constructor(canvas, onMove, onMeasure) {
      this.nv = new niivue.Niivue({
        backColor: [0.04, 0.05, 0.06, 1], crosshairColor: [0.35, 0.8, 1, 0.8], crosshairWidth: 1,
        isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, show3Dcrosshair: true,
        isColorbar: false, loadingText: "", multiplanarLayout: 2, multiplanarShowRender: 1, logLevel: "silent",
        fontMinPx: 15, fontSizeScaling: 0.35, fontColor: [1, 0.85, 0.35, 1], showAllOrientationMarkers: true,
        viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", doubleTouchTimeout: 0, longTouchTimeout: 1e9,
        measureLineColor: [1, 0.85, 0.35, 1], measureTextColor: [1, 0.85, 0.35, 1], measureTextHeight: 0.035, rulerWidth: 2,
      });
      this.nv.onLocationChange = (place) => {
        onMove(Array.from(place.mm).slice(0, 3), place.values.map((v) => v.value));
      };
      this.nv.onDragRelease = (drag) => this.released(drag, onMeasure);
      this.tool("point");
      this.ready = this.nv.attachToCanvas(canvas, false);
    }

    async load(url, [low, high]) {
      await this.ready;
      this.nv.mediaUrlMap.clear(); // loadVolumes lets go of the volumes before, this map does not
      this.nv.clearAllMeasurements();
      await this.nv.loadVolumes([{ url, name: "scan.nii.gz", colormap: "gray", cal_min: low, cal_max: high }]);
      this.reset();
    }

    async overlay(map, opacity, level) {
      while (this.nv.volumes.length > 1) this.nv.removeVolumeByIndex(1);
      if (map) {
        await this.nv.addVolumeFromUrl({
          url: map.url, name: "map.nii.gz", colormap: "inferno", opacity, cal_min: level, cal_max: map.high,
        });
      }
      this.nv.updateGLVolume();
    }

    window([low, high]) {
      if (!this.nv.volumes.length) return;
      Object.assign(this.nv.volumes[0], { cal_min: low, cal_max: high });
      this.nv.updateGLVolume();
    }

    opacity(value) {
      if (this.nv.volumes.length > 1) this.nv.setOpacity(1, value);
    }

    level(value) {
      if (this.nv.volumes.length < 2) return;
      this.nv.volumes[1].cal_min = value;
      this.nv.updateGLVolume();
    }

    layout(name) {
      const types = {
        planes: this.nv.sliceTypeMultiplanar, axial: this.nv.sliceTypeAxial, coronal: this.nv.sliceTypeCoronal,
        sagittal: this.nv.sliceTypeSagittal, render: this.nv.sliceTypeRender,
      };
      this.nv.setSliceType(types[name]);
    }

    tool(name) {
      const mode = NIIVUE_TOOLS[name];
      this.nv.setMouseEventConfig({ leftButton: { primary: mode }, rightButton: 3, centerButton: 3 });
      this.nv.opts.dragMode = mode;
      this.nv.opts.dragModePrimary = mode;
    }

    crosshair(isShown) { this.nv.setCrosshairWidth(isShown ? 1 : 0); }

    zoom(factor) {
      const [x, y, z, scale] = this.nv.scene.pan2Dxyzmm;
      this.nv.setPan2Dxyzmm([x, y, z, Math.min(16, Math.max(1, scale * factor))]);
    }

    reset() {
      this.nv.clearAllMeasurements();
      this.nv.setPan2Dxyzmm([0, 0, 0, 1]);
      this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
      this.nv.createOnLocationChange();
      this.nv.drawScene();
    }

    goto(mm) {
      this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
      this.nv.createOnLocationChange();
      this.nv.drawScene();
    }

    // number and count of slices along x, y or z, from the patient's left, front-to-back reversed and feet: as NiiVue has them
    slice(axis) {
      const count = this.nv.volumes[0].dimsRAS[axis + 1];
      return [Math.min(count - 1, Math.floor(this.nv.scene.crosshairPos[axis] * count)), count];
    }

    setSlice(axis, index) {
      const place = Array.from(this.nv.scene.crosshairPos);
      place[axis] = (index + 0.5) / this.slice(axis)[1];
      this.nv.scene.crosshairPos = place;
      this.nv.createOnLocationChange();
      this.nv.drawScene();
    }

    step() {
      const sizes = this.nv.volumes[0].pixDims;
      return [sizes[1], sizes[2], sizes[3]];
    }

    released(drag, onMeasure) {
      const tool = this.nv.opts.dragModePrimary;
      if (tool === NIIVUE_TOOLS.ruler && drag.mmLength > 0) onMeasure({ length: drag.mmLength });
      if (tool !== NIIVUE_TOOLS.region || !this.nv.volumes.length) return;
      const volume = this.nv.volumes[0];
      const low = [0, 1, 2].map((a) => Math.max(0, Math.min(drag.voxStart[a], drag.voxEnd[a])));
      const high = [0, 1, 2].map((a) => Math.min(volume.dimsRAS[a + 1] - 1, Math.max(drag.voxStart[a], drag.voxEnd[a])));
      const values = [];
      for (let z = low[2]; z <= high[2]; z++) {
        for (let y = low[1]; y <= high[1]; y++) {
          for (let x = low[0]; x <= high[0]; x++) values.push(volume.getValue(x, y, z));
        }
      }
      const step = this.step();
      const area = [0, 1, 2].reduce((sum, a) => sum * (high[a] > low[a] ? (high[a] - low[a] + 1) * step[a] : 1), 1);
      onMeasure({ values, area });
    }
  }
  NiivueBackend.gradient = "linear-gradient(90deg, #1b0c41, #781c6d, #bb3754, #ed6925, #fbb61a, #fcffa4)";

  function hasWebGL2() {
    const probe = document.createElement("canvas");
    return Boolean(probe.getContext("webgl2"));
  }

  class Viewer {
    constructor(root) {
      this.root = root;
      this.labels = {};
      this.mm = null;
      this.values = [];
      this.shown = {};
      this.limits = [...WINDOWS.mediastinum];
      this.plane = "planes";
      this.isCrosshairShown = true;
      this.linked = null;
      this.build();
    }

    build() {
      this.root.innerHTML = `
        <div class="tools" role="toolbar">
          <span class="group" data-group="window" role="group"></span>
          <span class="numbers">
            <label><span data-word="level"></span><input type="number" data-number="level" step="10"></label>
            <label><span data-word="width"></span><input type="number" data-number="width" step="10" min="1"></label>
          </span>
          <span class="group" data-group="layout" role="group"></span>
          <span class="group" data-group="tool" role="group"></span>
          <span class="group" data-group="view" role="group"></span>
          <span class="group" data-group="surface" role="group" hidden></span>
        </div>
        <div class="stage"><canvas tabindex="0" role="img"></canvas><div class="veil"></div></div>
        <div class="slices">
          <label><span data-word="slice"></span><input type="range" data-slice="range" min="1" max="1" value="1"></label>
          <input type="number" data-slice="number" min="1" max="1" value="1"><span class="count"></span>
          <output></output>
        </div>
        <div class="maps">
          <span class="map"></span>
          <span class="scale" hidden><i></i><b></b></span>
          <label class="only"><span data-word="only_above"></span><input type="range" data-map="level" step="0.05"></label>
          <label class="opacity"><span data-word="opacity"></span><input type="range" data-map="opacity" min="0" max="100" value="55"></label>
        </div>
        <p class="measured" role="status"></p>
        <details class="keys"><summary></summary><p class="help"></p></details>`;
      const find = (what) => this.root.querySelector(what);
      this.canvas = find("canvas");
      this.veil = find(".veil");
      this.fill("window", Object.keys(WINDOWS), "mediastinum", (name) => this.setLimits(WINDOWS[name]));
      this.fill("layout", LAYOUTS, "planes", (name) => this.setLayout(name));
      this.fill("tool", TOOLS, "point", (name) => this.backend && this.backend.tool(name));
      this.fill("view", ["crosshair", "closer", "further", "reset"], "crosshair", (name) => this.view(name), true);
      this.fill("surface", Object.keys(SURFACES), "", (name) => this.setLimits(SURFACES[name]));
      this.opacity = find("[data-map=opacity]");
      this.opacity.addEventListener("input", () => this.backend && this.backend.opacity(this.opacity.value / 100));
      this.level = find("[data-map=level]");
      this.level.addEventListener("input", () => { if (this.backend) this.backend.level(+this.level.value); this.tell(); });
      for (const input of this.root.querySelectorAll("[data-number]")) {
        input.addEventListener("change", () => this.readLimits());
      }
      for (const input of this.root.querySelectorAll("[data-slice]")) {
        input.addEventListener("input", () => this.toSlice(+input.value));
      }
      this.bind(find(".stage"));
      this.showLimits();
    }

    // One finger scrolls the page, so that a phone is not caught in the picture: a tap still moves the crosshair. Double clicks
    // and keys reach this viewer alone: NiiVue would change what the buttons show.
    bind(stage) {
      for (const kind of ["touchstart", "touchmove", "touchend"]) {
        stage.addEventListener(kind, (event) => event.touches.length < 2 && event.stopPropagation(), { capture: true, passive: true });
      }
      stage.addEventListener("dblclick", (event) => event.stopPropagation(), true);
      for (const kind of ["keydown", "keyup"]) {
        stage.addEventListener(kind, (event) => {
          event.stopPropagation();
          if (kind === "keydown") this.key(event);
        }, true);
      }
    }

    fill(group, names, chosen, act, isLoose = false) {
      const place = this.root.querySelector(`[data-group=${group}]`);
      for (const name of names) {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.name = name;
        if (!isLoose || name === "crosshair") button.setAttribute("aria-pressed", String(name === chosen));
        button.addEventListener("click", () => {
          if (!isLoose) this.press(group, name);
          act(name);
        });
        place.append(button);
      }
    }

    press(group, name) {
      for (const button of this.root.querySelector(`[data-group=${group}]`).children) {
        button.setAttribute("aria-pressed", String(button.dataset.name === name));
      }
    }

    relabel(labels) {
      this.labels = labels;
      document.documentElement.lang = labels.code;
      if (this.root.id === "viewer") sessionStorage.setItem("ctfm-language", labels.code);
      for (const place of this.root.querySelectorAll("[data-group]")) {
        place.setAttribute("aria-label", labels[place.dataset.group]);
        for (const button of place.children) button.textContent = labels[`${place.dataset.group}_${button.dataset.name}`];
      }
      for (const word of this.root.querySelectorAll("[data-word]")) word.textContent = labels[`viewer_${word.dataset.word}`];
      this.root.querySelector("[data-slice=number]").setAttribute("aria-label", labels.viewer_slice);
      this.root.querySelector(".tools").setAttribute("aria-label", labels.viewer);
      this.canvas.setAttribute("aria-label", `${labels.viewer}. ${labels.viewer_help}`);
      this.root.querySelector(".keys summary").textContent = labels.viewer_keys;
      this.root.querySelector(".help").textContent =
        labels.viewer_help + (this.reduced ? ` ${this.reduced}` : "") + (this.isPlain ? ` (${labels.viewer_plain})` : "");
      if (!this.shown.scan) this.veil.textContent = labels.viewer_empty;
      this.tell();
    }

    async start() {
      if (this.backend) return;
      const moved = (mm, values) => {
        this.mm = mm;
        this.values = values;
        this.tell();
        this.follow();
      };
      const measured = (what) => this.measured(what);
      this.isPlain = !(window.niivue && hasWebGL2());
      const Backend = this.isPlain ? PlainBackend : NiivueBackend;
      this.backend = new Backend(this.canvas, moved, measured);
      this.root.querySelector(".scale i").style.background = Backend.gradient;
      if (this.isPlain) this.root.querySelector("[data-name=render]").hidden = true;
      await this.backend.ready;
    }

    // state: {scan, map: {url, low, high, name} | null, mm, reduced, labels, key}; one after another
    show(state) {
      this.queue = (this.queue || Promise.resolve()).then(() => this.showNow(state));
      return this.queue;
    }

    async showNow(state) {
      this.reduced = state.reduced || "";
      this.sliceFactor = state.slice_factor || 1;
      try {
        await this.start();
        if (state.scan !== this.shown.scan) this.clear();
        this.relabel(state.labels);
        if (state.scan && !this.shown.scan) {
          this.veil.textContent = this.labels.viewer_loading;
          await this.backend.load(state.scan, this.limits);
          this.shown = { scan: state.scan };
          this.veil.hidden = true;
        }
        const map = state.map || null;
        if (this.shown.scan && (map && map.url) !== (this.shown.map && this.shown.map.url)) {
          if (map) Object.assign(this.level, { min: map.low, max: map.high, value: map.low });
          await this.backend.overlay(map, this.opacity.value / 100, map && map.low);
          this.shown.map = map;
        }
        if (state.mm && this.shown.scan) {
          this.backend.goto(state.mm);
          if (this.wantsSight) this.comeIntoSight();
        }
      } catch (error) {
        this.veil.hidden = false;
        this.veil.textContent = `${this.labels.viewer_failed}: ${error.message}`;
      }
      this.wantsSight = false;
      this.tell();
      this.root.dataset.shown = JSON.stringify({ scan: this.shown.scan, map: this.shown.map && this.shown.map.name });
    }

    // On a phone the viewer may be above the finding that was touched.
    comeIntoSight() {
      const box = this.root.getBoundingClientRect();
      if (box.top < 0 || box.top > window.innerHeight / 2) this.root.scrollIntoView({ block: "start", behavior: "smooth" });
    }

    // nothing of the scan before stays on the page while the next one is read, or may not be read
    clear() {
      this.shown = {};
      this.mm = null;
      this.values = [];
      this.veil.hidden = false;
      this.root.querySelector("output").textContent = "";
      this.root.querySelector(".measured").textContent = "";
      delete this.root.dataset.mm;
    }

    // ---- window, layout, tools ----

    setLimits(limits) {
      this.limits = [...limits];
      this.showLimits();
      if (this.backend && this.shown.scan) this.backend.window(this.limits);
    }

    showLimits() {
      const [low, high] = this.limits;
      this.root.querySelector("[data-number=level]").value = Math.round((low + high) / 2);
      this.root.querySelector("[data-number=width]").value = Math.round(high - low);
      const name = Object.keys(WINDOWS).find((key) => WINDOWS[key][0] === low && WINDOWS[key][1] === high);
      this.press("window", name || "");
    }

    readLimits() {
      const [level, width] = ["level", "width"].map((name) => +this.root.querySelector(`[data-number=${name}]`).value);
      this.setLimits([level - Math.max(1, width) / 2, level + Math.max(1, width) / 2]);
    }

    setLayout(name) {
      this.plane = name;
      this.root.querySelector("[data-group=surface]").hidden = name !== "render";
      if (this.backend) this.backend.layout(name);
      this.tell();
    }

    view(name) {
      if (!this.backend || !this.shown.scan) return;
      if (name === "crosshair") {
        this.isCrosshairShown = !this.isCrosshairShown;
        this.backend.crosshair(this.isCrosshairShown);
        this.root.querySelector("[data-name=crosshair]").setAttribute("aria-pressed", String(this.isCrosshairShown));
      } else if (name === "reset") {
        this.backend.reset();
        this.root.querySelector(".measured").textContent = "";
      } else {
        this.backend.zoom(name === "closer" ? 1.25 : 0.8);
      }
    }

    measured({ length, values, area }) {
      let text = "";
      if (length !== undefined) text = `${this.labels.tool_ruler}: ${length.toFixed(1)} mm`;
      if (values && values.length) {
        const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
        const spread = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
        text = `${this.labels.tool_region}: ${mean.toFixed(0)} ± ${spread.toFixed(0)} HU, ${area.toFixed(0)} mm²`;
      }
      this.root.querySelector(".measured").textContent = text;
    }

    // ---- slices ----

    // The number that the reader of the scan gives: axial from the feet, from 1; of a reduced copy the middle of its block.
    tellSlice() {
      const axis = PLANE_AXIS[this.plane];
      const [index, count] = this.backend.slice(axis);
      const factor = axis === 2 ? this.sliceFactor : 1;
      for (const input of this.root.querySelectorAll("[data-slice]")) {
        Object.assign(input, { min: 1, max: count * factor, step: factor, value: index * factor + 1 });
      }
      this.root.querySelector(".count").textContent = `/ ${count * factor}`;
    }

    toSlice(number) {
      if (!this.backend || !this.shown.scan || !number) return;
      const axis = PLANE_AXIS[this.plane];
      const [, count] = this.backend.slice(axis);
      const index = Math.floor((number - 1) / (axis === 2 ? this.sliceFactor : 1));
      this.backend.setSlice(axis, Math.min(count - 1, Math.max(0, index)));
    }

    // ---- what is told, and who follows ----

    tell() {
      const { map } = this.shown;
      const labels = this.labels;
      this.root.querySelector(".map").textContent = map ? `${labels.map_of}: ${map.name}` : labels.no_map || "";
      for (const place of this.root.querySelectorAll(".scale, .only, .opacity")) place.hidden = !map;
      if (map) {
        this.root.querySelector(".scale b").textContent = `${(+this.level.value).toFixed(2)} … ${map.high} × ${labels.viewer_unit}`;
      }
      if (!this.mm || !this.shown.scan) return;
      this.tellSlice();
      const [x, y, z] = this.mm.map((v) => Math.round(v));
      const sides = `${x < 0 ? "L" : "R"} ${Math.abs(x)}  ${y < 0 ? "P" : "A"} ${Math.abs(y)}  ${z < 0 ? "I" : "S"} ${Math.abs(z)} mm`;
      const hu = this.values.length ? `  ${Math.round(this.values[0])} HU` : "";
      this.root.querySelector("output").textContent = `${sides}${hu}`;
      this.root.dataset.mm = this.mm.map((v) => v.toFixed(1)).join(" ");
    }

    // The other viewer goes to the same place of the patient: `linked` is {viewer, matrix}, 3 x 4 from these millimetres to its.
    follow() {
      if (!this.linked || this.isFollowing || !this.linked.viewer.shown.scan) return;
      const { viewer, matrix } = this.linked;
      viewer.isFollowing = true;
      viewer.backend.goto(matrix.map((row) => row[0] * this.mm[0] + row[1] * this.mm[1] + row[2] * this.mm[2] + row[3]));
      viewer.isFollowing = false;
    }

    key(event) {
      const moves = {
        ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
        PageUp: [0, 0, 1], PageDown: [0, 0, -1],
      };
      const acts = {
        "+": () => this.view("closer"), "-": () => this.view("further"), 0: () => this.view("reset"), c: () => this.view("crosshair"),
        m: () => { this.opacity.value = +this.opacity.value ? 0 : 55; this.backend.opacity(this.opacity.value / 100); },
      };
      Object.keys(WINDOWS).forEach((name, number) => { acts[number + 1] = () => this.setLimits(WINDOWS[name]); });
      for (const [key, name] of [["p", "point"], ["h", "pan"], ["r", "ruler"], ["g", "region"]]) {
        acts[key] = () => { this.press("tool", name); this.backend.tool(name); };
      }
      if (event.ctrlKey || event.metaKey || event.altKey || !this.mm || !this.shown.scan) return;
      if (moves[event.key]) {
        const step = this.backend.step();
        this.backend.goto(this.mm.map((v, axis) => v + moves[event.key][axis] * step[axis]));
      } else if (acts[event.key]) {
        acts[event.key]();
      } else {
        return;
      }
      event.preventDefault();
    }
  }

  // What the page would lose with a refresh: which scan is open, in this tab of the browser alone.
  function remember(state) {
    if ("key" in state) {
      if (state.key) sessionStorage.setItem("ctfm-scan", JSON.stringify({ key: state.key, case: state.case }));
      else sessionStorage.removeItem("ctfm-scan");
    }
  }

  window.ctfmRemembered = () => sessionStorage.getItem("ctfm-scan") || "";

  window.ctfmShow = async (id, state) => {
    await drawers;
    const root = document.getElementById(id);
    if (!root) return;
    if (!viewers[id] || viewers[id].root !== root) viewers[id] = new Viewer(root);
    if (!state || !state.labels) return;
    if (id === "viewer") remember(state);
    await viewers[id].show(state);
  };

  // A finding was chosen: what is shown next comes into sight.
  window.ctfmWillShow = (id) => { if (viewers[id]) viewers[id].wantsSight = true; };

  window.ctfmLink = (first, second, matrices) => {
    const [a, b] = [viewers[first], viewers[second]];
    if (!a || !b || !a.backend || !b.backend) return;
    a.linked = { viewer: b, matrix: matrices[0] };
    b.linked = { viewer: a, matrix: matrices[1] };
  };

  // ---- findings: order and filter ----

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("button[data-filter]");
    if (!button) return;
    const panel = button.closest("#findings");
    for (const other of panel.querySelectorAll("button[data-filter]")) other.setAttribute("aria-pressed", String(other === button));
    for (const row of panel.querySelectorAll("tr[data-verdict]")) {
      row.hidden = Boolean(button.dataset.filter) && row.dataset.verdict !== button.dataset.filter;
    }
  });

  document.addEventListener("change", (event) => {
    if (!event.target.matches || !event.target.matches("select[data-order]")) return;
    const order = event.target.value;
    for (const body of event.target.closest("#findings").querySelectorAll("tbody")) {
      const rows = [...body.children];
      rows.sort((a, b) => order === "name" ? a.dataset.name.localeCompare(b.dataset.name) : b.dataset[order] - a.dataset[order]);
      body.append(...rows);
    }
  });

  // ---- a drop anywhere on the page is an upload ----

  function filesOf(entry) {
    if (entry.isFile) return new Promise((done) => entry.file((file) => done([file]), () => done([])));
    const reader = entry.createReader();
    const found = [];
    return new Promise((done) => {
      const more = () => reader.readEntries((entries) => {
        if (entries.length) { found.push(...entries); more(); } else done(Promise.all(found.map(filesOf)).then((all) => all.flat()));
      }, () => done([]));
      more(); // a folder gives its entries in portions, until there are none
    });
  }

  // Where the page is: of the two scans and of the report the boxes themselves take what is dropped on them.
  function boxFor(target) {
    if (target.closest && target.closest("#prior, #current, #report-file")) return null;
    return document.querySelector("#files input[type=file]");
  }

  const carriesFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", Boolean(boxFor(event.target)));
  });
  for (const kind of ["dragleave", "dragend", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (kind !== "dragleave" || !event.relatedTarget) document.body.classList.remove("dropping");
    }, true);
  }
  document.addEventListener("drop", async (event) => {
    const box = carriesFiles(event) && boxFor(event.target);
    if (!box) return;
    event.preventDefault();
    event.stopPropagation();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
    const files = (await Promise.all(entries.map(filesOf))).flat();
    const transfer = new DataTransfer();
    for (const file of files.length ? files : event.dataTransfer.files) transfer.items.add(file);
    if (!transfer.files.length) return;
    box.files = transfer.files;
    box.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);
})();
