// The query, what is taken away, and what that changes: the estimate, its error bar, and the truth.

import { ask, at, download, drawn, make, number, percent, quoted, redraw, seconds, send } from "./dom.js";
import { titled } from "./queries.js";
import { change, read, replace, undo, undoable, weigh } from "./state.js";

const SOON = 120; // milliseconds without a click before it is asked
const MOST = 5; // other queries that are shown
let overview, timer = 0, waiting = null, last = null, jobs = [], polling = 0, said;

export function begin(told) {
  overview = told;
  ask("retrain").then((found) => { jobs = found; drawJobs(); poll(); }).catch(() => {});
}

export function update(state, before) {
  if (!before || before.query !== state.query) query(state);
  taken(state);
  drawJobs();
  clearTimeout(timer);
  waiting?.abort();
  if (!Object.keys(state.weights).length) {
    last = null;
    at("others").replaceChildren();
    at("change").replaceChildren(make("p", {}, "Take a group away: the answer without it comes at once, and nothing is retrained."));
    return;
  }
  at("change").replaceChildren(...(last ? [...at("change").children] : []), ...busy());
  timer = setTimeout(() => answer(state), SOON);
}

function busy() {
  at("change").querySelector(".busy")?.remove();
  return [make("p", { className: "busy" }, "computing…")];
}

async function query(state) {
  const place = state.query;
  if (!overview.queries) {
    at("query").replaceChildren(make("h2", {}, `What is explained, ${place}`));
    return;
  }
  const shown = overview.kind === "images"
    ? make("img", { className: "large", src: `/api/picture/test/${place}`, alt: `query ${place}` })
    : make("pre", { className: "words", tabIndex: 0 }, "…");
  at("query").replaceChildren(make("h2", {}, "This query"), make("div", { className: "both" }, shown, make("div", {}, ...titled(overview, place))));
  if (overview.kind !== "images") {
    const lines = await ask(`words/test/${place}`);
    shown.textContent = lines.join("\n");
  }
}

function taken(state) {
  const entries = Object.entries(state.weights);
  const chip = ([k, weight]) => make("li", {}, make("button", { type: "button", title: "put back", "data-key": k, onclick: () => weigh([k], 1) },
    `${overview.groups.name[k] ?? `group ${k}`}${weight === 0 ? "" : `, counted ${number(weight)} times`} ×`));
  if (!entries.length) {
    redraw(at("taken"));
    return;
  }
  const gone = entries.filter(([, weight]) => weight === 0);
  const points = gone.reduce((sum, [k]) => sum + overview.groups.size[k], 0);
  redraw(
    at("taken"),
    make("h3", {}, gone.length ? `Taken away: ${points.toLocaleString("en")} of ${overview.points.toLocaleString("en")} training points` : "Counted otherwise"),
    make("ul", { className: "chips" }, ...entries.slice(0, 40).map(chip), entries.length > 40 ? make("li", {}, `and ${entries.length - 40} more`) : null),
    make("button", { type: "button", "data-key": "undo", onclick: undo, disabled: !undoable() }, "Undo"), " ",
    make("button", { type: "button", "data-key": "all", onclick: () => replace({}) }, "Put all back"));
}

async function answer(state) {
  const begun = performance.now();
  waiting = new AbortController();
  const show = setInterval(() => {
    const line = at("change").querySelector(".busy");
    if (line) line.textContent = `computing… ${seconds((performance.now() - begun) / 1000)}`;
  }, 500);
  try {
    const asked = overview.queries ? state.query : null;
    last = { state, ...(await send("what-if", { weights: state.weights, query: asked }, waiting.signal)) };
    draw(state);
  } catch (error) {
    if (error.name !== "AbortError") at("change").replaceChildren(make("p", { className: "error" }, told(error)));
  } finally {
    clearInterval(show);
  }
}

// A server that is gone says nothing at all.
const told = (error) => (error instanceof TypeError ? "The server does not answer. Start `ddm explore` again, and open the address that it prints." : error.message);

