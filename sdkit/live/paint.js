// Painting: on the picture that a step predicts, in the cells of its latent; and on a sheet, in pixels.
import { make } from "/web/values.js";
import { draw } from "/web/plates.js";

/** Follow a pointer over a canvas: `mark(fx, fy, previous)` with shares of its width and height. */
function brush(canvas, mark) {
  let before = null;
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); mark(...(before = at(event)), before); });
  canvas.addEventListener("pointermove", (event) => { if (!before) return; const now = at(event); mark(...now, before); before = now; });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { before = null; });
}

const MARKS = { here: "#3ddc6baa", away: "#ff4040aa" };

/** What is painted on a step: colours, and where a word acts (1) or not (-1). */
export class Cells {
  constructor(canvas, tools) {
    Object.assign(this, { canvas, tools, run: null, word: null, brush: "colour", colour: "#d02020" });
    brush(canvas, (fx, fy, before) => this.mark(fx, fy, before));
  }

  begin(run) {
    const { h, w } = run.values.x0;
    Object.assign(this, { run, h, w, word: null });
    this.clear();
    this.palette();
  }

  clear() { this.colours = []; this.paint = new Array(this.h * this.w).fill(-1); this.look = new Array(this.h * this.w).fill(0); this.show(); }

  palette() {
    const colour = make("input", { type: "color", value: this.colour, "aria-label": "Colour of the brush" }), words = make("select", { "aria-label": "Word" });
    const press = (name, text) => {
      const button = make("button", { type: "button", "data-brush": name, "aria-pressed": String(this.brush === name) }, text);
      button.addEventListener("click", () => { this.brush = name; for (const one of this.tools.querySelectorAll("[data-brush]")) one.setAttribute("aria-pressed", String(one.dataset.brush === name)); });
      return button;
    };
    colour.addEventListener("input", () => { this.colour = colour.value; });
    words.append(...this.run.words.map((word) => make("option", {}, word)));
    const named = this.run.words.filter((word) => !/^(an?|the|and|of|on|in|at|with|background)$/i.test(word));
    this.word = words.value = named[named.length > 1 ? 1 : 0] || this.run.words[0];
    words.addEventListener("change", () => { this.word = words.value; this.look.fill(0); this.show(); });
    const clear = make("button", { type: "button" }, "Clear");
    clear.addEventListener("click", () => this.clear());
    this.tools.replaceChildren(press("colour", "Paint"), colour, ...(this.run.words.length ? [press("here", "Look here for"), press("away", "Not here"), words] : []), clear);
  }

  mark(fx, fy, [bx, by]) {
    if (!this.run) return;
    const reach = Math.max(1, Math.round(Math.max(this.h, this.w) / 16)), many = 1 + Math.ceil(Math.hypot((fx - bx) * this.w, (fy - by) * this.h));
    for (let i = 0; i < many; i++) {
      const share = i / many, col = Math.floor((fx + (bx - fx) * share) * this.w), row = Math.floor((fy + (by - fy) * share) * this.h);
      for (let r = row; r < row + reach; r++) for (let c = col; c < col + reach; c++) if (r >= 0 && c >= 0 && r < this.h && c < this.w) this.set(r * this.w + c);
    }
    this.show();
  }

  set(cell) {
    if (this.brush !== "colour") { this.look[cell] = this.brush === "here" ? 1 : -1; return; }
    if (!this.colours.includes(this.colour)) this.colours.push(this.colour);
    this.paint[cell] = this.colours.indexOf(this.colour);
  }

  show() {  // the picture of the step, with what is painted over it
    const { canvas, run, h, w } = this, tile = document.createElement("canvas"), context = canvas.getContext("2d");
    if (!run) return;
    const side = Math.max(1, Math.round(320 / Math.max(h, w)));
    draw(tile, run, "x0", Math.min(run.k, run.steps.length - 1));
    canvas.width = w * side; canvas.height = h * side;
    context.imageSmoothingEnabled = false;
    context.drawImage(tile, 0, 0, canvas.width, canvas.height);
    for (let i = 0; i < h * w; i++) for (const style of [this.colours[this.paint[i]], MARKS[{ 1: "here", "-1": "away" }[this.look[i]]]]) {
      if (!style) continue;
      context.fillStyle = style;
      context.fillRect(i % w * side, Math.floor(i / w) * side, side, side);
    }
  }

  given() {  // as the server takes it
    const size = { height: this.h, width: this.w };
    return {
      paint: this.paint.some((one) => one >= 0) ? { ...size, cells: this.paint, colours: this.colours } : null,
      look: this.look.some((one) => one) ? { ...size, cells: this.look, word: this.word } : null,
    };
  }
}

/** A sheet to draw a picture on, and a mask over it. */
export class Sheet {
  constructor(canvas, mask, changed) {
    Object.assign(this, { canvas, mask, changed, masking: false, masked: false, colour: "#a8401a" });
    brush(canvas, (fx, fy, [bx, by]) => {
      const target = this.masking ? mask : canvas, context = target.getContext("2d");
      context.strokeStyle = this.masking ? "#fff" : this.colour;
      context.lineWidth = canvas.width / (this.masking ? 6 : 10); context.lineCap = "round";
      context.beginPath(); context.moveTo(bx * canvas.width, by * canvas.height); context.lineTo(fx * canvas.width + .01, fy * canvas.height); context.stroke();
      this.masked ||= this.masking;
      changed();
    });
  }

  size([h, w]) {
    for (const one of [this.canvas, this.mask]) { one.width = w; one.height = h; }
    this.clear();
  }

  clear() {
    const { canvas, mask } = this, context = canvas.getContext("2d");
    context.fillStyle = "#b9c8d8";
    context.fillRect(0, 0, canvas.width, canvas.height);
    mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
    this.masked = false;
    this.changed();
  }

  async load(src) {  // fitted around its centre
    const image = Object.assign(new Image(), { src }), { canvas } = this;
    await image.decode();
    const scale = Math.max(canvas.width / image.naturalWidth, canvas.height / image.naturalHeight), w = image.naturalWidth * scale, h = image.naturalHeight * scale;
    canvas.getContext("2d").drawImage(image, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
    this.changed();
  }

  given() {
    const black = make("canvas", { width: this.mask.width, height: this.mask.height }), context = black.getContext("2d");
    context.fillRect(0, 0, black.width, black.height);
    context.drawImage(this.mask, 0, 0);
    return { image: this.canvas.toDataURL("image/png"), ...(this.masked ? { mask_image: black.toDataURL("image/png") } : {}) };
  }
}
