// The map of the catalogue on a canvas: search, zoom, neighbours, colours by a column.

import { ask, asked } from "/page/asking.js";
import { finder, make } from "/page/parts.js";
import { texts } from "/page/texts.js";

const SIDE = 10_000, CELLS = 64, NEAR = 10, MOST_ZOOM = 60, NEIGHBOURS = 10, FOUND = 8;
const ROUND = 2; // pixels from which on a point looks like a square otherwise
const at = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });
const number = (n) => n.toLocaleString(document.documentElement.lang);

// Ask for the map until it is there; null where there is none.
async function fetched() {
  for (;;) {
    const { told } = await ask("/map");
    if (told.status === "ready") return told;
    if (told.status !== "drawing") {
      at("map-note").textContent = told.status === "none" ? texts.mapNone : texts.mapFailed;
      return null;
    }
    at("map-note").textContent = texts.mapBusy;
    await pause(1000);
  }
}

export async function drawMap(model, { list }) {
  const told = await fetched();
  return told === null ? null : new ItemMap(model, told, list);
}

class ItemMap {
  constructor(model, told, list) {
    Object.assign(this, { model, told, list });
    this.size = told.item_ids.length;
    this.places = new Map(told.item_ids.map((id, place) => [String(id), place]));
    this.lower = this.titles().map((title) => title.toLowerCase());
    this.cells = cellsOf(told);
    [this.across, this.down] = [ends(told.x).size + 1, ends(told.y).size + 1];
    this.view = { zoom: 1, x: SIDE / 2, y: SIDE / 2 };
    Object.assign(this, { column: null, marked: [], found: [], chosen: null, near: [] });
    this.canvas = at("map-canvas");
    at("map-whole").hidden = false;
    this.listen();
    this.colourBy(told.columns[0] ?? null);
    this.write();
  }

  titles() { return this.told.titles ?? this.told.item_ids.map(String); }

  titleOf(id) { return this.titles()[this.places.get(String(id))]; }

  // Sort the items into layers of one colour, of which the last is painted over the others.
  colourBy(column) {
    this.column = column;
    const all = [...this.told.x.keys()];
    if (column === null) {
      this.layers = [["model", all]];
      return;
    }
    const places = new Map([[".", []], ...column.groups.map((_, code) => [String(code), []])]);
    for (const place of all) places.get(column.codes[place]).push(place);
    this.layers = [...places].map(([code, of]) => [code === "." ? "bar" : `c${code}`, of]);
  }

  // Everything that is said, in the language of the page.
  write() {
    const { told, size } = this;
    at("map-note").textContent = texts.mapLead(number(size), number(told.items));
    this.canvas.setAttribute("aria-label", texts.mapCanvas(number(size)));
    document.querySelector(".zoom").setAttribute("aria-label", texts.mapZoom);
    for (const [id, said] of [["map-in", texts.mapIn], ["map-out", texts.mapOut]]) {
      at(id).title = said;
      at(id).setAttribute("aria-label", said);
    }
    at("map-colour-field").hidden = !told.columns.length;
    at("map-colour").replaceChildren(
      make("option", { value: "", textContent: texts.mapPlain }),
      ...told.columns.map(({ name }, place) => make("option", { value: place, textContent: name })));
    at("map-colour").value = this.column === null ? "" : told.columns.indexOf(this.column);
    this.writeLegend();
    this.writeCard();
    this.draw();
  }

  writeLegend() {
    const named = (className, text) => make("li", {}, make("span", { className, "aria-hidden": "true" }), text);
    const groups = this.column === null ? [] : [
      ...this.column.groups.map((group, code) => named(`dot c${code}`, group)), named("dot rest", texts.mapRest)];
    if (this.marked.length) groups.push(named("dot ring", texts.mapAnswers));
    at("map-legend").replaceChildren(...groups);
  }

  writeCard() {
    const { chosen, near } = this;
    at("map-card").replaceChildren(...(chosen === null ? [] : [
      make("h3", { textContent: this.titles()[chosen] }),
      ...(near.length ? [
        make("p", { className: "note", textContent: texts.similar }),
        make("ol", {}, ...near.map((place) => make("li", {}, make("button", {
          type: "button", className: "plain", textContent: this.titles()[place], onclick: () => this.choose(place),
        })))),
        make("button", { type: "button", textContent: texts.mapAsk, onclick: () => this.list(this.told.item_ids[chosen]) }),
      ] : []),
    ]));
  }

  // Ring the items of an answer.
  mark(ids) {
    this.marked = this.placesOf(ids);
    this.writeLegend();
    this.draw();
  }

  placesOf(ids) { return ids.map((id) => this.places.get(String(id))).filter((place) => place !== undefined); }

  select(id) {
    const place = this.places.get(id);
    if (place === undefined) at("map-note").textContent = texts.mapMissing;
    else this.choose(place);
    this.canvas.focus({ preventScroll: true });
  }