function draw(state) {
  const q = state.query;
  const from = last.outputs[q] - last.changes[q], to = last.outputs[q], wide = last.half_widths?.[q];
  const summed = from + last.summed[q];
  const exact = retrained()?.map((seed) => from + seed[q]);
  const parts = [];
  if (last.said && overview.queries?.said) {
    const [[name, sure]] = last.said;
    const right = name === overview.queries.label[q];
    parts.push(make("p", {}, `Without this data it says `, make("b", { className: right ? "help" : "wrong" }, `${name} (${percent(sure)})`),
      ` where it said ${overview.queries.said[q]} (${percent(overview.queries.confidence[q])}).`));
  }
  const bar = wide === undefined ? "" : ` ± ${number(wide)}`;
  parts.push(
    make("p", {}, `The ${overview.objective} goes from ${number(from)} to `, make("b", {}, `${number(to)}${bar}`), "."),
    picture(from, to, wide, summed, exact),
    make("p", { className: "soft" }, key(wide, exact)));
  if (overview.seconds_a_network && !exact) {
    const each = overview.seconds_a_network * overview.seeds;
    parts.push(make("button", { type: "button", className: "main", "data-key": "retrain", onclick: retrain }, `Retrain to be sure (about ${seconds(each)})`), " ");
  }
  parts.push(make("button", { type: "button", "data-key": "save", onclick: save }, "Download as CSV"));
  if (overview.kind === "language") parts.push(prompted(state));
  redraw(at("change"), ...parts);
  others(state);
}

// Of a language model: what it says after a prompt, with the data and without.
function prompted(state) {
  const text = overview.queries?.text?.[state.query] ?? "";
  const prompt = make("input", { type: "text", value: said ?? text.slice(0, Math.ceil(text.length / 2)), size: 40 });
  const found = make("div", { ariaLive: "polite" });
  const shown = (what, words) => [make("h3", {}, what), make("pre", { className: "words", tabIndex: 0 }, words)];
  const go = async (event) => {
    event.preventDefault();
    said = prompt.value;
    found.replaceChildren(make("p", { className: "soft" }, "writing…"));
    try {
      const words = await send("go-on", { weights: state.weights, prompt: said });
      found.replaceChildren(...shown("It said", said + words.before), ...shown("Without this data it says", said + words.without));
    } catch (error) {
      found.replaceChildren(make("p", { className: "error" }, told(error)));
    }
  };
  return make("form", { onsubmit: go }, make("h3", {}, "What does it write?"), make("label", {}, "Go on from ", prompt), " ",
    make("button", { type: "submit" }, "Write"), found);
}

function key(wide, exact) {
  const told = ["Grey: as it is. Blue: without this data, by a few steps of updates."];
  if (wide !== undefined) told.push(`The bar: where ${percent(overview.level)} of single retrainings lie.`);
  told.push("The red line: what adding up single effects says.");
  if (exact) told.push("Rings: retrained, one a seed.");
  return told.join(" ");
}

function picture(from, to, wide = 0, summed, exact = []) {
  const values = [from, to - wide, to + wide, summed, ...exact].filter(Number.isFinite);
  const low = Math.min(...values), high = Math.max(...values), room = (high - low) * 0.08 || 1;
  const x = (value) => 10 + (480 * (value - low + room)) / (high - low + 2 * room);
  const told = `from ${number(from)} to ${number(to)}, give or take ${number(wide)}; single effects add up to ${number(summed)}`;
  const image = drawn("svg", { viewBox: "0 0 500 64", role: "img", "aria-label": told });
  const line = (a, b, y, name) => drawn("line", { x1: x(a), x2: x(b), y1: y, y2: y, class: name });
  image.append(drawn("line", { x1: 10, x2: 490, y1: 32, y2: 32, class: "line" }));
  if (wide) image.append(line(to - wide, to + wide, 32, "bar"));
  image.append(drawn("line", { x1: x(summed), x2: x(summed), y1: 20, y2: 44, class: "sum" }));
  image.append(drawn("circle", { cx: x(from), cy: 32, r: 6, class: "from" }), drawn("circle", { cx: x(to), cy: 32, r: 6, class: "to" }));
  for (const value of exact) image.append(drawn("circle", { cx: x(value), cy: 32, r: 9, class: "exact" }));
  for (const [value, anchor] of [[low, "start"], [high, "end"]]) {
    image.append(drawn("text", { x: x(value), y: 60, "text-anchor": anchor }, number(value)));
  }
  return image;
}

