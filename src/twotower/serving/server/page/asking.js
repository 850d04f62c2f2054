// What is asked of this server, and of no other.

import { keep, language, stored, texts } from "/page/texts.js";

// Read JSON; whole numbers that a browser would round, as ids may be, become strings, which the server takes for them.
const read = (text) => JSON.parse(text.replace(
  /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g,
  (part) => (/^-?\d{16,}$/.test(part) ? `"${part}"` : part)));

// What the server says, in the page's language where it knows that; the lines below show a place in the filter.
async function said(text) {
  if (language !== "zh") return text;
  const [first, ...lines] = text.split("\n");
  try {
    const answer = await fetch(`/page/chinese?${new URLSearchParams({ text: first })}`);
    return [(await answer.json()).text ?? first, ...lines].join("\n");
  } catch {
    return text;
  }
}

// Ask with the token of this tab where there is one. An error has the server's `kind` of refusal.
export async function ask(path, body) {
  const headers = { accept: "application/json" };
  const token = stored("token");
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const started = performance.now();
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Error(texts.failed);
  }
  if (answer.status === 401) {
    const given = (prompt(texts.token) ?? "").trim();
    // A header holds no other letters; the browser would refuse to ask at all.
    if (given && /^[\x21-\x7e]+$/.test(given)) {
      keep("token", given);
      return ask(path, body);
    }
  }
  let text, told;
  try {
    text = await answer.text();
  } catch { // the connection broke off
    throw new Error(texts.failed);
  }
  try {
    told = read(text);
  } catch { // the page of a proxy, say
    throw new Error(texts.unreadable(answer.status));
  }
  if (!answer.ok) {
    const problem = told?.error ? await said(told.error) : texts.unreadable(answer.status);
    throw Object.assign(new Error(problem), { kind: told?.kind });
  }
  if (told.notes) told.notes = await Promise.all(told.notes.map(said));
  const server = /dur=([\d.]+)/.exec(answer.headers.get("server-timing") ?? "");
  const took = { all: performance.now() - started, server: server ? Number(server[1]) : null };
  return { told, took };
}

export const asked = (path, parameters) => ask(`${path}?${new URLSearchParams(parameters)}`);