  async choose(place) {
    const { told, view } = this;
    this.chosen = place;
    this.near = [];
    Object.assign(view, { x: told.x[place], y: told.y[place], zoom: Math.max(view.zoom, 4) });
    this.writeCard();
    this.draw();
    try {
      const { told: found } = await asked("/similar", { item_id: told.item_ids[place], k: NEIGHBOURS });
      if (this.chosen !== place) return;
      this.near = this.placesOf(found.items.map((item) => item.item_id));
      this.fit();
      this.writeCard();
      this.draw();
    } catch (error) {
      at("map-note").textContent = error.message;
    }
  }

  // --- where things are ---

  get scale() { return Math.min((this.width - 24) / this.across, (this.height - 24) / this.down) * this.view.zoom; }

  get radius() { return Math.min(6, (this.size > 20_000 ? 0.9 : this.size > 3_000 ? 1.4 : 2.2) * Math.sqrt(this.view.zoom)); }

  onScreen(place) {
    const { view, told, scale } = this;
    return [(told.x[place] - view.x) * scale + this.width / 2, (told.y[place] - view.y) * scale + this.height / 2];
  }

  at(left, top) {
    const { view, told, scale } = this;
    const x = (left - this.width / 2) / scale + view.x, y = (top - this.height / 2) / scale + view.y;
    const reach = NEAR / scale, low = (v) => Math.max(0, Math.floor((v - reach) / SIDE * CELLS));
    const high = (v) => Math.min(CELLS - 1, Math.floor((v + reach) / SIDE * CELLS));
    let best = null, least = reach * reach;
    for (let row = low(y); row <= high(y); row++) {
      for (let column = low(x); column <= high(x); column++) {
        for (const place of this.cells[row * CELLS + column]) {
          const distance = (told.x[place] - x) ** 2 + (told.y[place] - y) ** 2;
          if (distance <= least) [best, least] = [place, distance];
        }
      }
    }
    return best;
  }

  zoomBy(factor, left = this.width / 2, top = this.height / 2) {
    const { view } = this, before = this.scale;
    view.zoom = Math.min(MOST_ZOOM, Math.max(1, view.zoom * factor));
    const after = this.scale;
    view.x += (left - this.width / 2) * (1 / before - 1 / after);
    view.y += (top - this.height / 2) * (1 / before - 1 / after);
    this.moveBy(0, 0);
  }

  moveBy(right, down) {
    const { view, scale } = this, held = (v) => Math.min(SIDE, Math.max(0, v));
    view.x = held(view.x - right / scale);
    view.y = held(view.y - down / scale);
    this.draw();
  }

  whole() {
    this.view = { zoom: 1, x: SIDE / 2, y: SIDE / 2 };
    this.draw();
  }

  // Zoom out as far as is needed to see where the chosen item's lines lead.
  fit() {
    const { view } = this, together = [this.chosen, ...this.near];
    const [x, y] = ["x", "y"].map((axis) => ends(together.map((place) => this.told[axis][place])));
    const fits = Math.min(this.width / (x.size + 1), this.height / (y.size + 1)) / 1.3;
    view.zoom = Math.max(1, Math.min(view.zoom, fits / (this.scale / view.zoom)));
    Object.assign(view, { x: x.middle, y: y.middle });
  }

  // --- drawing ---

  draw() {
    this.waiting ??= requestAnimationFrame(() => { this.waiting = null; this.paint(); });
  }

  paint() {
    const { canvas } = this, dense = window.devicePixelRatio || 1;
    ({ clientWidth: this.width, clientHeight: this.height } = canvas);
    if (canvas.width !== Math.round(this.width * dense)) canvas.width = Math.round(this.width * dense);
    if (canvas.height !== Math.round(this.height * dense)) canvas.height = Math.round(this.height * dense);
    const pen = canvas.getContext("2d"), style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    this.paintPoints(pen, colour);
    this.paintLines(pen, colour("ink"));
    pen.lineWidth = 1.5;
    pen.strokeStyle = colour("ink");
    for (const place of this.marked) this.ring(pen, place, 4);
    pen.fillStyle = colour("ink");
    for (const place of this.found) this.disc(pen, place, 1.5);
    if (this.chosen !== null) this.label(pen, this.chosen, colour);
  }

  paintPoints(pen, colour) {
    const { told, view, scale, radius } = this, side = 2 * radius;
    const left = this.width / 2 - view.x * scale - radius, top = this.height / 2 - view.y * scale - radius;
    for (const [name, places] of this.layers) {
      pen.fillStyle = colour(name);
      pen.beginPath();
      for (const place of places) {
        const x = told.x[place] * scale + left, y = told.y[place] * scale + top;
        if (x < -side || y < -side || x > this.width || y > this.height) continue;
        if (radius < ROUND) pen.fillRect(x, y, side, side);
        else {
          pen.moveTo(x + side, y + radius);
          pen.arc(x + radius, y + radius, radius, 0, 7);
        }
      }
      pen.fill();
    }
  }

  paintLines(pen, ink) {
    if (this.chosen === null) return;
    const [x, y] = this.onScreen(this.chosen);
    pen.strokeStyle = ink;
    pen.lineWidth = 0.75;
    pen.beginPath();
    for (const place of this.near) {
      pen.moveTo(x, y);
      pen.lineTo(...this.onScreen(place));
    }
    pen.stroke();
    pen.fillStyle = ink;
    for (const place of this.near) this.disc(pen, place, 1.5);
  }

