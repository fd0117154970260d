// The status page: one stream of events, and requests for the tables that somebody can see.

import { ask, clock, count, duration, el, id, plural, put, rate, setState } from "./dom.js";
import { loadHistory, note } from "./history.js";
import { onChange, refreshLists } from "./bans.js";
import { onPoke, refreshClients, refreshLimits, refreshMappings, refreshSessions, refreshUpstreams } from "./tables.js";

// --- Tables

// tables are asked for at these intervals in seconds while they are in the window and the stream is open. One that takes the gateway long
// is asked for less often: a list of many sessions should not be what the gateway is busy with.
const tables = {
  clients: { every: 2, refresh: refreshClients },
  mappings: { every: 4, refresh: refreshMappings },
  upstreams: { every: 4, refresh: refreshUpstreams },
  sessions: { every: 3, refresh: refreshSessions },
  lists: { every: 10, refresh: refreshLists },
  limits: { every: 4, refresh: refreshLimits },
};
const restsFor = 10; // times as long as an answer took

const watcher = new IntersectionObserver((all) => {
  for (const { target, isIntersecting } of all) {
    tables[target.id].visible = isIntersecting;
    if (isIntersecting) refresh(tables[target.id]);
  }
}, { rootMargin: "100px" });

async function refresh(table, now = false) {
  const due = performance.now() >= (table.next ?? 0);
  if (table.busy) {
    table.again ||= now;
    return;
  }
  if (!now && !due) return;
  table.busy = true;
  const began = performance.now();
  try {
    await table.refresh();
    put(table.trouble, "");
  } catch (error) {
    put(table.trouble, error.message);
  }
  const took = performance.now() - began;
  table.next = began + Math.max(table.every * 1000 - 100, restsFor * took);
  table.busy = false;
  if (table.again) {
    table.again = false;
    refresh(table, true);
  }
}

for (const [name, table] of Object.entries(tables)) {
  table.trouble = el("p", { class: "error", role: "alert" });
  id(name).append(table.trouble);
  watcher.observe(id(name));
}

const poke = (...names) => names.forEach((name) => refresh(tables[name], true));
onPoke(poke);
onChange(() => poke("lists", "clients", "sessions"));

// --- What the stream tells

function showStatus(s) {
  put(id("now-up"), rate(s.rates.bytes_up));
  put(id("now-down"), rate(s.rates.bytes_down));
  put(id("now-sessions"), count(s.sessions.tcp + s.sessions.udp));
  put(id("now-split"), `${count(s.sessions.tcp)} TCP, ${count(s.sessions.udp)} UDP${s.sessions.replaced ? `; ${count(s.sessions.replaced)} of a replaced config` : ""}`);
  put(id("now-new"), `${count(s.rates.sessions)}/s`);
  put(id("now-refusals"), `${count(s.rates.refusals)}/s`);
  const { used, limit } = s.descriptors;
  put(id("now-descriptors"), used === undefined ? `of ${count(limit)}` : `${count(used)} of ${count(limit)}`);
  put(id("process"), `${s.version}, Caddy ${s.caddy_version}, up ${duration(s.uptime)}, ${plural(s.config.reloads.success, "reload")}`);
  showProblems(s);
  note(s);
}

function showProblems(s) {
  const all = s.degraded.map((d) => `Degraded since ${clock(d.since, true)}: ${d.reason} (${d.what})`);
  if (s.config.last_error) all.push(`The last config was rejected, and the one before goes on: ${s.config.last_error}`);
  if (s.descriptors.used > 0.9 * s.descriptors.limit) all.push("More than nine tenths of the descriptors are in use.");
  if (s.log_entries_dropped) all.push(`${plural(s.log_entries_dropped, "log entry", "log entries")} did not fit into a log's queue and were dropped.`);
  const list = id("problems");
  if (list.dataset.all !== all.join("\n")) {
    list.dataset.all = all.join("\n");
    list.replaceChildren(...all.map((text) => el("li", {}, text)));
  }
  id("health").hidden = all.length === 0;
}

const mostEvents = 100;
const seen = new Set();
const usual = new Set(["name", "time", "level", "message"]);
// concerns are the tables that an event is about.
const concerns = {
  reload: ["mappings", "upstreams", "lists", "limits"], upstream_up: ["upstreams", "mappings"], upstream_down: ["upstreams", "mappings"],
  upstream_set: ["upstreams", "mappings"], breaker_open: ["upstreams"], breaker_closed: ["upstreams"], ban: ["lists"], unban: ["lists"],
  sessions_closed: ["sessions", "clients"],
};
const levels = { info: ["good", "info"], warn: ["warn", "warning"], error: ["bad", "error"] };

function showEvent(event) {
  if (event.lastEventId && event.type !== "lost") {
    if (seen.has(event.lastEventId)) return;
    seen.add(event.lastEventId);
  }
  const e = JSON.parse(event.data), [state, word] = levels[e.level] ?? levels.info;
  const fields = Object.entries(e).filter(([name]) => !usual.has(name)).map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`);
  const list = id("events-rows");
  list.prepend(el("li", {}, el("time", { datetime: e.time }, clock(e.time, true)),
    el("span", { class: "state", "data-state": state }, el("span", { class: "mark", "aria-hidden": "true" }), word),
    el("strong", {}, e.name), el("span", {}, e.message), el("span", { class: "quiet" }, fields.join(" "))));
  while (list.children.length > mostEvents) list.lastChild.remove();
  const recent = Date.now() - Date.parse(e.time) < 10000;
  if (recent && e.level !== "info") put(id("heard"), `${word}: ${e.message}`);
  if (recent) for (const name of concerns[e.name] ?? []) if (tables[name].visible) refresh(tables[name], true);
}

// --- The stream

let stream = null;
let retry = 0;

function connect() {
  clearTimeout(retry);
  if (stream || document.hidden) return;
  stream = new EventSource("events?status=1s");
  stream.addEventListener("open", async () => {
    setState(id("link"), "good", "Live");
    try {
      await loadHistory();
    } catch { /* the stream goes on, and the charts with it */ }
  });
  stream.addEventListener("error", () => {
    setState(id("link"), "bad", "Not connected, trying again");
    if (stream.readyState === EventSource.CLOSED) { // refused: the browser does not come again by itself
      disconnect();
      retry = setTimeout(connect, 3000);
    }
  });
  stream.addEventListener("status", (event) => {
    showStatus(JSON.parse(event.data));
    for (const table of Object.values(tables)) if (table.visible) refresh(table);
  });
  for (const name of [...Object.keys(concerns), "config_rejected", "degraded", "restored", "lost"]) stream.addEventListener(name, showEvent);
}

function disconnect() {
  stream?.close();
  stream = null;
}

// A page that nobody sees has no stream: browsers allow a host few connections, and every tab would take one of them.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return connect();
  disconnect();
  setState(id("link"), "off", "Paused");
});
addEventListener("pagehide", disconnect);
addEventListener("pageshow", connect);

id("mode").hidden = document.documentElement.dataset.mode !== "read-only";
ask("GET", "status").then(showStatus, () => {});
connect();
