// The interface, as the server itself describes it.

import { ask } from "/page/asking.js";
import { make } from "/page/parts.js";
import { language, texts, turn, write } from "/page/texts.js";

let schema = null;
const described = {}; // by the language in which it is asked for

const resolve = (part) =>
  part?.$ref ? schema.components.schemas[part.$ref.split("/").pop()] : part;

function typeOf(part) {
  if (!part) return "";
  if (part.$ref) return part.$ref.split("/").pop();
  const either = part.anyOf ?? part.oneOf;
  if (either) return [...new Set(either.map(typeOf))].join(" | ");
  if (part.enum || part.const) return (part.enum ?? [part.const]).map((value) => JSON.stringify(value)).join(" | ");
  if (part.prefixItems) return `[${part.prefixItems.map(typeOf).join(", ")}]`;
  if (part.type === "array") return `[${typeOf(part.items)}, …]`;
  if (part.type === "object" && part.additionalProperties) return `{${texts.column}: ${typeOf(part.additionalProperties)}}`;
  return part.type ?? texts.any;
}

// A sentence, with what stands in backquotes as code.
const sentence = (text) => text.split("`").map((piece, place) =>
  (place % 2 ? make("code", { textContent: piece }) : piece));

function meaningOf(part, needed) {
  const given = part.default === undefined || part.default === null ? null : texts.byDefault(JSON.stringify(part.default));
  return [part.description, given, needed ? texts.needed : null].filter(Boolean).join(texts.between);
}

function table(fields, caption, { asked = true } = {}) {
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    make("table", {},
      make("caption", { textContent: caption }),
      make("thead", {}, make("tr", {},
        ...[texts.field, texts.type, texts.meaning].map((name) => make("th", { scope: "col", textContent: name })))),
      make("tbody", {}, ...fields.map(([name, part, needed]) =>
        make("tr", {},
          make("th", { scope: "row" }, make("code", { textContent: name })),
          make("td", {}, make("code", { textContent: typeOf(part) })),
          make("td", {}, ...sentence(meaningOf(part, needed && asked))))))));
}

// What a body holds within: `rules`, say, or each of `queries`.
const within = (part) =>
  [part, part.items, ...(part.anyOf ?? [])].find((each) => each?.$ref?.endsWith("Body"));

const fieldsOf = (part, before = "") => {
  const model = resolve(part) ?? {};
  return Object.entries(model.properties ?? {}).flatMap(([name, field]) => [
    [before + name, field, (model.required ?? []).includes(name)],
    ...(within(field) ? fieldsOf(within(field), `${before}${name}.`) : []),
  ]);
};

function example(path, method, route) {
  const body = resolve(route.requestBody?.content["application/json"].schema);
  const line = { [schema.components.schemas.Line.required[0]]: "50" };
  const known = {
    query_id: "17", history: ["1", "50"], k: 10, item_id: "50", path: "models/new", queries: [{ query_id: "17" }],
    pairs: [["17", "50"]], item_ids: ["50"], items: [line],
  };
  const said = Object.fromEntries(
    Object.keys(body?.properties ?? {}).filter((name) => name in known).map((name) => [name, known[name]]));
  const needed = (route.parameters ?? []).filter((parameter) => parameter.required);
  const query = needed.length ? `?${needed.map((p) => `${p.name}=${known[p.name] ?? "17"}`).join("&")}` : "";
  const lines = [`curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}'${location.origin}${path}${query}'`];
  if (method === "put" || method === "delete") lines.push("  -H 'authorization: Bearer TOKEN'");
  if (body) lines.push("  -H 'content-type: application/json'", `  -d '${JSON.stringify(said)}'`);
  return lines.join(" \\\n");
}

function section(path, method, route) {
  const parts = [
    make("h2", {}, make("code", { textContent: `${method.toUpperCase()} ${path}` })),
    ...(route.description ?? route.summary).split("\n\n").map((text) => make("p", {}, ...sentence(text))),
  ];
  if (route.parameters?.length) {
    parts.push(table(route.parameters.map((p) => [p.name, p.schema, p.required]), texts.parameters));
  }
  const body = route.requestBody?.content["application/json"].schema;
  if (body) parts.push(table(fieldsOf(body), texts.body));
  const good = fieldsOf(route.responses["200"]?.content?.["application/json"]?.schema);
  if (good.length) parts.push(table(good, texts.status, { asked: false }));
  const shown = make("pre", { tabIndex: 0, role: "region", "aria-label": texts.example });
  shown.append(make("code", { textContent: example(path, method, route) }));
  parts.push(shown);
  return make("section", {}, ...parts);
}

async function show() {
  write();
  const asked = language;
  try {
    described[asked] ??= (await ask(`/openapi.json?lang=${asked}`)).told;
  } catch (error) {
    document.getElementById("problem").hidden = false;
    document.getElementById("problem").textContent = error.message;
    return;
  }
  if (asked !== language) return; // it was turned meanwhile
  document.getElementById("problem").hidden = true;
  schema = described[asked];
  document.getElementById("version").textContent = schema.info.version;
  document.getElementById("routes").replaceChildren(
    ...Object.entries(schema.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, route]) => section(path, method, route))));
}

document.getElementById("language").onclick = () => { turn(); show(); };
show();