  ring(pen, place, more) {
    pen.beginPath();
    pen.arc(...this.onScreen(place), this.radius + more, 0, 7);
    pen.stroke();
  }

  disc(pen, place, more) {
    pen.beginPath();
    pen.arc(...this.onScreen(place), this.radius + more, 0, 7);
    pen.fill();
  }

  label(pen, place, colour) {
    const [x, y] = this.onScreen(place), text = this.titles()[place];
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 2.5;
    this.ring(pen, place, 5);
    pen.font = `600 13px ${getComputedStyle(this.canvas).fontFamily}`;
    const width = pen.measureText(text).width, left = Math.min(Math.max(x - width / 2, 4), this.width - width - 4);
    pen.lineJoin = "round";
    pen.lineWidth = 4;
    pen.strokeStyle = colour("panel");
    pen.strokeText(text, left, y - 14);
    pen.fillStyle = colour("ink");
    pen.fillText(text, left, y - 14);
  }

  // --- what a person does ---

  listen() {
    at("map-in").onclick = () => this.zoomBy(1.6);
    at("map-out").onclick = () => this.zoomBy(1 / 1.6);
    at("map-all").onclick = () => this.whole();
    at("map-colour").onchange = ({ target }) => {
      this.colourBy(this.told.columns[target.value] ?? null);
      this.writeLegend();
      this.draw();
    };
    finder(at("map-search"), at("map-found"), {
      find: async (text) => this.search(text),
      choose: (place) => this.choose(place),
      none: () => texts.noItem,
      failed: () => {},
    });
    at("map-search").addEventListener("input", ({ target }) => { if (!target.value) this.search(""); });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.listenToPointers();
    this.listenToKeys();
  }

  search(text) {
    const wanted = text.toLowerCase();
    this.found = wanted ? [...this.lower.keys()].filter((place) => this.lower[place].includes(wanted)) : [];
    this.draw();
    return this.found.slice(0, FOUND).map((place) => [this.titles()[place], place]);
  }

  listenToPointers() {
    const { canvas } = this, held = new Map();
    let moved = 0;
    const spread = () => { const [a, b] = [...held.values()]; return Math.hypot(a.offsetX - b.offsetX, a.offsetY - b.offsetY); };
    canvas.addEventListener("pointerdown", (event) => {
      held.set(event.pointerId, event);
      canvas.setPointerCapture(event.pointerId);
      moved = 0;
      this.tip(null);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) return this.tip(event.pointerType === "mouse" ? this.at(event.offsetX, event.offsetY) : null);
      const wide = held.size === 2 ? spread() : 0;
      held.set(event.pointerId, event);
      moved += Math.abs(event.offsetX - before.offsetX) + Math.abs(event.offsetY - before.offsetY);
      if (wide) this.zoomBy(spread() / wide);
      this.moveBy((event.offsetX - before.offsetX) / held.size, (event.offsetY - before.offsetY) / held.size);
    });
    const released = (event) => {
      const isClick = held.size === 1 && moved < 6 && event.type === "pointerup";
      held.delete(event.pointerId);
      const place = isClick ? this.at(event.offsetX, event.offsetY) : null;
      if (place !== null) this.choose(place);
    };
    canvas.addEventListener("pointerup", released);
    canvas.addEventListener("pointercancel", released);
    canvas.addEventListener("pointerleave", () => this.tip(null));
    // Whoever only scrolls by must not be caught here.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    }, { passive: false });
  }

  listenToKeys() {
    const step = 60;
    const acts = {
      ArrowLeft: () => this.moveBy(step, 0), ArrowRight: () => this.moveBy(-step, 0),
      ArrowUp: () => this.moveBy(0, step), ArrowDown: () => this.moveBy(0, -step),
      "+": () => this.zoomBy(1.6), "=": () => this.zoomBy(1.6), "-": () => this.zoomBy(1 / 1.6), 0: () => this.whole(),
    };
    this.canvas.addEventListener("keydown", (event) => {
      if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      acts[event.key]();
    });
  }

  tip(place) {
    const tip = at("map-tip");
    tip.hidden = place === null;
    this.canvas.classList.toggle("over", place !== null);
    if (place === null) return;
    const [x, y] = this.onScreen(place);
    tip.textContent = this.titles()[place];
    const left = Math.min(Math.max(x - tip.offsetWidth / 2, 0), this.width - tip.offsetWidth);
    tip.style.transform = `translate(${left}px, ${Math.max(0, y - tip.offsetHeight - 10)}px)`;
  }
}

function ends(values) {
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  return { size: high - low, middle: (low + high) / 2 };
}

// Which items lie in each cell of a grid, so that the one under the pointer is found at once.
function cellsOf({ x, y }) {
  const cells = Array.from({ length: CELLS * CELLS }, () => []);
  for (let place = 0; place < x.length; place++) {
    cells[Math.floor(y[place] / SIDE * CELLS) * CELLS + Math.floor(x[place] / SIDE * CELLS)].push(place);
  }
  return cells;
}
