// The viewer: takes runs as they come, and shows all that there is of them.
import { $, make, percent } from "./values.js";
import { atEnd, level, rising } from "./run.js";
import { draw, leave, paint, state } from "./plates.js";
import { buildLanes, go, key, listen, strips } from "./scrubber.js";
import { apartChart } from "./charts.js";
import { views } from "./chapters.js";

const SYMBOLS = { epsilon: "ε", v_prediction: "v", sample: "x₀" };
const KINDS = { forward: "From a picture to noise", inversion: "Back to the noise of a picture", image: "From a picture to another", text: "From noise to a picture" };
let apart = [];

/** Show these runs, one or two, in the page's viewer. `distances`: how far apart two recorded ones are, by step. */
export function show(runs, distances = []) {
  Object.assign(state, { runs, word: null, channel: null, linked: true, playing: false, touched: false });
  apart = distances;
  listen();
  build();
}

/** An event of one of them has been taken: an end, or what is there for the first time, makes new chapters. */
export function update(run, event) {
  if (event.kind === "end" || run.steps.length === 1 || needs() !== built) build();
  else { paint(); strips(); }
}

const has = (run, path) => path === "other" ? apart.length > 0 : path.split(".").reduce((value, name) => value && value[name], run) && !(Array.isArray(run[path]) && !run[path].length);
const chapters = () => [...document.querySelectorAll(".chapter")].map((chapter) => [chapter, state.runs.filter((run) => run.steps.length && has(run, chapter.dataset.needs) && (!chapter.dataset.process || run.process === chapter.dataset.process))]);
const needs = () => chapters().map(([, able]) => able.length).join();
let built = "";

function build() {
  const { runs } = state, two = runs.length > 1, whole = runs[0], up = rising(whole);
  built = needs();
  state.painters.length = 0;
  if (state.word === null) state.word = telling(runs.find((run) => run.heat));
  let count = 0;
  for (const [chapter, able] of chapters()) {
    const box = chapter.querySelector("[data-view]"), eyebrow = chapter.querySelector(".eyebrow");
    chapter.hidden = !able.length;
    if (box) box.replaceChildren();
    if (!able.length) continue;
    for (const old of eyebrow.querySelectorAll("b")) old.remove();
    eyebrow.prepend(make("b", {}, String(++count)));
    if (!box) continue;
    const beside = two && box.dataset.view !== "attention";
    box.classList.toggle("two", two && (able.length > 1 || beside));
    for (const run of beside ? runs : able) {
      const part = make("div", { class: "run" });
      if (two) part.append(make("span", { class: "tag tag-" + run.css }, run.letter));
      part.append(able.includes(run) ? views[box.dataset.view](run) : make("p", { class: "small" }, run.ended ? "This run has none." : "Not yet."));
      box.append(part);
    }
  }
  if (apart.length) $("apart-chart").replaceChildren(apartChart(apart));
  words(whole, two, up);
  channels(whole);
  heroes();
  films();
  numbers(whole);
  buildLanes();
  if (state.word) document.body.dataset.word = state.word;
  paint();
  strips();
  letters();
}

/** To begin with, the word that looks at the least of the picture: most often the name of a thing. */
function telling(run) {
  if (!run) return null;
  const { words, rows, shape: [, , h, w] } = run.heat, last = rows[rows.length - 1];
  const looks = (word) => { const from = words.indexOf(word) * h * w; return last.subarray(from, from + h * w).reduce((a, b) => a + b, 0); };
  const chosen = words.filter((word) => !/^(an?|the|and|of|on|in|at|with)$/i.test(word));
  return (chosen.length ? chosen : words).reduce((a, b) => (looks(b) < looks(a) ? b : a));
}

