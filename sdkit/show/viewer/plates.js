// What is on the screen, and its smallest parts: a picture of numbers that can be pointed at, with its caption.
import { $, make, number, percent, heatRamp, fieldRamp, signedRamp } from "./values.js";
import { told } from "./run.js";

export const state = { runs: [], painters: [], word: null, channel: null, linked: true, playing: false, touched: false };
export const paint = () => { for (const one of state.painters) one(); dispatchEvent(new Event("paint")); };

/** One field of numbers as pixels. `kind`: "colours", a channel, or "length" of the vector at each point. */
export function pixels(run, values, plane, i, kind, reach) {
  const { c, h, w } = values, n = h * w, image = new ImageData(w, h), out = image.data, { weight, bias } = run.colours;
  const spread = values.spread ? values.spread[i] : 1;
  let top = 0;
  if (kind === "length") for (let p = 0; p < n; p++) { let sum = 0; for (let q = 0; q < c; q++) sum += plane[q * n + p] ** 2; top = Math.max(top, Math.sqrt(sum)); }
  for (let p = 0; p < n; p++) {
    let rgb;
    if (kind === "length") {
      let sum = 0;
      for (let q = 0; q < c; q++) sum += plane[q * n + p] ** 2;
      rgb = fieldRamp(Math.sqrt(sum) / (top || 1));
    } else if (kind === "colours") {
      rgb = bias.map((start, k) => { let sum = start; for (let q = 0; q < c; q++) sum += plane[q * n + p] / spread * weight[q][k]; return (sum / 2 + .5) * 255; });
    } else rgb = signedRamp(plane[kind * n + p] / spread / reach / 2 + .5);
    out.set([rgb[0], rgb[1], rgb[2], 255], p * 4);  // clamps by itself
  }
  return image;
}
const look = () => (state.channel === null ? "colours" : state.channel);
export function draw(canvas, run, name, k) {  // a stage of a run at a stop
  const values = run.values[name];
  if (!values) return;
  const i = Math.min(k, values.n - 1), context = canvas.getContext("2d"), sharp = run.sharp[name] && run.sharp[name][i];
  if (sharp && sharp.image.naturalWidth && state.channel === null) {
    const w = sharp.image.naturalWidth / sharp.of, h = sharp.image.naturalHeight;
    canvas.width = w; canvas.height = h;
    context.drawImage(sharp.image, sharp.index * w, 0, w, h, 0, 0, w, h);
    return;
  }
  canvas.width = values.w; canvas.height = values.h;
  context.putImageData(pixels(run, values, values.at(i), i, look(), run.reach[name]), 0, 0);
}

// --- hovering --------------------------------------------------------------------------------------------------
function point(canvas, fx, fy, cols, rows, says, x, y) {
  const col = Math.min(cols - 1, Math.max(0, Math.floor(fx * cols))), row = Math.min(rows - 1, Math.max(0, Math.floor(fy * rows)));
  const style = document.documentElement.style;
  style.setProperty("--px", col / cols); style.setProperty("--py", row / rows);
  style.setProperty("--cell-x", 1 / cols); style.setProperty("--cell-y", 1 / rows);
  document.body.classList.add("pointing");
  const tip = $("tip");
  tip.textContent = says(row, col);
  tip.classList.add("on");
  tip.style.left = Math.min(x + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.max(8, y - tip.offsetHeight - 12) + "px";
  canvas.dataset.at = `${row},${col}`;
}
export const leave = () => { document.body.classList.remove("pointing"); $("tip").classList.remove("on"); };
/** `size()` -> [columns, rows]; `says(row, column)` -> the words of the tip. Shift and arrows do what a mouse does. */
export function hoverable(canvas, size, says) {
  const move = (event) => {
    const box = canvas.getBoundingClientRect();
    point(canvas, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, ...size(), says, event.clientX, event.clientY);
  };
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerdown", move);
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
  canvas.tabIndex = 0;
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!by || !event.shiftKey) return;
    event.preventDefault(); event.stopPropagation();
    const [cols, rows] = size(), [row, col] = (canvas.dataset.at || `${rows >> 1},${cols >> 1}`).split(",").map(Number);
    const to = [(row + by[0] + rows) % rows, (col + by[1] + cols) % cols], box = canvas.getBoundingClientRect();
    const fx = (to[1] + .5) / cols, fy = (to[0] + .5) / rows;
    point(canvas, fx, fy, cols, rows, says, box.left + fx * box.width, box.top + fy * box.height);
  });
}
export function readout(values, plane) {  // what a point of a latent says
  return (row, col) => {
    const n = values.h * values.w, p = row * values.w + col, numbers = plane();
    const head = `row ${row * values.thin}, column ${col * values.thin}`;
    return head + "\n" + Array.from({ length: values.c }, (_, q) => number(numbers[q * n + p], values.digits).padStart(6)).join(" ");
  };
}

