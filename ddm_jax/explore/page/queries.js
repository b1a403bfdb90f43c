// The list of queries: searched, filtered, sorted, and shown a part at a time.

import { at, make, number, percent } from "./dom.js";
import { change, read } from "./state.js";

const SHOWN = 60;
let overview, order = [], shown = SHOWN;

const SORTS = {
  "": ["their place", (q, place) => place],
  reach: ["how much groups matter", (q, place) => -q.reach[place]],
  sure: ["least sure first", (q, place) => q.confidence[place]],
  low: ["lowest output", (q, place) => q.output[place]],
  high: ["highest output", (q, place) => -q.output[place]],
};

export function begin(told) {
  overview = told;
  const queries = overview.queries;
  const option = (value, text) => make("option", { value }, text);
  at("filter").append(option("", "all"), ...(queries?.wrong ? [option("wrong", "mistakes"), option("right", "right answers")] : []));
  const classes = queries?.wrong ? [...new Set(queries.label)].sort() : [];
  at("class").append(option("", "any"), ...classes.map((name) => option(name, name)));
  for (const [value, [text]] of Object.entries(SORTS)) {
    if (!queries || (value === "sure" && !queries.confidence)) continue;
    at("sort").append(option(value, text));
  }
  for (const id of ["filter", "class"]) at(id).parentElement.hidden = at(id).options.length < 2;
  at("sort").parentElement.hidden = !queries;
  at("search").parentElement.hidden = !queries;
  for (const id of ["filter", "class", "sort"]) at(id).addEventListener("change", () => change({ [id]: at(id).value }));
  at("search").addEventListener("input", () => change({ search: at("search").value }, false));
  at("more").addEventListener("click", () => { shown += 4 * SHOWN; draw(read()); });
  at("list").addEventListener("keydown", move);
}

function fits(state) {
  const queries = overview.queries;
  const wanted = state.search.trim().toLowerCase();
  return (place) => {
    if (!queries) return true;
    if (state.filter === "wrong" && !queries.wrong?.[place]) return false;
    if (state.filter === "right" && queries.wrong?.[place]) return false;
    if (state.class && queries.label?.[place] !== state.class) return false;
    if (!wanted) return true;
    const told = [place, queries.label?.[place], queries.said?.[place], queries.text?.[place]];
    return told.some((each) => each !== undefined && String(each).toLowerCase().includes(wanted));
  };
}

export function update(state, before) {
  const same = before && ["filter", "class", "sort", "search"].every((name) => state[name] === before[name]);
  if (!same) {
    const key = SORTS[state.sort]?.[1] ?? SORTS[""][1];
    const places = Array.from({ length: overview.outputs }, (_, place) => place).filter(fits(state));
    const keys = new Map(places.map((place) => [place, overview.queries ? key(overview.queries, place) : place]));
    order = places.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
    shown = SHOWN;
    for (const id of ["filter", "class", "sort"]) at(id).value = state[id];
    if (at("search").value !== state.search) at("search").value = state.search;
    at("found").textContent = `${order.length.toLocaleString("en")} of ${overview.outputs.toLocaleString("en")}`;
    draw(state);
    return;
  }
  for (const button of at("list").querySelectorAll("button")) {
    button.setAttribute("aria-current", Number(button.dataset.place) === state.query);
  }
}

function draw(state) {
  at("list").replaceChildren(...order.slice(0, shown).map((place) => make("li", {}, line(place, state.query))));
  at("more").hidden = shown >= order.length;
}

function line(place, current) {
  const button = make("button", { type: "button", onclick: () => change({ query: place }) });
  button.dataset.place = place;
  button.setAttribute("aria-current", place === current);
  const queries = overview.queries;
  if (!queries) {
    button.append(`what is explained, ${place}`);
    return button;
  }
  if (overview.kind === "images") {
    button.append(make("img", { className: "small", src: `/api/picture/test/${place}`, alt: "", loading: "lazy" }));
  }
  button.append(make("span", {}, ...titled(overview, place)));
  return button;
}

// What a query is and what the network says, in a few words.
export function titled(overview, place) {
  const queries = overview.queries;
  const named = queries.label ? `${place}: ${queries.label[place]}` : `query ${place}`;
  const parts = [make("span", {}, named)];
  if (queries.wrong?.[place]) parts.push(make("span", { className: "wrong" }, ` taken for ${queries.said[place]}`));
  else if (queries.said && !queries.wrong) parts.push(` said ${queries.said[place]}`);
  const told = [`${overview.objective} ${number(queries.output[place])}`];
  if (queries.confidence) told.unshift(percent(queries.confidence[place]));
  if (queries.text) told.push(queries.text[place].replace(/\s+/g, " ").slice(0, 70));
  parts.push(make("small", {}, told.join(" · ")));
  return parts;
}

function move(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...at("list").querySelectorAll("button")];
  const next = buttons[buttons.indexOf(document.activeElement) + step];
  if (next) { next.focus(); next.click(); }
}
