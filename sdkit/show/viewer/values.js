// Numbers: reading what was packed, saying them in words, and the colours that stand for them; and making elements.

export const $ = (id) => document.getElementById(id);

export const make = (name, attributes = {}, ...children) => {
  const svg = ["svg", "path", "line", "circle", "text", "rect", "g"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
export const number = (value, digits = 2) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
export const percent = (share) => share > 0 && share < .005 ? "<1 %" : share < 1 && share > .995 ? ">99 %" : Math.round(share * 100) + " %";

export const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
export function open(packed) {  // -> {n, c, h, w, at(i) -> Float32Array}
  if (!packed) return null;
  const raw = bytes(packed.data).buffer, whole = packed.bits === 16 ? new Int16Array(raw) : new Int8Array(raw);
  const [n, ...rest] = packed.shape, [c, h, w] = rest.length === 3 ? rest : [1, ...rest];
  const size = c * h * w, kept = new Map();
  const at = (i) => {
    if (!kept.has(i)) kept.set(i, Float32Array.from(whole.subarray(i * size, (i + 1) * size), (v) => v * packed.scale[i]));
    return kept.get(i);
  };
  return { n, c, h, w, at, thin: packed.thin || 1, spread: packed.spread, digits: packed.bits === 16 ? 2 : 1 };
}

const ramp = (...stops) => {
  const rgb = stops.map((stop) => [1, 3, 5].map((i) => parseInt(stop.slice(i, i + 2), 16)));
  return (v) => {
    const x = Math.min(Math.max(v, 0), 1) * (rgb.length - 1), i = Math.min(Math.floor(x), rgb.length - 2), f = x - i;
    return rgb[i].map((one, k) => one + (rgb[i + 1][k] - one) * f);
  };
};
export const heatRamp = ramp("#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4");
export const fieldRamp = ramp("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838");
export const signedRamp = ramp("#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b");
