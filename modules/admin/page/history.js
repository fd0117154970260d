// What the charts show: the history that the gateway keeps, and behind it what the stream of events tells each second.

import { Chart } from "./charts.js";
import { ask, count, rate } from "./dom.js";

const kept = 15 * 60;
const mostReasons = 5;

let points = []; // {at, up, down, tcp, udp, begun, refused: {reason: per second}}; the last one moves until it is as wide as the others
let interval = 5;
let before = null; // the time, and the refusals until then, at which the last point begins

const perSecond = (n) => `${count(n)}/s`;

// reasons has the ones that there are most of, and the others together.
function reasons(all) {
  const sums = new Map();
  for (const point of all) {
    for (const [reason, n] of Object.entries(point.refused ?? {})) sums.set(reason, (sums.get(reason) ?? 0) + n);
  }
  const names = [...sums.keys()].sort((a, b) => sums.get(b) - sums.get(a) || (a < b ? -1 : 1));
  const own = names.slice(0, mostReasons), others = names.slice(mostReasons);
  const of = (which) => all.map((point) => (point.refused ? which.reduce((sum, name) => sum + (point.refused[name] ?? 0), 0) : null));
  const lines = own.map((name) => ({ name, values: of([name]) }));
  if (others.length) lines.push({ name: "others", values: of(others) });
  return lines.length ? lines : [{ name: "refusals", values: of([]) }];
}

const line = (name, field) => ({ name, field });
const plain = (...lines) => (all) => lines.map(({ name, field }) => ({ name, values: all.map((point) => point[field]) }));

const charts = [
  new Chart("Throughput", rate, plain(line("up", "up"), line("down", "down"))),
  new Chart("Sessions", count, plain(line("TCP", "tcp"), line("UDP", "udp"))),
  new Chart("New sessions", perSecond, plain(line("new", "begun"))),
  new Chart("Refusals by reason", perSecond, reasons),
];

const show = () => charts.forEach((chart) => chart.show(points));

export async function loadHistory() {
  const h = await ask("GET", "history");
  const end = Date.parse(h.end) / 1000, n = h.bytes_up.length;
  interval = h.interval;
  points = h.bytes_up.map((up, i) => ({
    at: end - (n - 1 - i) * interval, up, down: h.bytes_down[i], tcp: h.sessions_tcp[i], udp: h.sessions_udp[i], begun: h.new_sessions[i],
    refused: up === null ? null : Object.fromEntries(Object.entries(h.refusals).map(([reason, all]) => [reason, all[i] ?? 0])),
  }));
  before = null;
  show();
}

// note takes what the stream tells. The gateway's clock counts, not that of the browser.
export function note(status) {
  if (!points.length) return;
  const at = Date.parse(status.started) / 1000 + status.uptime;
  before ??= { at, refusals: status.refusals };
  const seconds = at - before.at;
  const refused = {};
  for (const [reason, n] of Object.entries(status.refusals)) {
    const more = n - (before.refusals[reason] ?? 0);
    if (more > 0 && seconds > 0) refused[reason] = more / seconds;
  }
  const point = {
    at, up: status.rates.bytes_up, down: status.rates.bytes_down, tcp: status.sessions.tcp, udp: status.sessions.udp,
    begun: status.rates.sessions, refused, moving: true,
  };
  if (points[points.length - 1].moving) points.pop();
  if (seconds >= interval) {
    point.moving = false;
    before = { at, refusals: status.refusals };
  }
  points.push(point);
  points = points.filter((p) => p.at > at - kept);
  show();
}
