// Curves and bars over the steps of a run.
import { make, number, percent } from "./values.js";
import { level } from "./run.js";
import { state } from "./plates.js";
import { go } from "./scrubber.js";

const line = (points) => "M" + points.map(([x, y]) => x.toFixed(1) + " " + y.toFixed(1)).join("L");
function chart(width, height, label) { return make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }); }
const write = (x, y, text, anchor = "start") => make("text", { x, y, "text-anchor": anchor }, text);
export function bellChart(run, k) {  // histogram of x_t, at the spread of the standard normal
  const values = run.values.x, W = 420, H = 210, low = -4, high = 4, many = 40, svg = chart(W, H, "Histogram of the values against the normal distribution");
  const bars = make("g"), x = (v) => (v - low) / (high - low) * W, y = (d) => H - 24 - d / .62 * (H - 34), caption = make("span");
  const bell = Array.from({ length: 81 }, (_, i) => low + i / 10).map((v) => [x(v), y(Math.exp(-v * v / 2) / Math.sqrt(2 * Math.PI))]);
  svg.append(bars, make("path", { class: "bell", d: line(bell) }), make("line", { class: "axis", x1: 0, x2: W, y1: H - 24, y2: H - 24 }));
  for (const v of [-4, -2, 0, 2, 4]) svg.append(write(x(v), H - 6, number(v, 0), v === low ? "start" : v === high ? "end" : "middle"));
  state.painters.push(() => {
    const i = Math.min(k === undefined ? run.k : k, values.n - 1), plane = values.at(i), spread = values.spread ? values.spread[i] : 1, counts = new Array(many).fill(0);
    let mean = 0, square = 0;
    for (const one of plane) {
      const v = one / spread, at = Math.floor((v - low) / (high - low) * many);
      mean += v; square += v * v;
      if (at >= 0 && at < many) counts[at]++;
    }
    mean /= plane.length;
    const std = Math.sqrt(Math.max(0, square / plane.length - mean * mean));
    caption.textContent = ` mean ${number(mean)}, standard deviation ${number(std)}; the line is N(0, 1)`;
    bars.replaceChildren(...counts.map((count, b) => {
      const top = Math.max(14, y(count / plane.length / ((high - low) / many)));
      return make("rect", { class: "bar", x: b * W / many + .6, width: W / many - 1.2, y: top, height: Math.max(0, H - 24 - top) });
    }));
  });
  return make("figure", { class: "plate" }, svg, make("figcaption", {}, make("b", {}, k === undefined ? "All its numbers" : "All the numbers"), caption));
}
export function noiseChart(run) {
  const W = 420, H = 210, svg = chart(W, H, "How much of x is noise at each step");
  const x = (k) => 8 + k / Math.max(1, run.span) * (W - 16), y = (v) => H - 22 - v * (H - 42);
  const curve = make("path", { class: "curve " + run.css }), here = make("circle", { class: "here " + run.css, r: 6.5 });
  svg.append(make("line", { class: "axis", x1: 8, x2: W - 8, y1: H - 22, y2: H - 22 }), curve, here,
    write(8, H - 6, "first step"), write(W - 8, H - 6, run.ended && !run.ends ? "last step" : "end", "end"));
  state.painters.push(() => {
    const n = run.steps.length, points = run.steps.map((one, k) => [x(k), y(one.noise)]);
    if (run.ends) points.push([x(n), y(run.process === "forward" || run.process === "inversion" ? run.steps[n - 1].noise : 0)]);
    const [cx, cy] = points[Math.min(run.k, points.length - 1)];
    curve.setAttribute("d", line(points)); here.setAttribute("cx", cx); here.setAttribute("cy", cy);
  });
  svg.style.cursor = "pointer";
  svg.addEventListener("click", (event) => { const box = svg.getBoundingClientRect(); go(run, Math.round(((event.clientX - box.left) / box.width * W - 8) / (W - 16) * run.span)); });
  return make("figure", { class: "plate" }, svg, make("figcaption", {}, make("b", {}, "Share of noise"), " in what each step is given"));
}
export function pathChart(run) {
  const { x, x0, share } = run.path, all = [...x, ...x0], W = 560, H = 340, pad = 30;
  const [lowX, highX, lowY, highY] = [0, 1].flatMap((d) => [Math.min(...all.map((p) => p[d])), Math.max(...all.map((p) => p[d]))]);
  const place = ([a, b]) => [pad + (a - lowX) / (highX - lowX || 1) * (W - 2 * pad), H - pad - (b - lowY) / (highY - lowY || 1) * (H - 2 * pad)];
  const svg = chart(W, H, "The way of x and of the predicted picture through latent space"), here = make("circle", { class: "here " + run.css, r: 8 }), belief = make("circle", { class: "here " + run.css, r: 5 });
  const joint = make("line", { class: "axis" }), start = place(x[0]), end = place(x[x.length - 1]);
  svg.append(joint, make("path", { class: `curve thin ${run.css}`, d: line(x0.map(place)) }), make("path", { class: `curve ${run.css}`, d: line(x.map(place)) }), belief, here);
  const label = ([px, py], text) => write(px, py + (py > H - 40 ? -14 : 22), text, px > W * .75 ? "end" : px < W * .25 ? "start" : "middle");
  svg.append(label(start, run.process === "text" ? "noise" : "start"), label(end, run.ends ? "picture" : "last step"));
  state.painters.push(() => {
    const [ax, ay] = place(x[Math.min(run.k, x.length - 1)]), [bx, by] = place(x0[Math.min(run.k, x0.length - 1)]);
    for (const [element, values] of [[here, { cx: ax, cy: ay }], [belief, { cx: bx, cy: by }], [joint, { x1: ax, y1: ay, x2: bx, y2: by }]])
      for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
  });
  return make("figure", { class: "plate" }, svg, make("figcaption", {}, make("b", {}, "Line"), " what is carried on, ", make("b", {}, "dots"), ` what is predicted; together ${percent(share[0] + share[1])} of all movement`));
}
export function apartChart(rows) {
  const W = 620, H = 260, svg = chart(W, H, "Distance between the runs at each step"), run = state.runs[0];
  const top = Math.max(.05, ...rows.flatMap((row) => [row.x || 0, row.x0 || 0])), last = Math.max(1, rows[rows.length - 1].step);
  const x = (step) => 46 + step / last * (W - 60), y = (v) => H - 34 - v / top * (H - 50), marks = [], legend = make("figcaption");
  svg.append(make("line", { class: "axis", x1: 46, x2: W - 14, y1: H - 34, y2: H - 34 }), write(46, H - 14, "step " + rows[0].step), write(W - 14, H - 14, "step " + last, "end"), write(40, y(0) + 4, "0", "end"), write(40, y(top) + 4, top.toFixed(2), "end"));
  for (const [key, css, name] of [["x", "a", "what is carried on"], ["x0", "b dash", "what is predicted"]]) {
    const points = rows.filter((row) => key in row).map((row) => [x(row.step), y(row[key]), row]);
    if (!points.length) continue;
    const here = make("circle", { class: "here " + css[0], r: 6 });
    marks.push([here, points]);
    svg.append(make("path", { class: "curve " + css, d: line(points) }), here);
    legend.append(make("svg", { viewBox: "0 0 34 8", width: 34, height: 8, "aria-hidden": "true" }, make("path", { class: "curve " + css, d: "M1 4H33" })), ` ${name}   `);
  }
  state.painters.push(() => { for (const [here, points] of marks) {
    const near = points.reduce((a, b) => (Math.abs(b[2].step - level(run).step) < Math.abs(a[2].step - level(run).step) ? b : a));
    here.setAttribute("cx", near[0]); here.setAttribute("cy", near[1]);
  } });
  return make("figure", { class: "plate", style: "max-width:46rem" }, svg, legend);
}

