// The tables of clients, mappings, upstreams, sessions and limits.

import { act, ask, bytes, cells, confirmed, count, duration, el, id, plural, put, rate, rows, setState, stateOf } from "./dom.js";
import { openBan } from "./bans.js";

const mostShown = 100; // sessions
const filter = id("filter");
let upstreams = []; // as they were told last
let poke = () => {}; // has the tables of these names asked for again

export const onPoke = (f) => { poke = f; };

// stateKinds say how good the states of upstreams are. What is not here is bad.
const stateKinds = { up: "good", slow_start: "warn", half_open: "warn", drain: "off", maint: "off" };
const stateWords = { drain: "drained", maint: "maintenance", slow_start: "slow start", half_open: "on trial", open: "breaker open" };
const unable = ["down", "ejected", "open", "drain", "maint"]; // to take new sessions

// --- Clients

function clientRow(client) {
  const [who, actions, sessions, up, down, moved] = cells("th", "changes", "n", "n", "n", "n");
  const ip = client.client_ip;
  who.append(el("a", { href: "#sessions", title: `Sessions of ${ip}`, onclick: () => showSessionsOf(ip) }, ip));
  actions.append(el("button", { type: "button", class: "danger", "aria-label": `Ban ${ip}`, onclick: () => openBan(ip) }, "Ban"));
  return {
    node: el("tr", {}, who, actions, sessions, up, down, moved),
    show(now) {
      put(sessions, count(now.sessions));
      put(up, rate(now.rate_up));
      put(down, rate(now.rate_down));
      put(moved, bytes(now.bytes_up + now.bytes_down));
    },
  };
}

export async function refreshClients() {
  const all = await ask("GET", `clients?limit=10&sort=${id("clients-sort").value}`);
  rows(id("clients-rows"), all, (client) => client.client_ip, clientRow, "Nobody is connected.");
}

id("clients-sort").addEventListener("change", () => poke("clients"));

function showSessionsOf(client) {
  filter.reset();
  filter.elements.client.value = client;
  poke("sessions");
}

// --- Mappings

function mappingRow(mapping) {
  const [listens, network, to, state, sessions, total, up, down] = cells("th", "", "wrap", "", "n", "n", "n", "n");
  const shown = stateOf("unknown", "");
  state.append(shown);
  put(listens, mapping.listener);
  put(network, mapping.network);
  return {
    node: el("tr", {}, listens, network, to, state, sessions, total, up, down),
    show(now) {
      put(to, now.upstreams.join(", "));
      const all = upstreams.filter((u) => now.upstreams.includes(u.name));
      const able = new Set(all.filter((u) => !unable.includes(u.state)).map((u) => u.name)).size;
      const of = new Set(all.map((u) => u.name)).size;
      setState(shown, !of ? "unknown" : able === 0 ? "bad" : able < of ? "warn" : "good", of ? `${able} of ${of} can take sessions` : "unknown");
      put(sessions, count(now.sessions));
      put(total, count(now.sessions_total));
      put(up, rate(now.rate_up));
      put(down, rate(now.rate_down));
    },
  };
}

export async function refreshMappings() {
  const [mappings, all] = await Promise.all([ask("GET", "mappings"), ask("GET", "upstreams")]);
  upstreams = all;
  rows(id("mappings-rows"), mappings, (m) => `${m.network} ${m.listener}`, mappingRow, "Nothing is forwarded.");
  options("listener", mappings.map((m) => m.listener));
  options("upstream", all.map((u) => u.name));
}

// options are what a field of the filter offers.
function options(name, values) {
  const field = filter.elements[name], chosen = field.value;
  const wanted = [...new Set([...values, ...(chosen ? [chosen] : [])])].sort();
  const has = [...field.options].slice(1).map((option) => option.value);
  if (wanted.join("\n") === has.join("\n")) return;
  field.replaceChildren(field.options[0], ...wanted.map((value) => el("option", { value }, value)));
  field.value = chosen;
}

// --- Upstreams

function setUpstream(button, name, state, done) {
  act(button, async () => {
    await ask("PATCH", `upstreams/${encodeURIComponent(name)}`, { state });
    return done;
  }, () => poke("upstreams", "mappings"));
}

function upstreamRow(upstream) {
  const [who, state, actions, weight, sessions, queued, error, of] = cells("th", "", "changes", "n", "n", "n", "wrap", "wrap");
  const { name } = upstream, shown = stateOf("unknown", "");
  let isOut = false;
  const button = el("button", { type: "button", onclick: () => {
    if (isOut) setUpstream(button, name, "ready", `${name} takes new sessions again.`);
    else setUpstream(button, name, "drain", `${name} is drained: it takes no new sessions, and those that it has go on.`);
  } });
  put(who, name);
  put(of, upstream.handler ?? "");
  state.append(shown);
  actions.append(button);
  return {
    node: el("tr", {}, who, state, actions, weight, sessions, queued, error, of),
    show(now) {
      isOut = now.state === "drain" || now.state === "maint";
      setState(shown, stateKinds[now.state] ?? "bad", stateWords[now.state] ?? now.state);
      put(weight, now.configured_weight === undefined ? count(now.weight) : `${now.weight}, set (${now.configured_weight})`);
      put(sessions, count(now.sessions));
      put(queued, count(now.queued));
      put(error, now.last_error ?? "");
      put(button, isOut ? "Undrain" : "Drain");
      button.setAttribute("aria-label", `${isOut ? "Undrain" : "Drain"} ${name}`);
    },
  };
}

