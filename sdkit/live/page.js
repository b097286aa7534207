// The live page: forms that ask the server, and the viewer that takes what it tells.
import { $, make, percent } from "/web/values.js";
import { Run, recorded } from "/web/run.js";
import { show, update } from "/web/viewer.js";
import { about, base64, call, wish } from "/web/calls.js";
import { Cells, Sheet } from "/web/paint.js";

const NUMBERS = ["seed", "num_inference_steps", "guidance_scale", "frames", "strength"];
const FILES = [["picture.png", "Picture"], ["trace.safetensors", "Trace"], ["report.html", "Report"], ["film.gif", "Film"]];
const now = { runs: [], ids: [], leaving: null, known: null, last: null };
const cells = new Cells($("paint"), $("brushes"));
const sheet = new Sheet($("pad"), $("mask"), () => later(preview));

// --- saying ----------------------------------------------------------------------------------------------------
function say(text) { $("said").textContent = text; $("said").hidden = !text; }
function values(form) {  // of a form or a fieldset, those that say something
  const given = {};
  for (const one of form.querySelectorAll("input[name], select[name]")) if (one.type !== "file" && one.value !== "") given[one.name] = NUMBERS.includes(one.name) ? Number(one.value) : one.value;
  return given;
}
function unknown(field) {
  const words = now.known === null ? [] : field.value.toLowerCase().split(/\s+/).map((word) => word.replace(/[^\p{L}\p{N}]/gu, "")).filter((word) => word && !now.known.has(word));
  const box = field.closest("form, fieldset").querySelector(".unknown");
  box.textContent = words.length ? `The model has never read ${[...new Set(words)].map((word) => `“${word}”`).join(", ")}; it will draw something else.` : "";
}
function busy(on) {
  for (const one of document.querySelectorAll(".wish")) one.hidden = !on;
  for (const one of document.querySelectorAll("form .solid")) one.disabled = on;
}
let timer = null;
const later = (what) => { clearTimeout(timer); timer = setTimeout(what, 250); };

// --- runs ------------------------------------------------------------------------------------------------------
/** Ask for a run, or for two that advance together, and show what comes as it forms, by itself or beside another. */
async function follow(name, given, beside = null) {
  now.leaving?.abort();
  const { signal } = (now.leaving = new AbortController()), runs = beside ? [beside] : [], first = runs.length;
  now.ids = [];
  say(""); busy(true);
  const others = setTimeout(() => say("Others are before you; it begins as soon as the model is free."), 1500);
  try {
    await call(name, given, (message) => {
      const at = first + (message.side || 0);
      if (message.kind === "queued") { now.ids.push(message.run); clearTimeout(others); say(""); }
      else if (message.kind === "begin") {
        if (beside) Object.assign(beside, { index: 0, letter: "A", css: "a", follow: false });
        runs[at] = new Run(at, message);
      } else take(runs, runs[at], message, first + now.ids.length);
    }, signal);
  } catch (error) {
    if (!signal.aborted) say(error.message);
  }
  clearTimeout(others);
  busy(false);
}
function take(runs, run, message, many) {
  run.take(message);
  if (message.kind === "end") run.paused = message.paused;
  if (runs.filter((one) => one.steps.length).length < many) return;  // the other one has not begun
  if (now.runs !== runs) mount(runs);
  else {
    if (message.kind === "end") heroes();
    update(run, message);
  }
  if (runs.every((one) => one.ended)) ended();
}
function mount(runs) {
  if (!now.runs.length) $("knows").open = false;  // the run is to be seen without scrolling
  now.runs = runs;
  $("viewer").hidden = false;
  const beside = [$("take"), $("steer")];  // below the pictures, above the chapters
  $("viewer").replaceChildren($("a-viewer").content.cloneNode(true));
  document.querySelector("#viewer header").after(...beside);
  document.body.classList.add("running");
  for (const one of beside) one.hidden = true;
  heroes();
  show(runs);
}
function heroes() {
  const two = now.runs.length > 1;
  document.querySelector(".heroes").replaceChildren(...now.runs.map((run, index) => {
    const facts = make("dl", { class: "facts" }, ...run.facts.map(([key, value]) => make("div", {}, make("dt", {}, key), make("dd", {}, value))));
    const name = run.prompt || (run.process === "forward" ? "A picture drowns in noise" : "A picture without words"), tag = two ? [make("span", { class: "tag tag-" + run.css }, run.letter), " "] : [];
    const frame = make("div", { class: "hero-frame", "data-hero": index }, ...(run.picture || run.input ? [make("img", { src: run.picture || run.input, alt: "The picture: " + name })] : []));
    if (!frame.children.length) frame.style.aspectRatio = `${run.size[2]} / ${run.size[1]}`;
    return make("div", { class: "hero-run" }, frame, make("div", { class: "hero-words" }, make("h2", { class: name.length > 70 ? "prompt long" : "prompt" }, ...tag, name), facts));
  }));
}
function ended() {  // what can be done with it now
  const run = now.runs[now.runs.length - 1];
  now.last = run.picture || now.last;
  $("pad-last").disabled = $("inspect-last").disabled = !now.last;
  $("take").replaceChildren(...now.runs.map((one) => make("span", {}, now.runs.length > 1 ? `Take away ${one.letter}: ` : "Take away: ",
    ...FILES.filter(([file]) => file !== "picture.png" || one.picture).flatMap(([file, name]) => [make("a", { href: `/runs/${one.run}/${file}`, download: file }, name), " "]))));
  $("take").hidden = false;
  if (!run.values.x0) return;
  $("steer").hidden = false;
  $("form-steer").elements.prompt.value = run.prompt;
  $("form-steer").elements.guidance_scale.value = run.guidance ?? 1;
  cells.begin(run);
}
addEventListener("paint", () => { if (!$("steer").hidden) cells.show(); });

