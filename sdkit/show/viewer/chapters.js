// The chapters of the page: what each shows of a run.
import { make, number, open, percent, signedRamp } from "./values.js";
import { level, told } from "./run.js";
import { frame, heatPlate, hoverable, picture, plate, plateOf, plates, state, wordButton } from "./plates.js";
import { bellChart, noiseChart, pathChart } from "./charts.js";

const PADDING = "padding";
/** What each token of the prompt is called: its text, or what it is there for. */
function tokenNames(run) {
  const end = run.tokens.findIndex(([, , word], i) => i > 0 && word === null);
  return run.tokens.map(([, text, word], i) => word !== null ? text : i === 0 ? "begin" : i > end && end > 0 ? PADDING : "end");
}
/** The names beside their rows, as far apart as letters need; padding is named once. */
function rowNames(names, rows) {
  const W = 110, H = 400, svg = make("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, "aria-hidden": "true" });
  let y = -12.5;
  names.forEach((name, i) => {
    if (name === PADDING && names[i - 1] === PADDING) return;
    const row = (i + .5) / rows * H;
    y = Math.max(y + 12.5, row);
    svg.append(make("text", { x: W - 14, y: y + 4, "text-anchor": "end" }, name), make("line", { class: "axis", x1: W - 10, x2: W, y1: y, y2: row }));
  });
  return svg;
}
export const views = {
  forward(run) {
    const kept = run.encoded && open(run.encoded), first = run.values.x;
    const walk = run.process !== "image";
    return plates(walk || !first ? "pair" : "three",
      picture(run.input, "The picture", "to start from", "The picture that the run starts from"),
      kept && plateOf({ ...run, colours: run.colours }, kept, () => kept.at(0), 0, "Its latent", "as the encoder gives it, channel 0"),
      !walk && first && plate(run, "x", "Noised", run.steps[0].noise === null ? "" : `${percent(run.steps[0].noise)} noise: here the run starts`, 0));
  },
  tokens(run) {
    const box = make("div", { class: "bars" }), words = {};
    for (const [, text, word] of run.tokens) if (word !== null) words[word] = (words[word] || "") + text;
    let padding = 0;
    const names = tokenNames(run);
    run.tokens.forEach(([id, text, word], i) => {
      const name = names[i], small = make("small", {}, String(id));
      if (word === null && name === PADDING) { padding++; return; }
      const known = run.heat && word !== null && run.heat.words.find((one) => one.toLowerCase() === words[word].toLowerCase());
      box.append(known ? wordButton(known, name, small) : make("span", { class: "chip" + (word === null ? " dim" : "") }, name, small));
    });
    if (padding) box.append(make("span", { class: "small" }, `and ${padding} times padding`));
    return box;
  },
  embeddings(run) {
    const values = open(run.text), plane = values.at(0), canvas = make("canvas", { role: "img", width: values.w, height: values.h, "aria-label": "Text embeddings: a row for each token" });
    let square = 0;
    for (const one of plane) square += one * one;
    const reach = 2.5 * Math.sqrt(square / plane.length), image = new ImageData(values.w, values.h);
    plane.forEach((one, p) => image.data.set([...signedRamp(one / reach / 2 + .5), 255], p * 4));
    canvas.getContext("2d").putImageData(image, 0, 0);
    canvas.style.aspectRatio = "3 / 2"; canvas.style.height = "auto";
    const step = Math.max(1, Math.floor(run.text.width / 96)), [figure] = frame(canvas, "A row for each token,", `a column for each ${step > 1 ? step + "th " : ""}of ${run.text.width} numbers; blue is negative, red positive`);
    figure.prepend(make("div", { class: "rows" }, rowNames(tokenNames(run), values.h), figure.firstChild));
    hoverable(canvas, () => [values.w, values.h], (row, col) => `${(run.tokens[row] || [0, "token " + row])[1]}, number ${col * step}: ${number(plane[row * values.w + col])}`);
    return figure;
  },
  noise(run) {
    const first = run.values.x;
    const channels = Array.from({ length: first.c }, (_, q) => plateOf(run, { ...first, spread: null }, () => first.at(0).map((v) => v / (first.spread ? first.spread[0] : 1)), q, `Channel ${q}`, ""));
    return make("div", { class: "plates", style: "grid-template-columns:minmax(0,1fr)" }, plates("four", ...channels), make("div", { style: "max-width:27rem;margin-top:.6rem" }, bellChart(run, 0)));
  },
  latent(run) {
    const both = [plate(run, "x", "What it is given,", told)];
    if (run.decoded) both.push(decodedPlate(run));
    else if (run.values.x0) both.push(plate(run, "x0", "What it predicts", "as the picture"));
    return make("div", {}, plates("pair", ...both), make("div", { class: "charts" }, bellChart(run), run.steps[0].noise === null ? "" : noiseChart(run)));
  },
  prediction(run) {
    const { uncond } = run.values;
    return plates("pair", plate(run, "cond", uncond ? "With the words" : "What it says", () => told(run, Math.min(run.k, run.steps.length - 1))), uncond && plate(run, "uncond", "Without words", ""));
  },
  guidance(run) {
    const { cond, uncond } = run.values, at = (v) => v.at(Math.min(run.k, v.n - 1));
    const gap = () => { const a = at(cond), b = at(uncond); return a.map((v, i) => v - b[i]); };
    return plates("pair", plateOf(run, cond, gap, "length", "What the words change", "the length of the difference; yellow is most"), plate(run, "guided", "What is followed", "the guided prediction"));
  },
  believed(run) {
    return plates("pair", plate(run, "x0", "What is predicted", told), run.picture && picture(run.picture, "What comes of it", "at the end of the run", "The finished picture: " + run.prompt));
  },
  attention(run) {
    return make("div", {}, make("div", { class: "bars", role: "group", "aria-label": "Words" }, ...run.heat.words.map((word) => wordButton(word))), plates("one", heatPlate(run)));
  },
  path: (run) => pathChart(run),
  decode(run) {
    const name = run.values.x ? "x" : "x0", values = run.values[name];
    return plates("pair", values && plate(run, name, "The last latent", `${run.size.join(" × ")} numbers`, run.last), picture(run.picture, "The picture", run.facts.filter(([key]) => key === "size").map(([, value]) => value).join(), "The finished picture: " + run.prompt));
  },
};
function decodedPlate(run) {
  const canvas = make("canvas", { role: "img" }), image = new Image(), n = run.steps.length, [figure, extra] = frame(canvas, "Decoded", "");
  canvas.style.imageRendering = "auto";
  image.src = run.decoded;
  const show = () => {
    if (!image.width) return;
    const w = image.width / n;
    canvas.width = w; canvas.height = image.height;
    canvas.getContext("2d").drawImage(image, Math.min(run.k, n - 1) * w, 0, w, image.height, 0, 0, w, image.height);
    canvas.setAttribute("aria-label", "Decoded picture, " + told(run));
  };
  image.decode().then(show, () => {});
  state.painters.push(show);
  extra.textContent = " what the decoder makes of it";
  return figure;
}