export async function refreshUpstreams() {
  upstreams = await ask("GET", "upstreams");
  rows(id("upstreams-rows"), upstreams, (u) => `${u.name} ${u.handler}`, upstreamRow, "The config has no upstreams.");
}

// --- Sessions

function sessionRow(session) {
  const [who, actions, listener, upstream, state, up, down, moved, age, idle] = cells("th", "changes", "", "", "", "n", "n", "n", "n", "n");
  const key = session.session_id, client = clientOf(session);
  put(who, client);
  put(listener, `${session.network} ${session.listener}`);
  const button = el("button", { type: "button", "aria-label": `Close the session of ${client}`, onclick: () => {
    act(button, async () => {
      await ask("DELETE", `sessions/${key}`);
      return `The session of ${client} is closed.`;
    }, () => poke("sessions", "clients"));
  } }, "Close");
  actions.append(button);
  return {
    node: el("tr", {}, who, actions, listener, upstream, state, up, down, moved, age, idle),
    show(now) {
      put(upstream, now.upstream);
      put(state, now.replaced ? `${now.state}, of a replaced config` : now.state);
      put(up, rate(now.rate_up));
      put(down, rate(now.rate_down));
      put(moved, bytes(now.bytes_up + now.bytes_down));
      put(age, duration(now.duration));
      put(idle, duration(now.idle));
    },
  };
}

const clientOf = (session) => {
  if (!session.client_ip) return "a local program";
  return session.client_ip.includes(":") ? `[${session.client_ip}]:${session.client_port}` : `${session.client_ip}:${session.client_port}`;
};

// chosen is what the filter says, as the gateway takes it.
function chosen() {
  const query = new URLSearchParams();
  for (const name of ["client", "listener", "upstream", "network"]) {
    const value = filter.elements[name].value.trim();
    if (value) query.append(name, value);
  }
  return query;
}

export async function refreshSessions() {
  const query = chosen(), narrow = query.has("client") || query.has("listener") || query.has("upstream");
  const listed = new URLSearchParams(query);
  listed.set("sort", filter.elements.sort.value);
  listed.set("limit", mostShown + 1);
  let all;
  try {
    all = await ask("GET", `sessions?${listed}`);
  } catch (error) {
    put(id("sessions-note"), error.message);
    id("close-found").hidden = true;
    rows(id("sessions-rows"), [], (s) => s.session_id, sessionRow, "–");
    return;
  }
  const more = all.length > mostShown;
  rows(id("sessions-rows"), all.slice(0, mostShown), (s) => s.session_id, sessionRow, "No session is like that.");
  put(id("sessions-note"), more ? `The first ${mostShown} are shown. There are more: filter them.` : plural(all.length, "session"));
  id("close-found").hidden = !narrow || all.length === 0;
  put(id("close-found"), more ? "Close all of these" : `Close these ${all.length}`);
}

id("close-found").addEventListener("click", async (event) => {
  const button = event.currentTarget, query = chosen();
  const which = [...query].map(([name, value]) => `${name} ${value}`).join(", ");
  if (!(await confirmed("Close these sessions?", `All sessions with ${which} are closed. Their clients may come back at once; ban them to keep them out.`, "Close them"))) return;
  act(button, async () => {
    const { closed } = await ask("DELETE", `sessions?${query}`);
    return `${plural(closed, "session")} closed.`;
  }, () => poke("sessions", "clients"));
});

filter.addEventListener("submit", (event) => {
  event.preventDefault();
  poke("sessions");
});
filter.addEventListener("change", () => poke("sessions"));
filter.addEventListener("reset", () => setTimeout(() => poke("sessions")));

// --- Limits

function limitRow(usage) {
  const [who, limit, handler, used] = cells("th", "", "", "");
  const bar = el("meter", { min: "0", max: "1", high: "0.8", optimum: "0", "aria-label": `Used by ${usage.key}` }), text = el("span");
  used.append(bar, " ", text);
  return {
    node: el("tr", {}, who, limit, handler, used),
    show(now) {
      put(who, now.key);
      put(limit, now.limit);
      put(handler, now.name ?? "");
      bar.value = now.used;
      put(text, `${Math.round(now.used * 100)} %${now.used >= 1 ? ", at the limit" : ""}`);
    },
  };
}

export async function refreshLimits() {
  const all = await ask("GET", "limits?top=10");
  rows(id("limits-rows"), all, (u) => `${u.name} ${u.limit} ${u.key}`, limitRow, "Nobody uses up anything of a limit.");
}