// The queries that this moves most.
function others(state) {
  if (!overview.queries || last.changes.length < 2) return;
  const sure = last.half_widths ? last.changes.filter((each, q) => Math.abs(each) > last.half_widths[q]).length : null;
  const order = [...last.changes.keys()].sort((a, b) => Math.abs(last.changes[b]) - Math.abs(last.changes[a])).slice(0, MOST);
  const row = (q) => make("tr", {},
    make("td", {}, make("button", { type: "button", "data-key": q, onclick: () => change({ query: q }) }, `query ${q}`)),
    make("td", {}, overview.queries.label?.[q] ?? overview.queries.text?.[q]?.slice(0, 40) ?? ""),
    make("td", { className: "number" }, number(last.changes[q], true) + (last.half_widths ? ` ± ${number(last.half_widths[q])}` : "")));
  redraw(
    at("others"),
    make("h2", {}, "All queries"),
    make("p", {}, `The mean ${overview.objective} of ${last.changes.length.toLocaleString("en")} queries changes by ${number(last.mean, true)}.`
      + (sure === null ? "" : ` ${sure.toLocaleString("en")} changes are larger than their error bar.`)),
    make("table", {}, make("caption", { className: "soft" }, "What it moves most"), make("tbody", {}, ...order.map(row))));
}

const named = (weights) => JSON.stringify(Object.entries(weights).map(([k, w]) => [Number(k), Number(w)]).sort((a, b) => a[0] - b[0]));

// What retraining says of just this, [seeds][queries], where somebody did it.
function retrained() {
  const mine = jobs.find((job) => job.answer && named(job.weights) === named(last.state.weights));
  return mine?.answer.retrained ?? last.retrained ?? undefined;
}

async function retrain() {
  try {
    jobs = await send("retrain", { weights: read().weights, query: null });
  } catch (error) {
    at("change").append(make("p", { className: "error" }, told(error)));
  }
  drawJobs();
  poll();
}

function poll() {
  clearTimeout(polling);
  if (!jobs.some((job) => !job.answer && !job.error)) return;
  polling = setTimeout(async () => {
    try {
      jobs = await ask("retrain");
    } catch { /* it is asked again */ }
    drawJobs();
    const now = read();
    if (last && named(now.weights) === named(last.state.weights)) draw(now);
    poll();
  }, 700);
}

function drawJobs() {
  if (!jobs.length) return;
  const line = (job) => {
    const words = Object.entries(job.weights).map(([k, weight]) => overview.groups.name[k] + (weight === 0 ? "" : ` × ${number(weight)}`));
    const how = job.error ?? (job.answer ? "done" : `${job.done} of ${job.of} networks`);
    return make("li", {}, make("button", { type: "button", "data-key": named(job.weights), onclick: () => replace(job.weights) }, words.slice(0, 4).join(", ") + (words.length > 4 ? ` and ${words.length - 4} more` : "")),
      make("span", { className: job.error ? "error" : "soft" }, ` ${how}`));
  };
  redraw(at("jobs"), make("h3", {}, "Retrained exactly"), make("ul", { className: "chips" }, ...jobs.map(line)));
}

function save() {
  const exact = retrained();
  const head = ["query", "before", "without", "half_width", "sum_of_single_effects", ...(exact ?? []).map((_, seed) => `retrained_${seed}`)];
  const lines = last.outputs.map((to, q) => {
    const from = to - last.changes[q];
    return [q, from, to, last.half_widths?.[q], from + last.summed[q], ...(exact ?? []).map((seed) => from + seed[q])].map(quoted).join(",");
  });
  download("what-if.csv", [head.join(","), ...lines].join("\n") + "\n");
}