function words(whole, two, up) {  // what the text of the page says of this run
  const is = { guided: whole.guidance !== null, unguided: whole.guidance === null, eps: whole.prediction === "epsilon", v: whole.prediction === "v_prediction", sample: whole.prediction === "sample", heat: Boolean(whole.heat), up, down: !up };
  for (const element of document.querySelectorAll("[data-if]")) element.hidden = !is[element.dataset.if];
  const fills = { symbol: SYMBOLS[whole.prediction] || "ε", turn: up ? ">" : "<", guidance: whole.guidance, length: whole.tokens.length || 77, width: whole.text ? whole.text.width : 768 };
  for (const element of document.querySelectorAll("[data-fill]")) element.textContent = String(fills[element.dataset.fill]);
  for (const element of document.querySelectorAll("[data-colours]")) element.textContent = whole.colours.true
    ? "A latent has no colours of its own. It is shown in those that fit the finished picture best, by least squares; only the decoder knows better."
    : "The trace holds no picture, so the colours only tell different values apart.";
  const thin = Math.max(1, ...Object.values(whole.values).map((v) => v.thin));
  for (const element of document.querySelectorAll("[data-thin]")) element.textContent = thin > 1 ? `Of these latents every ${thin}${thin === 2 ? "nd" : thin === 3 ? "rd" : "th"} point is shown.` : "Point at any picture on this page to read its numbers.";
  document.querySelector(".heroes").classList.toggle("two", two);
  addEventListener("beforeprint", () => { for (const shut of document.querySelectorAll("details")) shut.open = true; });
  $("compared").hidden = !two;
  document.body.classList.toggle("compared", two);
  $("kind").textContent = KINDS[whole.process] + (two ? ", compared" : "");
  if (whole.steps.length && !whole.values.x0) $("glance-note").textContent = "What each step was given. The numbers count the steps.";
  const many = Math.max(whole.steps.length, whole.planned), steps = whole.facts.find(([name]) => name === "steps")?.[1] || many;
  $("again").textContent = many < 2 ? "" : whole.process === "forward" ? `From here on: ${many} levels of noise.` : `From here on, everything happens once for each step${two ? "" : `, ${steps} times in all`}.`;
  $("again").hidden = !$("again").textContent;
}
function channels(whole) {  // what to look at: colours, or a channel
  for (const old of $("look").querySelectorAll("button")) old.remove();
  for (const [name, value] of [["colours", null], ...Array.from({ length: whole.size[0] }, (_, q) => [`channel ${q}`, q])]) {
    const button = make("button", { type: "button", class: "chip" }, name);
    button.addEventListener("click", () => { state.channel = value; paint(); });
    state.painters.push(() => button.setAttribute("aria-pressed", String(state.channel === value)));
    $("look").append(button);
  }
}
function heroes() {  // the big picture at the top follows once somebody moves, and while the run is on its way
  for (const box of document.querySelectorAll("[data-hero]")) {
    const run = state.runs[Number(box.dataset.hero)], canvas = box.querySelector("canvas") || make("canvas", { "aria-hidden": "true" });
    box.append(canvas);
    state.painters.push(() => {
      const shown = run.ended && !state.touched && box.querySelector("img");
      canvas.hidden = Boolean(shown) || !run.steps.length || atEnd(run) || !(run.values.x0 || run.values.x);
      if (!canvas.hidden) draw(canvas, run, run.values.x0 ? "x0" : "x", run.k);
    });
  }
}
function films() {
  document.querySelectorAll("ol.film").forEach((film, index) => {
    const run = state.runs[index], cells = [...film.children];
    for (const cell of cells) cell.onclick = () => go(run, run.steps.findIndex((one) => one.step >= Number(cell.dataset.step)));
    state.painters.push(() => {
      const now = cells.reduce((a, b) => (Number(b.dataset.step) <= level(run).step ? b : a));
      for (const cell of cells) cell.classList.toggle("now", cell === now);
    });
  });
}
function numbers(whole) {
  const head = ["step", "t", "noise", "signal-to-noise", "α", "σ"], table = make("table", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name))));
  for (const one of whole.steps) table.append(make("tr", {}, ...[one.step, one.t, one.noise === null ? "" : percent(one.noise), one.snr === null ? "" : one.snr, one.alpha === null ? "" : one.alpha, one.sigma === null ? "" : one.sigma].map((value) => make("td", {}, String(value)))));
  $("numbers").replaceChildren(table);
}
function letters() {  // of charts, as large on a phone as on a wall
  for (const svg of document.querySelectorAll("svg.chart")) if (svg.clientWidth) svg.style.fontSize = Math.min(26, Math.max(11, 12.5 * svg.viewBox.baseVal.width / svg.clientWidth)) + "px";
}

addEventListener("keydown", key);
addEventListener("resize", () => { if (state.runs.length) { strips(); letters(); } });
addEventListener("scroll", () => { if (state.runs.length) leave(); }, { passive: true });
addEventListener("sharp", () => { paint(); strips(); });