// --- forms -----------------------------------------------------------------------------------------------------
$("form-text").addEventListener("submit", (event) => { event.preventDefault(); follow("text_to_image", values(event.target)); });
$("form-image").addEventListener("submit", (event) => { event.preventDefault(); follow("image_to_image", { ...sheet.given(), ...values(event.target) }); });
$("form-compare").addEventListener("submit", (event) => {
  event.preventDefault();
  const [a, b] = [...event.target.querySelectorAll("[data-side]")].map(values);
  follow("compare", { a: { prompt: "", ...a }, b: { prompt: "", ...b } });
});
$("form-steer").addEventListener("submit", (event) => {
  event.preventDefault();
  const run = now.runs[now.runs.length - 1], asked = values(event.target), given = { run: run.run };
  if ((asked.prompt || "") !== run.prompt) given.prompt = asked.prompt || "";
  if (asked.guidance_scale !== (run.guidance ?? 1)) given.guidance_scale = asked.guidance_scale;
  for (const [name, value] of Object.entries(cells.given())) if (value) given[name] = value;
  const same = run.paused && Object.keys(given).length === 1;  // what was paused and goes on as it was stays the same run
  given.step = run.steps[Math.min(run.k, run.steps.length - 1)].step + (same && run.k === run.last ? 1 : 0);
  if (event.submitter.name === "one") given.steps = 1;
  const others = now.runs.slice(0, -1);
  follow("go_on", given, same ? others[0] : run);
});
$("form-film").addEventListener("submit", async (event) => {
  event.preventDefault();
  say(""); busy(true);
  $("frames").replaceChildren();
  now.leaving = new AbortController();
  try {
    await call("interpolate", values(event.target), ({ kind, picture, film }) => {
      $("frames").append(kind === "frame" ? make("img", { src: picture, alt: "A frame on the way" }) : make("img", { class: "moving", src: film, alt: "The film from the one to the other" }));
      if (kind === "film") $("frames").append(make("a", { href: film, download: "film.gif" }, "Take the film away"));
    }, now.leaving.signal);
  } catch (error) { say(error.message); }
  busy(false);
});
$("form-inspect").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [file] = event.target.elements.image.files;
  if (!file) { say("choose a picture first"); return; }
  inspect(await base64(file));
});
$("inspect-last").addEventListener("click", () => inspect(now.last));
async function inspect(image) {
  say(""); busy(true);
  try {
    await call("inspect", { image }, (message) => {
      if (message.kind === "recorded") look(message);
      else $("round-trip").replaceChildren(make("div", { class: "trip" }, ...message.pictures.map(([title, src]) => make("figure", { class: "plate" }, make("img", { src, alt: title }), make("figcaption", {}, title)))), make("pre", {}, message.text));
    });
  } catch (error) { say(error.message); }
  busy(false);
}
function look({ run: name, told }) {  // at a run that is all there
  const [begin, ...events] = recorded(told), run = new Run(0, { ...begin, run: name });
  for (const event of events) run.take(event);
  run.k = Math.round(run.steps.length * .3);
  mount([run]);
  ended();
  if (told.process === "forward") $("steer").hidden = true;
}
for (const button of document.querySelectorAll(".wish")) button.addEventListener("click", () => { for (const id of now.ids) wish(id, button.dataset.wish); });
for (const field of document.querySelectorAll("input[name=prompt]")) field.addEventListener("input", () => unknown(field));