// --- plates: one picture of numbers with its caption -----------------------------------------------------------
export function frame(canvas, title, note) {
  const caption = make("figcaption", {}, make("b", {}, title));
  const extra = make("span", {}, note ? " " + note : "");
  caption.append(extra);
  return [make("figure", { class: "plate" }, make("div", { class: "field" }, canvas, make("i", { class: "dot" })), caption), extra];
}
export function plate(run, name, title, note, fixed) {
  const canvas = make("canvas", { role: "img", "data-stage": name }), values = run.values[name];
  const k = () => (fixed === undefined ? run.k : fixed), i = () => Math.min(k(), values.n - 1);
  const [figure, extra] = frame(canvas, title, "");
  state.painters.push(() => {
    draw(canvas, run, name, k());
    const says = typeof note === "function" ? note(run) : note;
    extra.textContent = says ? " " + says : "";
    canvas.setAttribute("aria-label", `${title} ${says || ""} (${told(run, k())})`);
  });
  hoverable(canvas, () => [values.w, values.h], readout(values, () => values.at(i())));
  return figure;
}
export function plateOf(run, values, compute, kind, title, note, says) {
  const canvas = make("canvas", { role: "img", "aria-label": `${title} ${note || ""}`, width: values.w, height: values.h });
  state.painters.push(() => { canvas.getContext("2d").putImageData(pixels(run, values, compute(), 0, kind, 3), 0, 0); });
  hoverable(canvas, () => [values.w, values.h], says || readout(values, compute));
  return frame(canvas, title, note)[0];
}
export const plates = (kind, ...items) => make("div", { class: "plates " + kind }, ...items.filter(Boolean));
export const picture = (uri, title, note, alt) => make("figure", { class: "plate" }, make("div", { class: "field" }, make("img", { src: uri, alt })),
  make("figcaption", {}, make("b", {}, title), note ? " " + note : ""));

// --- words -----------------------------------------------------------------------------------------------------
export function choose(word) { state.word = word; document.body.dataset.word = word; paint(); }
export function wordButton(word, ...children) {
  const button = make("button", { class: "chip", type: "button", "data-word": word }, ...(children.length ? children : [word]));
  button.addEventListener("click", () => choose(word));
  state.painters.push(() => button.setAttribute("aria-pressed", String(state.word === word)));
  return button;
}
export function heatPlate(run) {
  const { shape: [, , h, w], words, rows } = run.heat, canvas = make("canvas", { class: "layer", role: "img", width: w, height: h });
  const base = run.picture ? make("img", { src: run.picture, alt: "" }) : make("canvas", { "aria-hidden": "true" });
  const [figure, extra] = frame(canvas, "", "");
  figure.querySelector(".field").classList.add("heat");
  figure.querySelector(".field").prepend(base);
  const seen = () => { const from = Math.max(0, words.indexOf(state.word)) * h * w; return rows[Math.min(run.k, rows.length - 1)].subarray(from, from + h * w); };
  state.painters.push(() => {
    if (!run.picture) draw(base, run, run.values.x0 ? "x0" : "x", run.k);
    const image = new ImageData(w, h), heat = seen();
    for (let p = 0; p < h * w; p++) { const v = heat[p] / 255, [r, g, b] = heatRamp(v); image.data.set([r, g, b, 150 + 60 * v], p * 4); }
    canvas.getContext("2d").putImageData(image, 0, 0);
    figure.querySelector("figcaption b").textContent = `“${state.word}”`;
    extra.textContent = " " + told(run, Math.min(run.k, run.steps.length - 1));
    canvas.setAttribute("aria-label", `Where the word ${state.word} acts, ${told(run)}`);
    canvas.dataset.sum = String(heat.reduce((a, b) => a + b, 0));
  });
  hoverable(canvas, () => [w, h], (row, col) => `“${state.word}” ${percent(seen()[row * w + col] / 255)}`);
  figure.append(make("div", { class: "ramp" }), make("div", { class: "ends small" }, make("span", {}, "least attention"), make("span", {}, "most attention")));
  return figure;
}
