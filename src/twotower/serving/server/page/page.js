// Try a model: ask, see the answers, their neighbours, why they are there, and where they stand on a map.

import { ask, asked } from "/page/asking.js";
import { clearFields, featuresTold, fillFields, writeFields } from "/page/fields.js";
import { factsOf, idOf, nameOf, pictureOf, scoreOf, titleOf } from "/page/items.js";
import { finder, later, make, menu } from "/page/parts.js";
import { texts, turn, write } from "/page/texts.js";

const at = (id) => document.getElementById(id);
const state = { model: null, history: [], neighbours: null, shown: null, map: null };
const title = (line) => titleOf(state.model, line);
let latest = 0;

function tell(error) {
  const isFilter = error?.kind === "filter";
  at("problem").hidden = error === null || isFilter;
  at("problem").textContent = error === null || isFilter ? "" : error.message;
  at("filter").setAttribute("aria-invalid", String(isFilter));
  beside(texts.filterSaid, isFilter ? error.message : "");
  if (error !== null && state.shown !== null) at("basis").textContent = texts.kept;
  at("answers").classList.toggle("kept", error !== null && state.shown !== null);
}

// What the server says of the filter stands beside its field.
function beside(lead, said) {
  at("filter-said").hidden = !said;
  at("filter-said").replaceChildren(...(said ? [lead, make("span", { textContent: said })] : []));
}

function question() {
  const query = at("query").value.trim(), { model, history } = state;
  const body = { k: Math.max(1, Number(at("k").value) || 10), columns: true };
  if (query) body.query_id = query;
  if (history.length) body.history = history.map((line) => line[model.item_column]);
  const features = featuresTold();
  if (features) body.features = features;
  if (at("filter").value.trim()) body.filter = at("filter").value.trim();
  if (at("seen").checked) body.exclude_seen = false;
  if (model.words > 0) body.words = at("words").checked ? "auto" : 0;
  if (model.second_stage > 0 && !at("rerank").checked) body.rerank = false;
  const diversity = Math.min(1, Number(at("diversity").value) || 0);
  if (diversity > 0) body.rules = { diversify: diversity };
  return body;
}

function similarTo(line, body) {
  const parameters = { item_id: line[state.model.item_column], k: body.k, columns: true };
  return asked("/similar", body.filter ? { ...parameters, filter: body.filter } : parameters);
}

// The place of each item in retrieval's order, where a second stage has made another.
async function placesBefore(body) {
  const { second_stage: depth, max_k: most } = state.model;
  if (!(depth > 0) || body.rerank === false) return null;
  const k = Math.min(most, Math.max(body.k, depth));
  const { told } = await ask("/recommend", { ...body, k, columns: false, rerank: false, rules: undefined });
  return { depth: k, of: new Map(told.items.map((item, place) => [String(item.item_id), place + 1])) };
}

// What was asked later wins, whatever comes first. An answer stays until there is another.
async function answers() {
  const turnOf = ++latest, body = question(), { neighbours } = state;
  if (neighbours === null && !body.query_id && !body.history && !body.features) {
    tell(null);
    state.shown = null;
    return show();
  }
  at("answers").setAttribute("aria-busy", "true");
  try {
    const both = neighbours === null ? [ask("/recommend", body), placesBefore(body)] : [similarTo(neighbours, body), null];
    const [{ told, took }, before] = await Promise.all(both);
    if (turnOf !== latest) return;
    state.shown = { told, took, body, neighbours, before };
    tell(null);
    show();
  } catch (error) {
    if (turnOf === latest) tell(error);
  } finally {
    if (turnOf === latest) at("answers").removeAttribute("aria-busy");
  }
}

function titleOfAnswers({ body, neighbours }) {
  if (neighbours !== null) return texts.neighbours(title(neighbours));
  if (body.query_id) {
    const { reads_searches: isSearch, query_column: column } = state.model;
    return texts.answersFor(isSearch ? `“${body.query_id}”` : `${column} ${body.query_id}`);
  }
  return body.history ? texts.answersHistory : texts.answersFields;
}

