// Lists and bans: the dialog, what it does, and the entries that there are.

import { act, ask, cells, clock, confirmed, count, duration, el, id, plural, put, rows, say } from "./dom.js";

const form = id("ban-form"), dialog = id("ban");
const mostEntries = 100; // of a list that are shown
const mostLists = 20; // whose entries are shown

let lists = []; // as the gateway tells
let changed = () => {}; // called after something was banned or not any more

export const onChange = (f) => { changed = f; };

// denying are the lists to put a ban into: those that rules deny by, and none allows by.
const denying = () => lists.filter((list) => list.rules?.includes("deny") && !list.rules.includes("allow"));

const entryPath = (list, prefix) => `lists/${encodeURIComponent(list)}/entries/${encodeURIComponent(prefix)}`;

// openBan asks what to ban. The address may be empty.
export async function openBan(prefix = "") {
  try {
    lists = await ask("GET", "lists");
  } catch (error) {
    return say(error.message, true);
  }
  const choice = denying();
  form.reset();
  form.elements.list.replaceChildren(...choice.map((list) => el("option", { value: list.name }, `${list.name} (${plural(list.size, "entry", "entries")})`)));
  form.elements.prefix.value = prefix;
  put(id("ban-title"), prefix ? `Ban ${prefix}` : "Ban an address");
  put(id("ban-error"), "");
  put(id("ban-effect"), choice.length ? "Its sessions on listeners that this list guards are closed, and new ones are refused." : "");
  id("ban-none").hidden = choice.length > 0;
  id("ban-fields").hidden = id("ban-do").hidden = choice.length === 0;
  dialog.showModal();
  (choice.length === 0 ? id("ban-cancel") : prefix ? form.elements.ttl : form.elements.prefix).focus();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { prefix, list, ttl, reason } = form.elements;
  const wanted = prefix.value.trim(), name = list.value, time = ttl.value, words = ttl.selectedOptions[0].textContent;
  id("ban-do").disabled = true;
  put(id("ban-error"), "");
  try {
    const entry = { by: "status page" };
    if (time) entry.ttl = time;
    if (reason.value.trim()) entry.reason = reason.value.trim();
    await ask("PUT", entryPath(name, wanted), entry);
    dialog.close();
    say(`${wanted} is banned for ${words}, by the list ${name}.`);
    changed();
    await tellEffect(wanted, name, words);
  } catch (error) {
    put(id("ban-error"), error.message);
    if (!dialog.open) say(error.message, true);
  }
  id("ban-do").disabled = false;
});

// tellEffect says what has become of the sessions. The gateway closes them within a second.
async function tellEffect(prefix, name, words) {
  let left = [];
  for (let i = 0; i < 5; i++) {
    await new Promise((resolve) => { setTimeout(resolve, 500); });
    left = await ask("GET", `sessions?limit=1000&client=${encodeURIComponent(prefix)}`);
    if (left.length === 0) break;
  }
  const banned = `${prefix} is banned for ${words}, by the list ${name}.`;
  say(left.length === 0 ? `${banned} It has no sessions any more.` : `${banned} It still has ${plural(left.length, "session")}, on listeners that this list does not guard.`);
  changed();
}

id("ban-cancel").addEventListener("click", () => dialog.close());
id("ban-any").addEventListener("click", () => openBan());

function unban(button, list, prefix, shown) {
  act(button, async () => {
    await ask("DELETE", entryPath(list, prefix));
    return `${shown} is no longer in the list ${list}.`;
  }, changed);
}

function entryRow(list) {
  const [prefix, actions, left, reason, by, added] = cells("th", "changes", "n", "wrap", "", "n");
  const node = el("tr", {}, prefix, actions, left, reason, by, added);
  return (entry) => {
    const shown = entry.prefix.replace(/^([\d.]+)\/32$|^([\da-f:]+)\/128$/, "$1$2"); // one address
    put(prefix, shown);
    actions.append(el("button", { type: "button", "aria-label": `Unban ${shown}`, onclick: async (event) => {
      const button = event.currentTarget;
      if (await confirmed(`Unban ${shown}?`, `It is taken out of the list ${list}.`, "Unban")) unban(button, list, entry.prefix, shown);
    } }, "Unban"));
    if (Date.now() - Date.parse(entry.added) < 10000) node.className = "fresh";
    return {
      node,
      show(now) {
        put(left, now.expires ? duration((Date.parse(now.expires) - Date.now()) / 1000) : "for ever");
        put(reason, now.reason ?? "");
        put(by, now.by ?? "");
        put(added, clock(now.added, true));
      },
    };
  };
}

const columns = [["Address", ""], ["Actions", "changes"], ["Time left", "n"], ["Reason", ""], ["By", ""], ["Added", "n"]];

// listBox shows one list, and stays for as long as that is there.
function listBox(list) {
  const title = el("h3", {}, list.name), told = el("p", { class: "quiet" }), error = el("p", { class: "error" });
  const body = el("tbody"), dynamic = !list.loaded;
  const table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Entries of the list ${list.name}` }, el("table", {},
    el("thead", {}, el("tr", {}, ...columns.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))), body));
  const node = el("div", { class: "list" }, title, told, error, table);
  return {
    node,
    show(now) {
      const does = { deny: "denies", allow: "allows" };
      const parts = [(now.rules ?? []).map((rule) => does[rule]).join(" and "), plural(now.size, "entry", "entries")];
      if (!dynamic) parts.push(`read at ${clock(now.loaded, true)}`);
      if (now.bad_lines) parts.push(`${plural(now.bad_lines, "line")} that can't be read`);
      if (now.shown && now.shown.length < now.size) parts.push(`the ${count(now.shown.length)} that were added last are shown`);
      put(told, parts.filter(Boolean).join(" · "));
      put(error, now.damaged || now.error || "");
      table.hidden = !dynamic;
      if (now.shown) rows(body, now.shown, (entry) => entry.prefix, (entry) => entryRow(now.name)(entry), "Nobody is in it.");
    },
  };
}

const boxes = new Map();

export async function refreshLists() {
  lists = await ask("GET", "lists");
  const dynamic = lists.filter((list) => !list.loaded);
  for (const list of dynamic.slice(0, mostLists)) {
    list.shown = list.size ? (await ask("GET", `lists/${encodeURIComponent(list.name)}?limit=${mostEntries}`)).entries ?? [] : [];
  }
  const names = new Set(lists.map((list) => list.name));
  for (const [name, box] of boxes) {
    if (!names.has(name)) {
      box.node.remove();
      boxes.delete(name);
    }
  }
  for (const list of lists) {
    if (!boxes.has(list.name)) {
      boxes.set(list.name, listBox(list));
      id("lists-all").append(boxes.get(list.name).node);
    }
    boxes.get(list.name).show(list);
  }
  const none = id("lists-none") ?? el("p", { id: "lists-none", class: "empty" }, "The config names no lists.");
  if (lists.length) none.remove();
  else id("lists-all").append(none);
}
