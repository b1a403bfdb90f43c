// The groups that raise and lower a query, with examples, to take away, count double or put back.

import { ask, at, make, number, percent, redraw } from "./dom.js";
import { read, weigh } from "./state.js";

const EACH = 6, FOUND = 30, LETTERS = 200;
let overview, effects = null, of = -1, asked = 0;
const members = new Map(); // of a group and a query: what was answered

export function begin(told) {
  overview = told;
  const kinds = [...new Set(overview.groups.kind ?? [])].sort();
  at("kind").append(make("option", { value: "" }, "choose"), ...kinds.map((each) => make("option", { value: each }, each)));
  at("kind").parentElement.hidden = kinds.length < 2;
  at("kind").addEventListener("change", () => {
    const wanted = at("kind").value;
    at("kind").value = "";
    weigh([...overview.groups.kind.keys()].filter((k) => overview.groups.kind[k] === wanted), 0);
  });
  const level = overview.level ? `, and where ${percent(overview.level)} of retrainings lie` : "";
  at("meaning").textContent = `The number: ${overview.objective} with the group minus without it${level}.`;
  at("find").addEventListener("input", () => draw(read()));
}

export async function update(state) {
  if (of !== state.query) {
    const turn = ++asked;
    const found = await ask(`effects/${state.query}`);
    if (turn !== asked) return; // another query was chosen meanwhile
    effects = found;
    of = state.query;
  }
  draw(read());
}

// Positive where having the group makes the answer better; where nobody knows, where it raises it.
const good = (k) => (overview.lower_is_better && !overview.neither ? -1 : 1) * effects.scores[k];

function draw(state) {
  if (!effects) return;
  at("sides").dataset.query = of;
  const places = [...effects.scores.keys()];
  const wanted = at("find").value.trim().toLowerCase();
  if (wanted) {
    const found = places.filter((k) => overview.groups.name[k].toLowerCase().includes(wanted));
    const order = found.sort((a, b) => Math.abs(good(b)) - Math.abs(good(a))).slice(0, FOUND);
    redraw(at("sides"), side(`${found.length} found`, order, state));
    return;
  }
  const words = overview.neither ? ["raise", "lower"] : ["help", "harm"];
  const ranked = places.sort((a, b) => good(b) - good(a));
  redraw(
    at("sides"),
    side(`These ${words[1]} this answer most`, ranked.slice(-EACH).reverse().filter((k) => good(k) < 0), state),
    side(`These ${words[0]} it most`, ranked.slice(0, EACH).filter((k) => good(k) > 0), state),
  );
}

function side(title, order, state) {
  const none = order.length ? null : make("p", { className: "soft" }, "none");
  return make("div", {}, make("h3", {}, title), ...order.map((k) => group(k, state)), none);
}

function group(k, state) {
  const weight = state.weights[k] ?? 1;
  const name = overview.groups.name[k];
  const wide = effects.half_widths?.[k];
  const effect = number(effects.scores[k], true) + (wide === undefined ? "" : ` ± ${number(wide)}`);
  const toggle = (text, to) => {
    const pressed = weight === to;
    const button = make("button", { type: "button", onclick: () => weigh([k], pressed ? 1 : to), "data-key": `${k}:${to}` }, text);
    button.setAttribute("aria-pressed", pressed);
    button.setAttribute("aria-label", `${text}: ${name}`);
    return button;
  };
  const strip = make("div", { className: "strip" });
  examples(k, state.query, strip);
  const size = overview.groups.size[k].toLocaleString("en");
  const kind = overview.groups.kind?.[k];
  return make("div", { className: `group${weight === 1 ? "" : " gone"}` },
    make("div", { className: "head" },
      make("span", {}, make("b", {}, name), make("span", { className: "soft" }, ` ${kind && !name.startsWith(kind) ? `of ${kind}, ` : ""}${size} points`)),
      make("span", { className: `effect ${good(k) < 0 ? "harm" : "help"}`, title: `${overview.objective} with it minus without it` }, effect),
      make("span", {}, toggle("Take away", 0), " ", toggle("Count double", 2))),
    strip);
}

async function examples(k, query, strip) {
  const key = `${k} ${query}`, documents = overview.kind === "language";
  if (!members.has(key)) members.set(key, ask(`${documents ? "passages" : "members"}/${k}?query=${query}`));
  const words = (text) => strip.append(make("pre", { className: "words", tabIndex: 0 }, text.slice(0, LETTERS)));
  try {
    if (documents) {
      (await members.get(key)).forEach(words);
      return;
    }
    const images = overview.kind === "images";
    for (const place of (await members.get(key)).slice(0, images ? 8 : 2)) {
      if (images) {
        strip.append(make("img", { className: "small", src: `/api/picture/train/${place}`, alt: `training point ${place}`, title: `training point ${place}`, loading: "lazy" }));
      } else {
        words((await ask(`words/train/${place}`)).join("\n"));
      }
    }
  } catch {
    members.delete(key); // it is asked again when it is drawn again
  }
}
