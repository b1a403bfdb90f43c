// What is looked at and what is taken away. It lives in the address's fragment, so that it can be
// sent, and the browser's back button undoes.

const LISTENERS = [];
const BEFORE = []; // the weights that were replaced here, the latest last

export function read() {
  const told = new URLSearchParams(location.hash.slice(1));
  const weights = {};
  for (const part of (told.get("w") ?? "").split(",").filter(Boolean)) {
    const [group, weight] = part.split(":").map(Number);
    if (Number.isInteger(group) && group >= 0 && Number.isFinite(weight) && weight >= 0) weights[group] = weight;
  }
  const query = Number(told.get("q") ?? 0);
  return {
    query: Number.isInteger(query) && query >= 0 ? query : 0,
    weights,
    filter: told.get("f") ?? "",
    class: told.get("c") ?? "",
    sort: told.get("s") ?? "",
    search: told.get("t") ?? "",
  };
}

function written(state) {
  const told = new URLSearchParams();
  if (state.query) told.set("q", state.query);
  const weights = Object.entries(state.weights).map((pair) => pair.join(":"));
  if (weights.length) told.set("w", weights.join(","));
  for (const [name, key] of [["filter", "f"], ["class", "c"], ["sort", "s"], ["search", "t"]]) {
    if (state[name]) told.set(key, state[name]);
  }
  return `#${told}`;
}

// Typing replaces what is there, a click can be undone.
export function change(part, undoable = true) {
  const before = read();
  const hash = written({ ...before, ...part });
  if (hash === written(before)) return;
  history[undoable ? "pushState" : "replaceState"](null, "", hash);
  tell(before);
}

export function weigh(groups, weight) {
  const weights = { ...read().weights };
  for (const group of groups) {
    if (weight === 1) delete weights[group];
    else weights[group] = weight;
  }
  replace(weights);
}

export function replace(weights) {
  BEFORE.push(read().weights);
  change({ weights });
}

export const undoable = () => BEFORE.length > 0;

export function undo() {
  if (BEFORE.length) change({ weights: BEFORE.pop() });
}

export const listen = (listener) => LISTENERS.push(listener);

function tell(before) {
  const now = read();
  for (const listener of LISTENERS) listener(now, before);
}

let last = null;
export function watch() {
  last = read();
  addEventListener("popstate", () => {
    const before = last;
    last = read();
    tell(before);
  });
  listen((now) => { last = now; });
}
