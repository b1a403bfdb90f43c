// Training points that look wrong: kept, dropped or given another class, and networks retrained so.

import { ask, at, download, make, number, quoted, send } from "./dom.js";

const EACH = 24;
let overview, found = null, ranking = "", shown = EACH;
const changes = new Map(); // of a training point: "" where it is dropped, or its new class

export function begin(told) {
  overview = told;
  at("quality").addEventListener("toggle", () => { if (at("quality").open && !found) look(); });
}

async function look() {
  at("suspects").replaceChildren(make("p", { className: "busy", role: "status" }, "Looking: networks are trained on parts of the data…"));
  try {
    found = await ask("suspects");
    [ranking] = Object.keys(found.rankings);
    draw();
  } catch (error) {
    at("suspects").replaceChildren(make("p", { className: "error" }, error.message));
  }
}

function draw() {
  const which = make("select", { onchange: (event) => { ranking = event.target.value; shown = EACH; draw(); } },
    ...Object.keys(found.rankings).map((name) => make("option", { value: name, selected: name === ranking }, name)));
  const order = found.rankings[ranking];
  at("suspects").replaceChildren(
    make("p", { className: "soft" }, "Worst first. What you say here changes no file: download it, and see what networks say that are trained so."),
    make("label", {}, "Ranking ", which),
    make("div", { className: "cards" }, ...order.slice(0, shown).map(([place, score]) => suspect(place, score))),
    order.length > shown ? make("button", { type: "button", onclick: () => { shown += EACH; draw(); } }, "Show more") : "",
    make("p", { role: "status", id: "said-so" }, summary()),
    make("button", { type: "button", className: "main", id: "try", disabled: !changes.size, onclick: retrain }, "Retrain on the cleaned data"), " ",
    make("button", { type: "button", id: "keep", disabled: !changes.size, onclick: save }, "Download the changes as CSV"),
    make("div", { id: "cleaned", ariaLive: "polite" }));
}

function summary() {
  const dropped = [...changes.values()].filter((to) => to === "").length;
  return `${dropped} dropped, ${changes.size - dropped} given another class.`;
}

function suspect(place, score) {
  const label = found.labels[place];
  const card = make("div", { className: "card" });
  const mark = () => card.classList.toggle("changed", changes.has(place));
  const choice = make("select", { ariaLabel: `what to do with training point ${place}`, onchange: (event) => {
    const value = event.target.value;
    if (value === "keep") changes.delete(place);
    else changes.set(place, value === "drop" ? "" : value.slice(1));
    mark();
    at("said-so").textContent = summary();
    for (const id of ["try", "keep"]) at(id).disabled = !changes.size;
  } },
  make("option", { value: "keep" }, "keep"), make("option", { value: "drop" }, "drop"),
  ...found.classes.filter((name) => name !== label).map((name) => make("option", { value: `=${name}` }, `is ${name}`)));
  const now = changes.get(place);
  if (now !== undefined) choice.value = now === "" ? "drop" : `=${now}`;
  const text = make("div", {}, make("b", {}, label ?? `point ${place}`), make("small", { className: "soft" }, ` point ${place}, ${number(score)}`), make("br"), choice);
  if (overview.kind === "images") {
    card.append(make("img", { className: "small", src: `/api/picture/train/${place}`, alt: `training point ${place}`, loading: "lazy" }));
  } else {
    const words = make("pre", { className: "words", tabIndex: 0 }, "…");
    ask(`words/train/${place}`).then((lines) => { words.textContent = lines.join("\n").slice(0, 300); }).catch(() => {});
    text.append(words);
  }
  card.append(text);
  mark();
  return card;
}

async function retrain() {
  at("cleaned").replaceChildren(make("p", { className: "busy" }, "retraining…"));
  const drop = [], labels = {};
  for (const [place, to] of changes) {
    if (to === "") drop.push(place);
    else labels[place] = to;
  }
  try {
    const told = await send("cleaned", { drop, labels });
    const shownAs = told.measure === "accuracy" ? (value) => `${(100 * value).toFixed(1)} %` : number;
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    at("cleaned").replaceChildren(make("p", {}, `The ${told.measure} on ${told.queries.toLocaleString("en")} queries that judged nothing here: `,
      make("b", {}, `${shownAs(mean(told.before))} as it is, ${shownAs(mean(told.after))} on the cleaned data`),
      ` (seed by seed ${told.before.map((value, seed) => `${shownAs(value)} → ${shownAs(told.after[seed])}`).join(", ")}).`));
  } catch (error) {
    at("cleaned").replaceChildren(make("p", { className: "error" }, error.message));
  }
}

function save() {
  const lines = [...changes].map(([place, to]) => [place, found.ids[place], found.labels[place], to === "" ? "drop" : "relabel", to].map(quoted).join(","));
  download("changes.csv", ["point,row_of_the_source,label,what,new_label", ...lines].join("\n") + "\n");
}