function show() {
  const { shown, model } = state;
  at("known").textContent = "";
  at("back").hidden = shown === null || shown.neighbours === null;
  if (shown === null) {
    at("answers-title").textContent = texts.answers;
    at("basis").textContent = model.reads_searches ? texts.nobodySearch : texts.nobody;
    at("took").textContent = "";
    at("list").replaceChildren();
    return;
  }
  const { told, took, body, neighbours, before } = shown;
  at("answers-title").textContent = titleOfAnswers(shown);
  at("took").textContent = texts.took(took.all.toFixed(0), took.server?.toFixed(1) ?? "?");
  const note = told.basis === "popularity" ? texts.popular : "";
  const notes = told.notes.join("\n");
  beside(texts.notesSaid, body.filter ? notes : "");
  at("basis").textContent = [told.items.length ? note : texts.nothing, body.filter ? "" : notes].filter(Boolean).join("\n");
  const scores = told.items.map((item) => item.score);
  const high = Math.max(...scores), low = Math.min(0, ...scores);
  at("list").replaceChildren(
    ...told.items.map((item) => entry(item, (item.score - low) / (high - low || 1), body, before)));
  if (neighbours === null && body.history) {
    at("known").textContent = texts.named(texts.history, state.history.map(title).join(" · "));
  } else if (neighbours === null) tellKnown(body);
  state.map?.mark(told.items.map((item) => String(item.item_id)));
}

// What the model knows of a query counts where no history is told.
async function tellKnown(body) {
  const { has_histories: knows, reads_history: reads } = state.model;
  if (!body.query_id || !knows || !reads) return;
  try {
    const { told } = await asked("/history", { query_id: body.query_id, limit: 6 });
    if (state.shown?.body !== body || !told.items.length) return;
    const titles = told.items.slice(0, 5).map(title).join(" · ");
    at("known").textContent = texts.known(told.items.length > 5 ? `${titles} ${texts.knownMore}` : titles);
  } catch { /* the answers say what is wrong */ }
}

function placeOf(item, before) {
  if (!before) return null;
  const place = before.of.get(String(item.item_id));
  const textContent = place === undefined ? texts.beyondBefore(before.depth) : texts.placeBefore(place);
  return make("p", { className: "before", textContent });
}

function entry(item, share, body, before) {
  const line = item.columns, { model } = state;
  const why = make("div", { className: "why", hidden: true });
  const acts = [[texts.similar, () => neighboursOf(line)]];
  if (model.reads_history) acts.unshift([texts.add, () => add(line)]);
  if (state.neighbours === null) acts.push([texts.why, () => explain(why, item, body)]);
  acts.push([texts.onMap, async () => (await openMap())?.select(idOf(model, line))]);
  return make("li", {},
    make("div", { className: "line" },
      pictureOf(model, line),
      make("div", { className: "what" }, nameOf(model, line), factsOf(model, line), placeOf(item, before)),
      scoreOf(item, share),
      menu(texts.named(texts.actions, title(line)), acts)),
    why);
}

async function explain(place, item, { query_id, history, features, words }) {
  place.hidden = !place.hidden;
  if (place.hidden || place.childNodes.length) return;
  try {
    const { told } = await ask("/explain", { query_id, history, features, item_id: item.item_id });
    const most = Math.max(...told.parts.map((part) => Math.abs(part.contribution)), 1e-9);
    const titles = new Map(state.history.map((line) => [idOf(state.model, line), title(line)]));
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
      make("p", { className: "note", textContent: words ? texts.whyWords : texts.whyNote }),
      make("table", {}, make("tbody", {}, ...rows)));
  } catch (error) {
    place.append(make("p", { className: "note", textContent: error.message }));
  }
}

function neighboursOf(line) {
  state.neighbours = line;
  answers();
  at("answers").scrollIntoView({ block: "nearest" });
  at("answers").focus({ preventScroll: true });
}

function add(line) {
  state.history.push(line);
  state.neighbours = null;
  writeHistory();
  answers();
  at("answers").focus({ preventScroll: true }); // what was pressed may go with its list
}

function writeHistory() {
  at("history-whole").hidden = !state.history.length;
  at("history").replaceChildren(
    ...state.history.map((line, place) =>
      make("li", {},
        make("span", { textContent: title(line), title: idOf(state.model, line) }),
        make("button", {
          type: "button", className: "plain", textContent: texts.remove,
          "aria-label": texts.named(texts.remove, title(line)),
          onclick: () => {
            state.history.splice(place, 1);
            writeHistory();
            asks();
            at("item").focus();
          },
        }))));
}

