// Calls of the server: through Gradio's queue, message by message.

const API = "/gradio_api/call/";

/** Call, and hand each message to `take` as it comes. Leaving the page, or aborting the signal, ends it on the server. */
export async function call(name, given, take, signal) {
  const asked = await fetch(`${API}v2/${name}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(given), signal });
  if (asked.status === 503) throw new Error("So many are waiting that there is no room for one more; try again in a minute.");
  if (!asked.ok) throw new Error(await asked.text());
  const { event_id } = await asked.json();
  const answer = await fetch(`${API}${name}/${event_id}`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", seen = null; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [, kind] = /^event: (.*)$/m.exec(part) || [], [, text] = /^data: (.*)$/m.exec(part) || [];
      if (kind === "error") { const said = JSON.parse(text); throw new Error((said && said.error) || "the server could not do this"); }
      if ((kind !== "generating" && kind !== "complete") || text === seen) continue;  // the last comes twice
      seen = text;
      for (const message of (JSON.parse(text) || [])[0] || []) take(message);
    }
  }
}

export async function about(model = "") {
  const answer = await fetch("/about?model=" + encodeURIComponent(model));
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

export const wish = (run, what) => fetch("/wish", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ run, wish: what }) });

export const base64 = (file) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => failed(new Error("the file could not be read"));
  reader.readAsDataURL(file);
});
