// Moving through the runs: a lane with a handle for each, keys, and playing.
import { $, make, percent } from "./values.js";
import { atEnd, level, rising, told } from "./run.js";
import { draw, paint, state } from "./plates.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");
let lanes = [];

export function buildLanes() {
  const { runs } = state, two = runs.length > 1;
  lanes = runs.map((run) => {
    const strip = make("canvas", { "aria-hidden": "true" });
    const input = make("input", { type: "range", min: 0, step: 1, "aria-label": two ? `Step of run ${run.letter}` : "Step" }), output = make("output");
    const lane = make("div", { class: "lane lane-" + run.css }, two ? make("span", { class: "tag tag-" + run.css }, run.letter) : make("span"), make("div", { class: "track" }, strip, input), output);
    input.addEventListener("input", () => { stop(); go(run, Number(input.value)); });
    state.painters.push(() => {
      input.max = run.span;
      input.value = run.k;
      if (!run.steps.length) { output.textContent = run.waiting || "waiting"; return; }
      const { step, t, noise } = level(run);
      input.setAttribute("aria-valuetext", told(run));
      output.replaceChildren(make("b", {}, atEnd(run) ? (run.picture ? "the picture" : "the end") : `step ${step}`), make("br"),
        atEnd(run) ? (rising(run) ? "" : "no noise left") : `t = ${t}` + (noise === null ? "" : ` · ${percent(noise)} noise`));
    });
    return { run, strip, lane };
  });
  $("lanes").replaceChildren(...lanes.map((one) => one.lane));
  $("lanes").classList.toggle("two", two);
  $("link").hidden = !two;
}
export function strips() {  // thumbnails along the scrubber, of the steps that there are
  for (const { run, strip } of lanes) {
    const name = run.values.x0 ? "x0" : run.values.x ? "x" : null;
    if (!name || !strip.clientWidth) continue;
    const tile = document.createElement("canvas"), h = strip.clientHeight, context = strip.getContext("2d"), kept = state.channel;
    strip.width = strip.clientWidth; strip.height = h;
    context.imageSmoothingEnabled = false;
    const wide = h * run.size[2] / run.size[1], many = Math.max(1, Math.ceil(strip.width / wide));
    state.channel = null;
    for (let i = 0; i < many; i++) {
      const k = Math.round(i / Math.max(1, many - 1) * run.span);
      if (k > run.last) break;
      draw(tile, run, name, k);
      context.drawImage(tile, i * strip.width / many, 0, strip.width / many + 1, h);
    }
    state.channel = kept;
  }
}
export function go(run, k, alone) {
  run.k = Math.max(0, Math.min(run.last, k));
  run.follow = !run.ended && run.k === run.last;
  state.touched = true;
  if (state.runs.length > 1 && state.linked && !alone) for (const other of state.runs) if (other !== run && other.steps.length) {  // to the same noise level
    if (atEnd(run)) other.k = other.last;
    else {
      const t = level(run).t;
      other.k = other.steps.reduce((best, one, i) => (Math.abs(one.t - t) < Math.abs(other.steps[best].t - t) ? i : best), 0);
    }
  }
  paint();
}
let timer = null;
const marks = { play: "M5 2.5v15l12-7.5z", pause: "M4.5 3h4v14h-4zM11.5 3h4v14h-4z" };
export function stop() {
  if (timer !== null) clearInterval(timer);
  timer = null; state.playing = false; shown();
}
function shown() {
  $("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
  $("play").querySelector("path").setAttribute("d", state.playing ? marks.pause : marks.play);
  $("start").textContent = state.playing ? "Pause" : "Play the run";
}
function play() {
  if (state.playing) return stop();
  const { runs } = state;
  state.playing = true; shown();
  if (runs.every((run) => run.k >= run.last)) { for (const run of runs) run.k = 0; state.touched = true; paint(); }
  timer = setInterval(() => {
    const lead = runs[0];
    if (runs.length > 1 && !state.linked) runs.forEach((run) => go(run, run.k + 1, true));
    else if (lead.k < lead.last) go(lead, lead.k + 1);
    if (runs.every((run) => run.k >= run.last) || (state.linked && lead.k >= lead.last)) stop();
  }, still.matches ? 600 : Math.max(90, Math.min(400, 6000 / (runs[0].last + 1))));
}
export function listen() {  // to the buttons of this page
  $("play").addEventListener("click", play);
  $("start").addEventListener("click", () => { if (!state.playing && !state.touched) { for (const run of state.runs) run.k = 0; state.touched = true; paint(); } play(); });
  $("link").addEventListener("click", () => {
    state.linked = !state.linked;
    $("link").setAttribute("aria-pressed", String(state.linked));
    $("link").firstElementChild.textContent = state.linked ? "Linked" : "Free";
    if (state.linked) go(state.runs[0], state.runs[0].k);
  });
}
export function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || !state.runs.length) return;
  const on = event.target.closest ? event.target.closest("button, summary, a, input, textarea, select") : null;
  if (event.key === " " && (!on || on.type === "range")) { event.preventDefault(); play(); return; }
  if (on && (on.type === "range" || on.matches("input, textarea, select"))) return;
  const run = state.runs[0], to = { ArrowLeft: run.k - 1, ArrowRight: run.k + 1, Home: 0, End: run.last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  stop();
  go(run, to);
}
