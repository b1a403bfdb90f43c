// The page: it asks what there is, and draws it again whenever the address's fragment changes.

import * as answer from "./answer.js";
import { ask, at, make } from "./dom.js";
import * as groups from "./groups.js";
import * as quality from "./quality.js";
import * as queries from "./queries.js";
import { change, listen, read, watch } from "./state.js";

function trust(overview) {
  const [head, ...rows] = overview.agreement;
  const line = (cell, cells) => make("tr", {}, ...cells.map((text) => make(cell, {}, text)));
  at("reasons").append(
    ...overview.sentences.map((text) => make("p", {}, text)),
    make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: "Agreement with retraining" },
      make("table", {}, make("thead", {}, line("th", head)), make("tbody", {}, ...rows.map((row) => line("td", row))))));
}

function update(now, before) {
  queries.update(now, before);
  answer.update(now, before);
  groups.update(now).catch((error) => at("sides").replaceChildren(make("p", { className: "error" }, error.message)));
}

async function main() {
  let overview;
  try {
    overview = await ask("overview");
  } catch (error) {
    at("about").replaceChildren(make("span", { className: "error" }, error.message));
    return;
  }
  const count = overview.groups.name.length;
  document.title = `${overview.data}: what if?`;
  at("about").textContent = `${overview.data}: ${overview.points.toLocaleString("en")} training points in ${count.toLocaleString("en")} groups. Take groups away, and see what the network would say.`;
  at("skip").addEventListener("click", (event) => { event.preventDefault(); at("answer").focus(); });
  for (const part of [queries, groups, answer, quality]) part.begin(overview);
  trust(overview);
  const state = read();
  if (state.query >= overview.outputs || Object.keys(state.weights).some((k) => k >= count)) {
    history.replaceState(null, "", "#"); // an address of another run
  } else if (!location.hash && overview.queries?.wrong?.includes(true)) {
    change({ query: overview.queries.wrong.indexOf(true) }, false); // a mistake says most
  }
  watch();
  listen(update);
  update(read(), null);
}

main();
