// State from the server -> the scan on the page: toolbar, crosshair in mm, keyboard; NiiVue draws, or plain_viewer.js where
// NiiVue or WebGL2 cannot be had. Nothing here asks another host for anything.
(() => {
  "use strict";

  const WINDOWS = {
    lung: [-1350, 150], mediastinum: [-160, 240], bone: [-500, 1300], liver: [-20, 140], brain: [0, 80],
  };
  const LAYOUTS = ["planes", "axial", "coronal", "sagittal", "render"];
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

  class NiivueBackend {
    constructor(canvas, onMove) {
      this.nv = new niivue.Niivue({
        backColor: [0.04, 0.05, 0.06, 1], crosshairColor: [0.35, 0.8, 1, 0.8], crosshairWidth: 1,
        isRadiologicalConvention: true, sagittalNoseLeft: true, dragAndDropEnabled: false, show3Dcrosshair: true,
        isColorbar: false, loadingText: "", multiplanarLayout: 2, multiplanarShowRender: 1, logLevel: "silent",
        fontMinPx: 11, fontSizeScaling: 0.3,
      });
      this.nv.onLocationChange = (place) => {
        onMove(Array.from(place.mm).slice(0, 3), place.values.map((v) => v.value));
      };
      this.ready = this.nv.attachToCanvas(canvas, false);
    }

    async load(url, [low, high]) {
      await this.ready;
      this.nv.mediaUrlMap.clear(); // loadVolumes lets go of the volumes before, this map does not
      await this.nv.loadVolumes([{ url, name: "scan.nii.gz", colormap: "gray", cal_min: low, cal_max: high }]);
      this.nv.createOnLocationChange(); // where the crosshair is, before anybody moved it
    }

    async overlay(map, opacity) {
      while (this.nv.volumes.length > 1) this.nv.removeVolumeByIndex(1);
      if (map) {
        await this.nv.addVolumeFromUrl({
          url: map.url, name: "map.nii.gz", colormap: "inferno", opacity, cal_min: map.low, cal_max: map.high,
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

    layout(name) {
      const types = {
        planes: this.nv.sliceTypeMultiplanar, axial: this.nv.sliceTypeAxial, coronal: this.nv.sliceTypeCoronal,
        sagittal: this.nv.sliceTypeSagittal, render: this.nv.sliceTypeRender,
      };
      this.nv.setSliceType(types[name]);
    }

    goto(mm) {
      this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
      this.nv.createOnLocationChange();
      this.nv.drawScene();
      this.nv.sync();
    }

    step() {
      const sizes = this.nv.volumes[0].pixDims;
      return [sizes[1], sizes[2], sizes[3]];
    }

    link(other) {
      this.nv.broadcastTo([other.nv], { "2d": true, "3d": true });
    }
  }

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
      this.intensityWindow = "mediastinum";
      this.build();
    }

    build() {
      this.root.innerHTML = `
        <div class="bar" role="toolbar">
          <span class="group" data-group="window" role="group"></span>
          <span class="group" data-group="layout" role="group"></span>
          <label class="opacity"><span></span><input type="range" min="0" max="100" value="55"></label>
        </div>
        <div class="stage"><canvas tabindex="0" role="img"></canvas><div class="veil"></div></div>
        <div class="status"><output></output><span class="map"></span></div>
        <p class="help"></p>`;
      this.canvas = this.root.querySelector("canvas");
      this.veil = this.root.querySelector(".veil");
      this.fill("window", Object.keys(WINDOWS), this.intensityWindow, (name) => this.setWindow(name));
      this.fill("layout", LAYOUTS, "planes", (name) => this.backend && this.backend.layout(name));
      this.slider = this.root.querySelector("input");
      this.slider.addEventListener("input", () => this.backend && this.backend.opacity(this.slider.value / 100));
      this.canvas.addEventListener("keydown", (event) => this.key(event));
    }

    fill(group, names, chosen, act) {
      const place = this.root.querySelector(`[data-group=${group}]`);
      for (const name of names) {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.name = name;
        button.setAttribute("aria-pressed", String(name === chosen));
        button.addEventListener("click", () => {
          for (const other of place.children) other.setAttribute("aria-pressed", String(other === button));
          act(name);
        });
        place.append(button);
      }
    }

    relabel(labels) {
      this.labels = labels;
      document.documentElement.lang = labels.code;
      for (const group of ["window", "layout"]) {
        const place = this.root.querySelector(`[data-group=${group}]`);
        place.setAttribute("aria-label", labels[group]);
        for (const button of place.children) button.textContent = labels[`${group}_${button.dataset.name}`];
      }
      this.root.querySelector(".opacity span").textContent = labels.opacity;
      this.canvas.setAttribute("aria-label", `${labels.viewer}. ${labels.viewer_help}`);
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
      };
      this.isPlain = !(window.niivue && hasWebGL2());
      this.backend = this.isPlain ? new PlainBackend(this.canvas, moved) : new NiivueBackend(this.canvas, moved);
      await this.backend.ready;
    }

    // state: {scan, map: {url, low, high, name} | null, mm, reduced, labels}; one after another
    show(state) {
      this.queue = (this.queue || Promise.resolve()).then(() => this.showNow(state));
      return this.queue;
    }

    async showNow(state) {
      this.reduced = state.reduced || "";
      try {
        await this.start();
        if (state.scan !== this.shown.scan) this.clear();
        this.relabel(state.labels);
        if (state.scan && !this.shown.scan) {
          this.veil.textContent = this.labels.viewer_loading;
          await this.backend.load(state.scan, WINDOWS[this.intensityWindow]);
          this.shown = { scan: state.scan };
          this.veil.hidden = true;
        }
        const map = state.map || null;
        if (this.shown.scan && (map && map.url) !== (this.shown.map && this.shown.map.url)) {
          await this.backend.overlay(map, this.slider.value / 100);
          this.shown.map = map;
        }
        if (state.mm && this.shown.scan) this.backend.goto(state.mm);
      } catch (error) {
        this.veil.hidden = false;
        this.veil.textContent = `${this.labels.viewer_failed}: ${error.message}`;
      }
      this.tell();
      this.root.dataset.shown = JSON.stringify({ scan: this.shown.scan, map: this.shown.map && this.shown.map.name });
    }

    // nothing of the scan before stays on the page while the next one is read, or may not be read
    clear() {
      this.shown = {};
      this.mm = null;
      this.values = [];
      this.veil.hidden = false;
      this.root.querySelector("output").textContent = "";
      delete this.root.dataset.mm;
    }

    setWindow(name) {
      this.intensityWindow = name;
      if (this.backend && this.shown.scan) this.backend.window(WINDOWS[name]);
    }

    tell() {
      const map = this.shown.map;
      this.root.querySelector(".map").textContent = map ? `${this.labels.map_of}: ${map.name}` : this.labels.no_map || "";
      if (!this.mm) return;
      const [x, y, z] = this.mm.map((v) => Math.round(v));
      const sides = `${x < 0 ? "L" : "R"} ${Math.abs(x)}  ${y < 0 ? "P" : "A"} ${Math.abs(y)}  ${z < 0 ? "I" : "S"} ${Math.abs(z)} mm`;
      const hu = this.values.length ? `  ${Math.round(this.values[0])} HU` : "";
      this.root.querySelector("output").textContent = `${this.labels.crosshair || ""}: ${sides}${hu}`;
      this.root.dataset.mm = this.mm.map((v) => v.toFixed(1)).join(" ");
    }

    key(event) {
      const moves = {
        ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
        PageUp: [0, 0, 1], PageDown: [0, 0, -1],
      };
      const move = moves[event.key];
      if (!move || !this.mm || !this.shown.scan) return;
      event.preventDefault();
      event.stopPropagation();
      const step = this.backend.step();
      this.backend.goto(this.mm.map((v, axis) => v + move[axis] * step[axis]));
    }
  }

  window.ctfmShow = async (id, state) => {
    await drawers;
    const root = document.getElementById(id);
    if (!root) return;
    if (!viewers[id] || viewers[id].root !== root) viewers[id] = new Viewer(root);
    if (state && state.labels) await viewers[id].show(state);
  };

  window.ctfmLink = (first, second) => {
    const pair = [viewers[first], viewers[second]];
    if (pair.some((viewer) => !viewer || !viewer.backend) || pair[0].isLinked) return;
    pair[0].backend.link(pair[1].backend);
    pair[1].backend.link(pair[0].backend);
    pair[0].isLinked = true;
  };
})();
