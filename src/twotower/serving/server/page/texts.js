// Every sentence of the page, in two languages.

const TEXTS = {
  en: {
    other: "中文",
    skip: "To the answers",
    docs: "Interface",
    tryIt: "Try the model",
    docsTitle: "The interface",
    facts: (items, queries, dim) => `${items} items, ${queries} queries, ${dim} dimensions`,
    ask: "Who asks",
    query: "A known query, by its id",
    querySearch: "A search",
    queryNote: "Type the beginning of an id. Leave it empty to ask by a history alone.",
    querySearchNote: "Type what somebody would search for.",
    addItem: "Add an item to the history",
    addItemNote: "Type a piece of its title.",
    history: "History, oldest first",
    historyEmpty: "Nothing yet: what the model knows of the query counts, if it knows it.",
    historyKnown: (titles) => `The model knows of it, the latest first: ${titles}`,
    clear: "Clear the history",
    filter: "Filter",
    filterNote: (example, columns) => `Such as: ${example}. Columns: ${columns}.`,
    k: "How many",
    diversity: "Diversity, 0 to 1",
    seen: "Show items of the history, too",
    words: "Count words in common, too",
    answers: "Answers",
    neighbours: (title) => `Neighbours of ${title}`,
    back: "Back to the answers",
    took: (all, server) => `${all} ms, of which the server ${server} ms`,
    popular: "Nothing is known of this query that the model reads: what is popular.",
    nobody: "Pick a query or add an item to see answers.",
    nothing: "Nothing is left that may be an answer.",
    noMatch: "No match.",
    add: "Add to history",
    remove: "Remove",
    similar: "Neighbours",
    why: "Why",
    score: "score",
    named: (what, title) => `${what}: ${title}`,
    sides: { query: "query", item: "item", history: "event" },
    whyNote: "What the score loses when one part is left out.",
    token: "This server asks for a token. Paste it here; it stays in this tab.",
    failed: "The server could not be reached.",
    status: "Answers",
    body: "Body",
    parameters: "Parameters",
    example: "Example",
    field: "Field",
    type: "Type",
    meaning: "Meaning",
    needed: "needed",
  },
  zh: {
    other: "English",
    skip: "跳到答案",
    docs: "接口",
    tryIt: "试用模型",
    docsTitle: "接口",
    facts: (items, queries, dim) => `${items} 个物品，${queries} 个查询，${dim} 维`,
    ask: "谁在问",
    query: "已知的查询（用它的 id）",
    querySearch: "搜索",
    queryNote: "输入 id 的开头。留空则只按历史来问。",
    querySearchNote: "输入人们会搜索的内容。",
    addItem: "向历史中添加物品",
    addItemNote: "输入标题的一部分。",
    history: "历史（最早的在前）",
    historyEmpty: "还没有：如果模型认识这个查询，就用它所知道的。",
    historyKnown: (titles) => `模型知道它最近的：${titles}`,
    clear: "清空历史",
    filter: "过滤",
    filterNote: (example, columns) => `例如：${example}。可用的列：${columns}。`,
    k: "数量",
    diversity: "多样性（0 到 1）",
    seen: "也显示历史中的物品",
    words: "也计入共同的词",
    answers: "答案",
    neighbours: (title) => `${title} 的近邻`,
    back: "回到答案",
    took: (all, server) => `${all} 毫秒，其中服务器 ${server} 毫秒`,
    popular: "模型对这个查询一无所知：给出的是热门物品。",
    nobody: "选择一个查询或添加一个物品，就会看到答案。",
    nothing: "没有剩下可以作为答案的物品。",
    noMatch: "没有匹配。",
    add: "加入历史",
    remove: "移除",
    similar: "近邻",
    why: "为什么",
    score: "得分",
    named: (what, title) => `${what}：${title}`,
    sides: { query: "查询", item: "物品", history: "事件" },
    whyNote: "去掉一个部分后，得分会减少多少。",
    token: "此服务器需要令牌。请粘贴到这里；它只保存在这个标签页中。",
    failed: "无法连接服务器。",
    status: "返回",
    body: "请求体",
    parameters: "参数",
    example: "示例",
    field: "字段",
    type: "类型",
    meaning: "含义",
    needed: "必填",
  },
};

function stored(key) {
  try { return sessionStorage.getItem(key); } catch { return null; }
}

export function keep(key, value) {
  try { sessionStorage.setItem(key, value); } catch { /* a browser that keeps nothing */ }
}

export let language = stored("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
export let texts = TEXTS[language];

export function write() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = texts[element.dataset.text];
  }
  const button = document.getElementById("language");
  button.textContent = texts.other;
  button.lang = language === "zh" ? "en" : "zh-CN";
}

export function turn() {
  language = language === "zh" ? "en" : "zh";
  texts = TEXTS[language];
  keep("language", language);
  write();
}

// Read JSON; whole numbers that a browser would round, as ids may be, become strings, which the server takes for them.
const read = (text) => JSON.parse(text.replace(
  /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g,
  (part) => (/^-?\d{16,}$/.test(part) ? `"${part}"` : part)));

// Ask this server, with the token of this tab where there is one.
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
  const told = read(await answer.text());
  if (!answer.ok) throw new Error(told.error ?? texts.failed);
  const server = /dur=([\d.]+)/.exec(answer.headers.get("server-timing") ?? "");
  const took = { all: performance.now() - started, server: server ? Number(server[1]) : null };
  return { told, took };
}

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
