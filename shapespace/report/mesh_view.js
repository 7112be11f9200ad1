// Interactive meshes of a page: every <figure class="mesh-view"> whose canvas has frames (see mesh_view.py).
//
// Browsers allow about sixteen WebGL contexts for a page, and a page may have more meshes. One hidden canvas therefore
// draws all of them, and its image is copied to each visible canvas, only when something has changed. Figures of one
// group share camera and scale, so that they can be compared.
"use strict";
(() => {
  const VERTEX = `
    attribute vec3 position, normal, color;
    uniform mat3 turn;
    uniform vec3 center, scale;
    varying vec3 n, paint;
    void main() {
      vec3 seen = turn * (position - center) * scale;
      gl_Position = vec4(seen.xy, -seen.z, 1.0);
      n = turn * normal;
      paint = color;
    }`;
  const FRAGMENT = `
    precision mediump float;
    uniform vec3 up;
    varying vec3 n, paint;
    const vec3 key = vec3(-0.45, 0.65, 0.62);
    void main() {  // shading of renderer.py
      vec3 m = normalize(gl_FrontFacing ? n : -n);
      float ahead = clamp(m.z, 0.0, 1.0);
      float lit = 0.22 + 0.30 * ahead + 0.50 * max(dot(m, key), 0.0) + 0.12 * (1.0 + dot(m, up));
      float gloss = 0.08 * pow(max(dot(m, normalize(key + vec3(0.0, 0.0, 1.0))), 0.0), 24.0);
      vec3 light = vec3((lit + gloss) * (0.68 + 0.32 * pow(ahead, 0.4)));
      gl_FragColor = vec4(clamp(paint * pow(light, vec3(0.92, 1.0, 1.06)), 0.0, 1.0), 1.0);
    }`;
  const HOME = { azimuth: 25, elevation: 10, zoom: 1 };  // as in renderer.py
  const SECOND = 1000;

  const figures = [...document.querySelectorAll("figure.mesh-view")];
  const hidden = document.createElement("canvas");
  const gl = hidden.getContext("webgl", { alpha: true, antialias: true, preserveDrawingBuffer: true });
  if (!gl || !figures.length) return;  // the images stay

  function compile(kind, source) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    return shader;
  }

  const program = gl.createProgram();
  gl.attachShader(program, compile(gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, compile(gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.DEPTH_TEST);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const where = { turn: uniform("turn"), center: uniform("center"), scale: uniform("scale"), up: uniform("up") };

  // Little-endian: counts of vertices and faces and has_colors (uint32), lowest corner and step (float32);
  // then positions (uint16, 3 each), faces (uint16, 3 each), colors (uint8, 3 each).
  function unpack(text, clay) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
    const [vertices, faces, colored] = new Uint32Array(bytes, 0, 3);
    const [x, y, z, step] = new Float32Array(bytes, 12, 4);
    const grid = new Uint16Array(bytes, 28, 3 * vertices);
    const corners = new Uint16Array(bytes, 28 + 6 * vertices, 3 * faces);
    const positions = Float32Array.from(grid, (value, k) => [x, y, z][k % 3] + step * value);
    const colors = colored
      ? new Uint8Array(bytes, 28 + 6 * vertices + 6 * faces, 3 * vertices)
      : Uint8Array.from({ length: 3 * vertices }, (_, k) => clay[k % 3]);
    return { count: 3 * faces, corners, positions, colors, normals: normals(positions, corners) };
  }

  function normals(positions, corners) {  // sums over the faces, weighted by area
    const sums = new Float32Array(positions.length);
    for (let k = 0; k < corners.length; k += 3) {
      const [a, b, c] = [3 * corners[k], 3 * corners[k + 1], 3 * corners[k + 2]];
      const u = [0, 1, 2].map((i) => positions[b + i] - positions[a + i]);
      const v = [0, 1, 2].map((i) => positions[c + i] - positions[a + i]);
      for (let i = 0; i < 3; i++) {
        const [j, l] = [(i + 1) % 3, (i + 2) % 3];
        const area = u[j] * v[l] - u[l] * v[j];
        sums[a + i] += area;
        sums[b + i] += area;
        sums[c + i] += area;
      }
    }
    return sums;
  }

  function upload(frame) {
    const buffer = (target, data) => {
      const created = gl.createBuffer();
      gl.bindBuffer(target, created);
      gl.bufferData(target, data, gl.STATIC_DRAW);
      return created;
    };
    frame.buffers = {
      position: buffer(gl.ARRAY_BUFFER, frame.positions),
      normal: buffer(gl.ARRAY_BUFFER, frame.normals),
      color: buffer(gl.ARRAY_BUFFER, frame.colors),
      corners: buffer(gl.ELEMENT_ARRAY_BUFFER, frame.corners),
    };
  }

  function point(frame) {
    for (const [name, kind] of [["position", gl.FLOAT], ["normal", gl.FLOAT], ["color", gl.UNSIGNED_BYTE]]) {
      const at = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, frame.buffers[name]);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, 3, kind, kind === gl.UNSIGNED_BYTE, 0, 0);
    }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, frame.buffers.corners);
  }

  function axes({ azimuth, elevation }) {  // rows: right, up, towards the viewer
    const [a, e] = [azimuth, elevation].map((degrees) => (degrees * Math.PI) / 180);
    const back = [Math.sin(a) * Math.cos(e), Math.sin(e), Math.cos(a) * Math.cos(e)];
    const right = [Math.cos(a), 0, -Math.sin(a)];
    return [right, [0, 1, 2].map((i) => back[(i + 1) % 3] * right[(i + 2) % 3] - back[(i + 2) % 3] * right[(i + 1) % 3]), back];
  }

  class View {
    constructor(figure, camera) {
      this.figure = figure;
      this.camera = camera;
      this.canvas = figure.querySelector("canvas");
      const clay = this.canvas.dataset.clay.split(" ").map(Number);
      this.frames = this.canvas.dataset.frames.split(" ").map((text) => unpack(text, clay));
      this.frames.forEach(upload);
      this.shown = 0;
      const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
      for (const { positions } of this.frames) {
        positions.forEach((value, k) => {
          low[k % 3] = Math.min(low[k % 3], value);
          high[k % 3] = Math.max(high[k % 3], value);
        });
      }
      this.center = low.map((value, i) => (value + high[i]) / 2);
      const [x, y, z] = low.map((value, i) => Math.max((high[i] - value) / 2, 1e-6));
      camera.across = Math.max(camera.across, Math.hypot(x, z));
      camera.high = Math.max(camera.high, y + 0.2 * Math.hypot(x, z));  // the camera looks slightly down
      figure.querySelector("img").hidden = true;
      this.canvas.hidden = false;
      this.steer();
      if (this.frames.length > 1) this.play();
    }

    draw() {
      const density = Math.min(window.devicePixelRatio || 1, 2);
      const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight].map((n) => Math.max(1, Math.round(n * density)));
      if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
      if (hidden.width < width || hidden.height < height) {
        Object.assign(hidden, { width: Math.max(hidden.width, width), height: Math.max(hidden.height, height) });
      }
      const frame = this.frames[this.shown], [right, up, back] = axes(this.camera);
      const { across, high, zoom } = this.camera;
      const size = 0.96 * zoom * Math.min(width / across, height / high);  // pixels of two meters
      gl.viewport(0, 0, width, height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.uniformMatrix3fv(where.turn, false, [0, 1, 2].flatMap((i) => [right[i], up[i], back[i]]));
      gl.uniform3fv(where.center, this.center);
      gl.uniform3f(where.scale, size / width, size / height, 0.9 / Math.hypot(across, high));
      gl.uniform3f(where.up, right[1], up[1], back[1]);
      point(frame);
      gl.drawElements(gl.TRIANGLES, frame.count, gl.UNSIGNED_SHORT, 0);
      const pen = this.canvas.getContext("2d");
      pen.clearRect(0, 0, width, height);
      pen.drawImage(hidden, 0, hidden.height - height, width, height, 0, 0, width, height);
    }

    move(change) {
      const { camera } = this;
      Object.assign(camera, change);
      camera.elevation = Math.max(-89, Math.min(89, camera.elevation));
      camera.zoom = Math.max(0.5, Math.min(20, camera.zoom));
      for (const view of camera.views) changed(view);
    }

    steer() {
      const { canvas, camera } = this, fingers = new Map();
      const distance = () => {
        const [a, b] = [...fingers.values()];
        return Math.hypot(a.x - b.x, a.y - b.y);
      };
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        canvas.focus({ preventScroll: true });
        fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      });
      canvas.addEventListener("pointermove", (event) => {
        const finger = fingers.get(event.pointerId);
        if (!finger) return;
        const before = fingers.size > 1 ? distance() : 0;
        const [dx, dy] = [event.clientX - finger.x, event.clientY - finger.y];
        Object.assign(finger, { x: event.clientX, y: event.clientY });
        if (fingers.size > 1) this.move({ zoom: (camera.zoom * distance()) / Math.max(before, 1) });
        else this.move({ azimuth: camera.azimuth - 0.5 * dx, elevation: camera.elevation + 0.5 * dy });
      });
      for (const name of ["pointerup", "pointercancel"]) {
        canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
      }
      canvas.addEventListener("wheel", (event) => {
        if (document.activeElement !== canvas) return;  // else the page could not be scrolled past the canvas
        event.preventDefault();
        this.move({ zoom: camera.zoom * Math.exp(-0.0015 * event.deltaY) });
      }, { passive: false });
      canvas.addEventListener("dblclick", () => this.move(HOME));
      canvas.addEventListener("keydown", (event) => {
        const { azimuth, elevation, zoom } = camera;
        const change = {
          ArrowLeft: { azimuth: azimuth - 10 }, ArrowRight: { azimuth: azimuth + 10 },
          ArrowUp: { elevation: elevation + 10 }, ArrowDown: { elevation: elevation - 10 },
          "+": { zoom: zoom * 1.2 }, "-": { zoom: zoom / 1.2 }, 0: HOME,
        }[event.key];
        if (!change) return;
        event.preventDefault();
        this.move(change);
      });
      new ResizeObserver(() => changed(this)).observe(canvas);
    }

    play() {  // forward and backward, repeated
      const bar = this.figure.querySelector(".play");
      const [button, slider] = [bar.querySelector("button"), bar.querySelector("input")];
      const last = this.frames.length - 1, pace = (Number(this.canvas.dataset.seconds) * SECOND) / last;
      let timer = 0, ahead = 1;
      const show = (index) => {
        this.shown = index;
        slider.value = index;
        changed(this);
      };
      const stop = () => {
        clearInterval(timer);
        timer = 0;
        button.textContent = "Play";
      };
      button.addEventListener("click", () => {
        if (timer) return stop();
        button.textContent = "Pause";
        timer = setInterval(() => {
          if (this.shown + ahead < 0 || this.shown + ahead > last) ahead = -ahead;
          show(this.shown + ahead);
        }, pace);
      });
      slider.addEventListener("input", () => {
        stop();
        show(Number(slider.value));
      });
      bar.hidden = false;
    }
  }

  const waiting = new Set();
  function changed(view) {
    if (!waiting.size) {
      requestAnimationFrame(() => {
        const views = [...waiting];
        waiting.clear();
        views.forEach((each) => each.draw());
      });
    }
    waiting.add(view);
  }

  const cameras = new Map();
  for (const figure of figures) {
    const group = figure.parentElement;
    if (!cameras.has(group)) cameras.set(group, { ...HOME, across: 0, high: 0, views: [] });
    const camera = cameras.get(group);
    camera.views.push(new View(figure, camera));
  }
  hidden.addEventListener("webglcontextlost", () => {
    for (const figure of figures) {  // the images again
      figure.querySelector("img").hidden = false;
      figure.querySelector("canvas").hidden = true;
    }
  });
})();
