// How an item is shown: its title, its picture, what else is known of it.

import { texts } from "/page/texts.js";
import { make } from "/page/parts.js";

const SHOWN = 5, LONGEST = 80;

// An address on the web that a cell holds, the first one; nothing else becomes a link or a picture.
export function address(cell) {
  const text = String((Array.isArray(cell) ? cell[0] : cell) ?? "").trim().split(/[\s|]|[,;](?=\s*(?:https?:)?\/\/)/)[0];
  const whole = text.startsWith("//") ? `https:${text}` : /^www\./i.test(text) ? `https://${text}` : text;
  try {
    const url = new URL(whole);
    return ["http:", "https:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const plain = (value) => {
  if (value === null || value === undefined || value === "") return null;
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(4)));
  return String(value).replace(/\|/g, ", ");
};

export const idOf = (model, line) => String(line[model.item_column]);

export function titleOf(model, line) {
  const title = line[model.title_column];
  return typeof title === "string" && title ? title : idOf(model, line);
}

const withForm = (model, form) => model.item_columns.filter((name) => model.item_forms[name] === form);

export function pictureOf(model, line) {
  const columns = withForm(model, "image");
  if (!columns.length) return null;
  const place = make("div", { className: "picture" });
  const from = columns.map((name) => address(line[name])).find((found) => found !== null);
  if (from) {
    place.append(make("img", {
      alt: "", loading: "lazy", decoding: "async", referrerPolicy: "no-referrer", width: 64, height: 64,
      onerror: ({ target }) => target.remove(), src: from,
    }));
  }
  return place;
}

const link = (href, text) =>
  make("a", { href, target: "_blank", rel: "noopener noreferrer", referrerPolicy: "no-referrer", textContent: text });

// The title, which leads where the first column of links does.
export function nameOf(model, line) {
  const to = withForm(model, "link").map((name) => address(line[name])).find((found) => found !== null);
  const title = titleOf(model, line);
  return make("h3", {}, to ? link(to, title) : title);
}

export function factsOf(model, line) {
  const others = model.item_columns.filter((name) => name !== model.title_column && !model.item_forms[name]);
  const key = titleOf(model, line) === idOf(model, line) ? [] : [model.item_column];
  const facts = [...key, ...others]
    .map((name) => [name, plain(line[name])])
    .filter(([, value]) => value !== null)
    .slice(0, SHOWN)
    .map(([name, value]) => make("span", {},
      make("span", { className: "column", textContent: name }), ` ${value.length > LONGEST ? `${value.slice(0, LONGEST - 1)}…` : value}`));
  const more = withForm(model, "link").slice(1)
    .map((name) => [name, address(line[name])])
    .filter(([, to]) => to !== null)
    .map(([name, to]) => link(to, name));
  return make("p", { className: "facts" }, ...[...facts, ...more].flatMap((each, place) => (place ? [" ", each] : [each])));
}

export function scoreOf(item, share) {
  return make("div", { className: "score" },
    make("meter", { min: 0, max: 1, value: share, "aria-label": `${texts.score} ${item.score.toFixed(3)}` }),
    make("span", { textContent: item.score.toFixed(3) }));
}
