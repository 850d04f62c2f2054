// Try a model: build a query, see the answers, their neighbours and why they are there.

import { ask, make, texts, turn, write } from "/page/texts.js";

const at = (id) => document.getElementById(id);
const state = { model: null, history: [], neighbours: null };
let latest = 0;

const titleOf = (line) => {
  const { item_column: key, item_columns: columns } = state.model;
  const title = columns.map((name) => line[name]).find((value) => typeof value === "string" && value);
  return title ?? String(line[key]);
};

const plain = (value) => {
  if (value === null || value === undefined || value === "") return null;
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : String(value);
};

const detailsOf = (line) => {
  const { item_column: key, item_columns: columns } = state.model;
  const title = titleOf(line);
  return [key, ...columns]
    .map((name) => [name, plain(line[name])])
    .filter(([, value]) => value !== null && value !== title)
    .slice(0, 4)
    .map(([name, value]) => `${name} ${value.length > 60 ? `${value.slice(0, 57)}…` : value}`)
    .join(" · ");
};

function tell(error) {
  at("problem").hidden = error === null;
  at("problem").textContent = error === null ? "" : error.message;
}

// What was asked later wins, whatever comes first.
async function answers() {
  const turnOf = ++latest;
  const query = at("query").value.trim();
  const body = { k: Math.max(1, Number(at("k").value) || 10), columns: true };
  if (query) body.query_id = query;
  if (state.history.length) body.history = state.history.map((line) => line[state.model.item_column]);
  if (at("filter").value.trim()) body.filter = at("filter").value.trim();
  if (at("seen").checked) body.exclude_seen = false;
  if (!at("words").checked) body.words = 0;
  const diversity = Math.min(1, Number(at("diversity").value) || 0);
  if (diversity > 0) body.rules = { diversify: diversity };
  const neighbours = state.neighbours;
  const title = neighbours === null ? texts.answers : texts.neighbours(titleOf(neighbours));
  at("answers").setAttribute("aria-busy", "true");
  if (neighbours === null && body.query_id === undefined && body.history === undefined) {
    tell(null);
    empty(title, neighbours);
    at("basis").textContent = texts.nobody;
    return;
  }
  try {
    const { told, took } =
      neighbours === null ? await ask("/recommend", body) : await ask(similarPath(neighbours, body));
    if (turnOf !== latest) return;
    tell(null);
    empty(title, neighbours);
    show(told, took, body);
  } catch (error) {
    if (turnOf !== latest) return;
    empty(title, neighbours);
    tell(error);
  }
}

function empty(title, neighbours) {
  at("answers").removeAttribute("aria-busy");
  at("answers-title").textContent = title;
  at("back").hidden = neighbours === null;
  at("list").replaceChildren();
  at("took").textContent = "";
  at("basis").textContent = "";
}

function similarPath(line, body) {
  const parameters = new URLSearchParams({
    item_id: line[state.model.item_column], k: body.k, columns: true,
  });
  if (body.filter) parameters.set("filter", body.filter);
  return `/similar?${parameters}`;
}

function show(told, took, body) {
  at("took").textContent = texts.took(took.all.toFixed(0), took.server?.toFixed(1) ?? "?");
  const note = told.basis === "popularity" ? texts.popular : "";
  at("basis").textContent = told.items.length ? note : texts.nothing;
  const scores = told.items.map((item) => item.score);
  const high = Math.max(...scores), low = Math.min(0, ...scores);
  at("list").replaceChildren(
    ...told.items.map((item) => entry(item, (item.score - low) / (high - low || 1), body)),
  );
}

function entry(item, share, body) {
  const line = item.columns, title = titleOf(line);
  const why = make("div", { className: "why", hidden: true });
  const said = (what) => texts.named(what, title);
  const actions = make("div", { className: "actions" });
  actions.append(
    make("button", {
      type: "button", textContent: texts.add, "aria-label": said(texts.add), onclick: () => add(line),
    }),
    make("button", {
      type: "button", textContent: texts.similar, "aria-label": said(texts.similar),
      onclick: () => {
        state.neighbours = line;
        answers();
        at("answers").focus();
      },
    }),
  );
  if (state.neighbours === null) {
    const button = make("button", {
      type: "button", textContent: texts.why, "aria-label": said(texts.why), "aria-expanded": "false",
    });
    button.onclick = () => explain(button, why, item, body);
    actions.append(button);
  }
  const bar = make("meter", {
    min: 0, max: 1, value: share, "aria-label": `${texts.score} ${item.score.toFixed(3)}`,
  });
  return make(
    "li", {},
    make("div", { className: "line" },
      make("div", {},
        make("h3", { textContent: title }),
        make("p", { className: "note", textContent: detailsOf(line) })),
      make("div", { className: "score" }, bar, make("span", { textContent: item.score.toFixed(3) }))),
    actions, why,
  );
}

