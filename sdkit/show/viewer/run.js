// A run as the viewer knows it: it grows by events, wherever they come from. `recorded` makes them of a finished run.
//
// begin: what is known before the first step: prompt, process, facts, prediction, guidance, tokens, text, size, colours,
//        input, encoded, words (of the heat), steps (how many there will be)
// step:  level {step, t, noise, snr, alpha, sigma}; values {x, x0, cond, uncond, guided: packed, one of each}; heat
//        (base64: a byte for each word and place); heat_shape; sharp {x, x0: URI}
// end:   values {x, x0} of the clean latents, if the run came to them; picture, decoded, path
import { bytes, open, percent } from "./values.js";

const sharp = (src) => {
  const image = Object.assign(new Image(), { src });
  image.decode().then(() => dispatchEvent(new Event("sharp")), () => {});
  return image;
};

export class Run {
  constructor(index, told) {
    Object.assign(this, told, { index, letter: "AB"[index], css: "ab"[index], values: {}, reach: {}, sharp: {}, planned: told.steps || 0 });
    Object.assign(this, { steps: [], heat: null, ends: false, ended: false, picture: null, decoded: null, path: null, k: 0, follow: true });
  }

  get last() { return Math.max(0, this.steps.length - 1 + (this.ends ? 1 : 0)); }
  get span() { return this.ended ? this.last : Math.max(this.last, this.planned); }

  take(event) {
    for (const [name, value] of Object.entries(event.values || {})) this.push(name, value);
    if (event.kind === "step") {
      this.steps.push(event.level);
      if (event.heat) {
        this.heat = this.heat || { words: this.words, shape: [0, ...event.heat_shape], rows: [] };
        this.heat.rows.push(typeof event.heat === "string" ? bytes(event.heat) : event.heat);
        this.heat.shape[0] = this.heat.rows.length;
      }
    } else {
      const { picture = null, decoded = null, path = null } = event;
      Object.assign(this, { picture, decoded, path, ended: true, ends: Boolean(event.values && (event.values.x || event.values.x0)) });
    }
    for (const [name, one] of Object.entries(event.sharp || {})) {
      const { image, index = 0, of = 1 } = typeof one === "string" ? { image: sharp(one) } : one;
      (this.sharp[name] ||= []).push({ image, index, of });
    }
    if (this.follow) this.k = this.last;
  }

  push(name, packed) {
    const one = packed.at ? packed : open(packed), plane = one.at(packed.index || 0);
    const values = (this.values[name] ||= { n: 0, c: one.c, h: one.h, w: one.w, thin: one.thin, digits: one.digits, planes: [], spread: one.spread ? [] : null, at(i) { return this.planes[i]; } });
    values.n = values.planes.push(plane);
    const spread = one.spread ? one.spread[packed.index || 0] : 1;
    if (values.spread) values.spread.push(spread);
    this.reach[name] = Math.min(5, plane.reduce((top, value) => Math.max(top, Math.abs(value) / spread), this.reach[name] || 1e-9));
  }
}

export function* recorded(run) {  // the events of a run that is all there
  const kept = Object.entries(run.values).map(([name, packed]) => [name, open(packed)]);
  const sheets = Object.entries(run.sharp).map(([name, src]) => [name, sharp(src)]);
  const at = (i) => ({
    values: Object.fromEntries(kept.filter(([, one]) => i < one.n).map(([name, one]) => [name, { ...one, index: i }])),
    sharp: Object.fromEntries(sheets.map(([name, image]) => [name, { image, index: i, of: kept.find(([key]) => key === name)[1].n }])),
  });
  const heat = run.heat && bytes(run.heat.data), size = heat && run.heat.shape.slice(1).reduce((a, b) => a * b);
  yield { kind: "begin", ...run, steps: run.steps.length, words: run.heat ? run.heat.words : [] };
  for (const [i, level] of run.steps.entries()) {
    const seen = heat && { heat: heat.subarray(i * size, (i + 1) * size), heat_shape: run.heat.shape.slice(1) };
    yield { kind: "step", level, ...at(i), ...seen };
  }
  yield { kind: "end", picture: run.picture, decoded: run.decoded, path: run.path, ...(run.ends ? at(run.steps.length) : {}) };
}

export const level = (run, k = run.k) => run.steps[Math.min(k, run.steps.length - 1)];
export const atEnd = (run, k = run.k) => k >= run.steps.length;
export const rising = (run) => run.steps.length > 1 && run.steps[0].t < run.steps[run.steps.length - 1].t;
export function told(run, k = run.k) {
  if (atEnd(run, k)) return rising(run) ? "the end" : "the end: no noise left";
  const { step, t, noise } = level(run, k);
  return `step ${step}, t = ${t}` + (noise === null ? "" : `, ${percent(noise)} noise`);
}
