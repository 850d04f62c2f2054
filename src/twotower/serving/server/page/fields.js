// A form for what may be told of a query.

import { texts } from "/page/texts.js";
import { later, make } from "/page/parts.js";

const inputs = new Map();
const FEW = 6;

function inputOf(field, changed) {
  const id = `field-${inputs.size}`, list = `${id}-values`;
  const kinds = { number: "number", time: "date" };
  const input = make("input", { id, type: kinds[field.kind] ?? "text", autocomplete: "off" });
  if (field.kind === "number") input.step = "any";
  const isChosen = ["categorical", "tags"].includes(field.kind) && field.examples.length > 0;
  if (isChosen) input.setAttribute("list", list);
  const few = field.kind === "tags" ? field.examples.slice(0, 2) : field.examples.slice(0, 1);
  if (few.length && field.kind !== "time") input.placeholder = texts.such(few.join(", "));
  input.addEventListener("input", later(changed));
  inputs.set(field, input);
  return make("div", { className: "feature" },
    make("label", { htmlFor: id, textContent: field.name }), input,
    isChosen ? make("datalist", { id: list }, ...field.examples.map((value) => make("option", { value: String(value) }))) : null);
}

// Write the form anew, in the language of the page; what was filled in stays.
export function writeFields(place, fields, changed, note) {
  const before = [...inputs.values()].map((input) => input.value);
  inputs.clear();
  const rows = fields.map((field) => inputOf(field, changed));
  [...inputs.values()].forEach((input, number) => { input.value = before[number] ?? ""; });
  place.hidden = !fields.length;
  const heading = place.querySelector("summary");
  place.replaceChildren(heading, ...(note ? [make("p", { className: "note", textContent: note })] : []), ...rows);
  if (!place.dataset.written) place.open = fields.length <= FEW;
  place.dataset.written = "1";
}

const valueOf = (field, text) =>
  field.kind === "tags" ? text.split(/[,，、]/).map((tag) => tag.trim()).filter(Boolean) : text;

// What is filled in: column to value; undefined where nothing is.
export function featuresTold() {
  const told = [...inputs]
    .map(([field, input]) => [field, input.value.trim()])
    .filter(([, text]) => text)
    .map(([field, text]) => [field.name, valueOf(field, text)]);
  return told.length ? Object.fromEntries(told) : undefined;
}

export function clearFields() {
  for (const input of inputs.values()) input.value = "";
}

// Fill in an example of each column that has some; return whether one has.
export function fillFields() {
  clearFields();
  for (const [{ examples }, input] of inputs) {
    if (examples.length) input.value = examples[Math.floor(Math.random() * examples.length)];
  }
  return featuresTold() !== undefined;
}
