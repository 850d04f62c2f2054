// Parts of which the pages are made: elements, a field with suggestions, a menu.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function later(work, milliseconds = 250) {
  let waiting;
  return (...given) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => work(...given), milliseconds);
  };
}

// A field below which what was found stands as buttons; arrows walk among them.
// `find` gives pairs of a label and a value; `none` what is said where there are none, if anything.
export function finder(input, list, { find, choose, none, failed }) {
  let turnOf = 0;
  const close = () => list.replaceChildren();
  const look = async () => {
    const mine = ++turnOf, text = input.value.trim();
    if (!text) return close();
    try {
      const found = await find(text);
      if (mine !== turnOf) return;
      const said = found.length ? "" : none();
      if (!found.length) return list.replaceChildren(...(said ? [make("li", { className: "note", textContent: said })] : []));
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
      failed(error);
    }
  };
  input.addEventListener("input", later(look, 150));
  input.parentElement.addEventListener("focusout", (event) => {
    if (!input.parentElement.contains(event.relatedTarget)) { turnOf++; close(); }
  });
  input.parentElement.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("button")];
    if (event.key === "Escape") { turnOf++; close(); input.focus(); }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !buttons.length) return;
    if (event.target !== input && !buttons.includes(event.target)) return;
    event.preventDefault();
    const next = buttons.indexOf(event.target) + step;
    (next < 0 ? input : buttons[Math.min(next, buttons.length - 1)]).focus();
  });
}

// A button that opens a menu. Entries are pairs of a label and what is done.
export function menu(label, entries) {
  const button = make("button", {
    type: "button", className: "more", textContent: "⋯", "aria-label": label, title: label,
    "aria-haspopup": "menu", "aria-expanded": "false",
  });
  const list = make("div", { role: "menu", className: "menu", hidden: true, "aria-label": label },
    ...entries.map(([text, act]) => make("button", {
      type: "button", role: "menuitem", tabIndex: -1, textContent: text,
      onclick: () => { show(false); button.focus(); act(); },
    })));
  const whole = make("div", { className: "menus" }, button, list);
  const items = [...list.children];
  const outside = (event) => { if (!whole.contains(event.target)) show(false); };
  function show(isOpen) {
    list.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
    (isOpen ? document.addEventListener : document.removeEventListener).call(document, "pointerdown", outside);
  }
  button.onclick = () => {
    show(list.hidden);
    if (!list.hidden) items[0].focus();
  };
  whole.addEventListener("focusout", (event) => { if (!whole.contains(event.relatedTarget)) show(false); });
  whole.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement), last = items.length - 1;
    const next = {
      ArrowDown: at === last ? 0 : at + 1, ArrowUp: at <= 0 ? last : at - 1, Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape" && !list.hidden) { show(false); button.focus(); }
    if (next === undefined || (list.hidden && !event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    if (list.hidden) show(true);
    items[next].focus();
  });
  return whole;
}
