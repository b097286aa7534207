// The page of a report: the runs that it holds, all there.
import { $ } from "./values.js";
import { Run, recorded } from "./run.js";
import { show } from "./viewer.js";

const data = JSON.parse($("data").textContent);
const runs = data.runs.map((told, index) => {
  const [begin, ...events] = recorded(told), run = new Run(index, begin);
  for (const event of events) run.take(event);
  run.k = Math.min(Math.round(run.steps.length * .3), run.last);
  return run;
});
show(runs, data.apart);
document.body.dataset.ready = "yes";