async function explain(button, place, item, body) {
  place.hidden = !place.hidden;
  button.setAttribute("aria-expanded", String(!place.hidden));
  if (place.hidden || place.childNodes.length) return;
  try {
    const { query_id, history } = body;
    const { told } = await ask("/explain", { query_id, history, item_id: item.item_id });
    const most = Math.max(...told.parts.map((part) => Math.abs(part.contribution)), 1e-9);
    const titles = new Map(state.history.map((line) => [String(line[state.model.item_column]), titleOf(line)]));
    const named = (part) => (part.side === "history" ? titles.get(part.name) : null) ?? part.name;
    const moves = told.parts.filter((part) => Math.abs(part.contribution) > most / 1000).slice(0, 12);
    const rows = moves.map((part) =>
      make("tr", {},
        make("td", { textContent: texts.sides[part.side] }),
        make("th", { scope: "row", textContent: named(part) }),
        make("td", { className: "number", textContent: part.contribution.toFixed(3) }),
        make("td", {}, make("meter", {
          min: 0, max: 1, value: Math.abs(part.contribution) / most,
          className: part.contribution < 0 ? "against" : "",
          "aria-label": part.contribution.toFixed(3),
        }))));
    place.append(
      make("p", { className: "note", textContent: texts.whyNote }),
      make("table", {}, make("tbody", {}, ...rows)),
    );
  } catch (error) {
    place.append(make("p", { className: "note", textContent: error.message }));
  }
}

function add(line) {
  state.history.push(line);
  state.neighbours = null;
  const isInList = at("list").contains(document.activeElement);
  changed();
  if (isInList) at("answers").focus(); // the button that was pressed goes with its list
}

// What the model knows of a query counts where no history is told.
async function tellKnown() {
  const query = at("query").value.trim(), place = at("history-empty");
  place.textContent = texts.historyEmpty;
  if (!query || state.history.length || !state.model.reads_history) return;
  try {
    const { told } = await ask(`/history?${new URLSearchParams({ query_id: query, limit: 5 })}`);
    if (query !== at("query").value.trim() || !told.items.length) return;
    place.textContent = texts.historyKnown(told.items.map(titleOf).join(" · "));
  } catch { /* the answers say what is wrong */ }
}

function changed() {
  tellKnown();
  const key = state.model.item_column;
  at("history-empty").hidden = state.history.length > 0;
  at("clear").hidden = state.history.length === 0;
  at("history").replaceChildren(
    ...state.history.map((line, place) =>
      make("li", {},
        make("span", { textContent: titleOf(line), title: String(line[key]) }),
        make("button", {
          type: "button", className: "plain", textContent: texts.remove,
          "aria-label": texts.named(texts.remove, titleOf(line)),
          onclick: () => {
            state.history.splice(place, 1);
            changed();
            at("item").focus();
          },
        }))),
  );
  answers();
}

// A field below which what was found stands as buttons; arrows walk among them.
function finder(input, list, find, choose) {
  let turnOf = 0, waiting;
  const close = () => list.replaceChildren();
  const look = async () => {
    const mine = ++turnOf, text = input.value.trim();
    if (!text) return close();
    try {
      const found = await find(text);
      if (mine !== turnOf) return;
      if (!found.length) return list.replaceChildren(make("li", { className: "note", textContent: texts.noMatch }));
      list.replaceChildren(
        ...found.map(([label, value]) =>
          make("li", {}, make("button", {
            type: "button", textContent: label,
            onclick: () => {
              turnOf++;
              close();
              choose(value);
              input.focus();
            },
          }))),
      );
    } catch (error) {
      tell(error);
    }
  };
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(look, 150);
  });
  input.parentElement.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("button")];
    if (event.key === "Escape") { turnOf++; close(); input.focus(); }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !buttons.length || !list.parentElement.contains(event.target)) return;
    if (event.target !== input && !buttons.includes(event.target)) return;
    event.preventDefault();
    const next = buttons.indexOf(event.target) + step;
    (next < 0 ? input : buttons[Math.min(next, buttons.length - 1)]).focus();
  });
}

function later(work) {
  let waiting;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(work, 250);
  };
}

function describe() {
  const model = state.model, number = (n) => n.toLocaleString(document.documentElement.lang);
  write();
  at("name").textContent = model.name;
  document.title = `${model.name} · twotower`;
  at("facts").textContent = texts.facts(number(model.items), number(model.queries), model.dim);
  const columns = [model.item_column, ...model.item_columns].slice(0, 12);
  at("filter-note").textContent = texts.filterNote(model.filter_example, columns.join(", "));
  at("words-field").hidden = !model.words;
  at("history-field").hidden = !model.reads_history;
  if (model.reads_text && !model.reads_history) {
    document.querySelector("label[for=query]").textContent = texts.querySearch;
    at("query-note").textContent = texts.querySearchNote;
  }
  at("k").max = model.max_k;
}

async function start() {
  write();
  try {
    ({ told: state.model } = await ask("/model"));
  } catch (error) {
    tell(error);
    return;
  }
  describe();
  const asked = () => { state.neighbours = null; tellKnown(); answers(); };
  finder(
    at("query"), at("queries"),
    async (text) => (await ask(`/queries?${new URLSearchParams({ text, limit: 8 })}`)).told.query_ids
      .map((id) => [String(id), id]),
    (id) => { at("query").value = id; asked(); },
  );
  finder(
    at("item"), at("items"),
    async (text) => (await ask(`/items?${new URLSearchParams({ text, limit: 8 })}`)).told.items
      .map((line) => [titleOf(line), line]),
    (line) => { at("item").value = ""; add(line); },
  );
  at("query").addEventListener("input", later(asked));
  at("filter").addEventListener("input", later(answers));
  for (const id of ["k", "diversity", "seen", "words"]) at(id).addEventListener("input", later(answers));
  at("clear").onclick = () => { state.history = []; changed(); at("item").focus(); };
  at("back").onclick = () => { asked(); at("answers").focus(); };
  at("language").onclick = () => { turn(); describe(); changed(); };
  changed();
}

start();
