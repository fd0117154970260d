// What the other scripts have in common: elements, tables that keep their rows, units, and requests. Every text goes in as a text.

export const id = (name) => document.getElementById(name);

// el makes an element. Children are texts or elements.
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// put changes a text only where it is another one, so that a screen reader and a selection notice nothing of an update without news.
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setState(node, state, word) {
  node.dataset.state = state;
  put(node.querySelector(".word"), word);
}

export function stateOf(state, word) {
  return el("span", { class: "state", "data-state": state }, el("span", { class: "mark", "aria-hidden": "true" }), el("span", { class: "word" }, word));
}

// rows shows items as rows of a table. A row stays the same element for as long as its item is there, so that focus stays where it is.
// make returns a row and a function that shows an item in it. While somebody points at the table or is in it with the keyboard, no row moves
// under his hand: only values change.
export function rows(body, items, keyOf, make, empty) {
  const known = (body.known ??= new Map());
  const wanted = new Set(items.map(keyOf));
  const focused = body.contains(document.activeElement) ? document.activeElement : null;
  for (const [key, row] of known) {
    if (!wanted.has(key)) {
      row.node.remove();
      known.delete(key);
    }
  }
  const still = focused || body.matches(":hover");
  let next = body.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let row = known.get(key);
    if (!row) {
      row = make(item);
      known.set(key, row);
      if (still) body.append(row.node);
    }
    row.show(item);
    if (still) continue;
    if (row.node === next) next = next.nextElementSibling;
    else body.insertBefore(row.node, next);
  }
  showEmpty(body, items.length === 0 ? empty : "");
}

function showEmpty(body, text) {
  if (!body.empty) {
    body.empty = el("tr", {}, el("td", { class: "empty", colspan: "20" }));
  }
  put(body.empty.firstElementChild, text);
  if (text) body.append(body.empty);
  else body.empty.remove();
}

// cells makes the cells of a row: kinds are classes, "th" makes the row's header.
export function cells(...kinds) {
  return kinds.map((kind) => (kind === "th" ? el("th", { scope: "row" }) : el("td", { class: kind })));
}

const units = ["B", "kB", "MB", "GB", "TB", "PB"];

export function bytes(n) {
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) {
    n /= 1000;
    unit++;
  }
  return `${unit === 0 || n >= 99.5 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

export const rate = (n) => (n === undefined || n === null ? "–" : `${bytes(n)}/s`);

export function count(n) {
  return Number.isInteger(n) || n >= 100 ? Math.round(n).toLocaleString("en") : n.toFixed(n < 10 ? 2 : 1);
}

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function clock(text, withDay = false) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return "";
  return at.toLocaleString("sv", withDay ? { dateStyle: "short", timeStyle: "short" } : { timeStyle: "medium" });
}

// ask sends a request to the gateway, and returns what it answers. Whatever may change something says that it is JSON: a form of another page
// can't say that.
export async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method, cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(30000),
      headers: method === "GET" ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    throw new Error(error.name === "TimeoutError" ? "The gateway has not answered for 30 seconds." : "The gateway can't be reached.");
  }
  const text = await answer.text();
  if (answer.ok) return text ? JSON.parse(text) : null;
  let said = `HTTP ${answer.status}`;
  try {
    said = JSON.parse(text).error || said;
  } catch { /* no JSON: the status has to do */ }
  throw new Error(said);
}

// say tells how an action has ended, until the next one.
export function say(text, bad = false) {
  const dismiss = el("button", { type: "button", onclick: () => id("said").replaceChildren() }, "Dismiss");
  id("said").replaceChildren(el("p", { class: bad ? "bad" : "" }, el("span", {}, (bad ? "Failed: " : "") + text), dismiss));
}

// confirmed asks before something is done that can't be undone.
export function confirmed(title, text, yes) {
  const dialog = id("ask");
  put(id("ask-title"), title);
  put(id("ask-text"), text);
  put(id("ask-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  id("ask-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// act does something that changes the gateway, with the button that has asked for it disabled meanwhile.
export async function act(button, does, then) {
  button.disabled = true;
  try {
    say(await does());
  } catch (error) {
    say(error.message, true);
  }
  button.disabled = false;
  if (then) then();
}