// --- the sheet -------------------------------------------------------------------------------------------------
async function preview() {  // the picture as image to image would begin with it
  if ($("form-image").hidden) return;
  const { strength, num_inference_steps, scheduler, seed = 0, model } = values($("form-image"));
  try {
    await call("noised", { image: sheet.given().image, strength, num_inference_steps, scheduler, seed, model }, ({ picture, noise, t, steps }) => {
      $("noised").src = picture; $("noised").hidden = false;
      $("noised").alt = "The picture with noise mixed in";
      $("noised-says").textContent = `Here the run begins: ${percent(noise)} noise, t = ${t}, ${steps} ${steps === 1 ? "step" : "steps"} to go.`;
    });
  } catch (error) { $("noised-says").textContent = error.message; }
}
$("form-image").addEventListener("input", (event) => { if (event.target.name !== "prompt") later(preview); });
const strength = $("form-image").elements.strength, shown = () => { strength.parentElement.querySelector("output").textContent = strength.value; };
strength.addEventListener("input", shown); shown();
$("pad-file").addEventListener("change", async ({ target }) => {
  if (!target.files.length) return;
  try { await sheet.load(await base64(target.files[0])); say(""); } catch { say("this file is no picture that the page can open"); }
});
$("pad-last").addEventListener("click", () => sheet.load(now.last));
$("pad-clear").addEventListener("click", () => sheet.clear());
$("pad-colour").addEventListener("input", ({ target }) => { sheet.colour = target.value; });
$("pad-mask").addEventListener("click", ({ target }) => { sheet.masking = !sheet.masking; target.setAttribute("aria-pressed", String(sheet.masking)); });

// --- opening a file again --------------------------------------------------------------------------------------
async function restore(file) {
  if (!file) return;
  const runs = [];
  let found = null;
  now.ids = []; say(""); busy(true);
  try {
    await call("restore", { file: await base64(file) }, (message) => {
      if (message.kind === "settings") fill((found = message));
      else if (message.kind === "recorded") { look(message); if (found.settings.image && message.told.input) sheet.load(message.told.input); }
      else if (message.kind === "queued") now.ids.push(message.run);
      else if (message.kind === "begin") runs.push(new Run(0, message));
      else take(runs, runs[0], message, 1);
    });
  } catch (error) {
    const { image, mask_image } = found?.settings || {}, mask = mask_image ? ", brush its mask again," : "";
    say(image ? `The settings are here again, but the picture that it was made from is not in the file: open that one on the sheet${mask} and draw.` : error.message);
  }
  busy(false);
}
/** The settings of a run in the form that made it. */
function fill({ settings, model, scheduler, method }) {
  const form = settings.image ? $("form-image") : $("form-text"), [seed] = [settings.seed].flat();
  for (const [name, value] of Object.entries({ ...settings, seed, model, scheduler, method })) if (form.elements[name]) form.elements[name].value = value ?? "";
  pick($(form.getAttribute("aria-labelledby")));
  shown(); unknown(form.elements.prompt);
}
$("restore").addEventListener("change", ({ target }) => restore(target.files[0]));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); restore(event.dataTransfer.files[0]); });

// --- tabs ------------------------------------------------------------------------------------------------------
const tabs = [...document.querySelectorAll("[role=tab]")];
function pick(tab) {
  for (const one of tabs) {
    const on = one === tab;
    one.setAttribute("aria-selected", String(on));
    one.tabIndex = on ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !on;
  }
  if (tab.id === "tab-image") preview();
}
for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => pick(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: i - 1, ArrowRight: i + 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault(); event.stopPropagation();
    const other = tabs[(to + tabs.length) % tabs.length];
    pick(other); other.focus();
  });
}

// --- to begin with ---------------------------------------------------------------------------------------------
for (const box of document.querySelectorAll("[data-settings]")) box.replaceChildren($("settings").content.cloneNode(true));
async function know(model) {
  const said = await about(model);
  now.known = said.vocabulary.length ? new Set(said.vocabulary) : null;
  for (const select of document.querySelectorAll("select[name=scheduler]")) if (select.length < 2) select.append(...said.schedulers.map((one) => make("option", {}, one)));
  for (const select of document.querySelectorAll("select[name=method]")) if (select.length < 2) select.append(...said.methods.map((one) => make("option", {}, one)));
  for (const select of document.querySelectorAll("select[name=model]")) {
    if (!select.length) select.append(...said.models.map((one) => make("option", {}, one)));
    select.parentElement.hidden = said.models.length < 2;
  }
  for (const name of ["num_inference_steps", "guidance_scale"]) for (const field of document.querySelectorAll(`[data-settings] [name=${name}]`)) field.placeholder = said[name];
  sheet.size(said.size);
  $("knows").hidden = !now.known;
  $("knows").lastElementChild.textContent = now.known ? `A small world, and these words: ${said.vocabulary.join(", ")}.` : "";
  for (const field of document.querySelectorAll("input[name=prompt]")) if (field.value) unknown(field);
}
for (const select of document.querySelectorAll("select[name=model]")) select.addEventListener("change", () => know(select.value).catch((error) => say(error.message)));
know("").then(() => { document.body.dataset.ready = "yes"; }, (error) => say(error.message));