function asks() {
  state.neighbours = null;
  return answers();
}

// A known query; where none is known, the nearest thing that the model can answer.
async function another() {
  const { model } = state;
  let drawn;
  try {
    ({ told: drawn } = await ask("/example"));
  } catch (error) {
    return tell(error);
  }
  const { query_id: query, item } = drawn;
  state.history = [];
  state.neighbours = null;
  clearFields();
  at("query").value = query ?? "";
  if (query === null && item !== null) {
    if (model.reads_searches) at("query").value = title(item);
    else if (model.reads_history) state.history = [item];
    else if (!fillFields()) state.neighbours = item;
  }
  writeHistory();
  return answers();
}

async function openMap() {
  at("map-draw").hidden = true;
  at("map").scrollIntoView({ block: "start" });
  const { model, shown } = state;
  try {
    const { drawMap } = await import("/page/map.js").catch(() => { throw new Error(texts.failed); });
    state.map ??= await drawMap(model, {
      list: (id) => neighboursOf({ [model.item_column]: id, [model.title_column ?? model.item_column]: state.map.titleOf(id) }),
    });
    if (shown) state.map?.mark(shown.told.items.map((item) => String(item.item_id)));
  } catch (error) {
    at("map-draw").hidden = false;
    at("map-note").textContent = error.message;
  }
  return state.map;
}

function describe() {
  const { model } = state, number = (n) => n.toLocaleString(document.documentElement.lang);
  write();
  at("name").textContent = model.name;
  document.title = `${model.name} · twotower`;
  at("facts").textContent = texts.counts(number(model.items), model.queries && number(model.queries), model.dim);
  const isSearch = model.reads_searches;
  at("query-field").hidden = !isSearch && !model.queries;
  document.querySelector("label[for=query]").textContent = isSearch ? texts.search : texts.query;
  at("query-note").textContent = isSearch ? texts.searchNote : texts.queryNote(model.query_column);
  writeFields(at("fields"), model.query_fields, asks, model.queries ? texts.fieldsNote : "");
  at("history-field").hidden = !model.reads_history;
  at("item-note").textContent = [texts.addItemNote, model.has_histories && model.queries ? texts.insteadNote : ""].join(texts.between);
  at("seen-field").hidden = !model.reads_history && !model.has_histories;
  at("words-field").hidden = !(model.words > 0);
  at("rerank-field").hidden = !(model.second_stage > 0);
  at("filter-example").textContent = model.filter_example;
  const columns = [model.item_column, ...model.item_columns].slice(0, 12);
  at("filter-columns").textContent = texts.filterColumns(columns.join(", "));
  at("k").max = model.max_k;
  writeHistory();
  state.map?.write();
}

async function start() {
  write();
  try {
    ({ told: state.model } = await ask("/model"));
  } catch (error) {
    return tell(error);
  }
  describe();
  finder(at("query"), at("queries"), {
    find: async (text) => (await asked("/queries", { text, limit: 8 })).told.query_ids.map((id) => [String(id), id]),
    choose: (id) => { at("query").value = id; asks(); },
    none: () => (state.model.reads_searches ? "" : texts.noId), // any search has answers
    failed: tell,
  });
  finder(at("item"), at("items"), {
    find: async (text) => (await asked("/items", { text, limit: 8 })).told.items.map((line) => [title(line), line]),
    choose: (line) => { at("item").value = ""; add(line); },
    none: () => texts.noItem,
    failed: tell,
  });
  at("query").addEventListener("input", later(asks));
  for (const id of ["filter", "k", "diversity", "seen", "words", "rerank"]) at(id).addEventListener("input", later(answers));
  at("filter-example").onclick = () => { at("filter").value = state.model.filter_example; at("filter").focus(); answers(); };
  at("clear").onclick = () => { state.history = []; writeHistory(); asks(); at("item").focus(); };
  at("back").onclick = async () => { await asks(); at("answers").focus({ preventScroll: true }); };
  at("another").onclick = another;
  at("map-draw").onclick = openMap;
  at("language").onclick = () => { turn(); describe(); show(); answers(); }; // what the server said, in the other language
  await another();
}

start();
