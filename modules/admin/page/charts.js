// Lines over the last 15 minutes, as SVG. Each series has a colour and a dash pattern, and its value in words.

import { el, id, put } from "./dom.js";

const span = 15 * 60;
const height = 144;
const left = 62; // for the numbers of the axis
const bottom = 18;
const top = 8;

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ceiling is the next of 1, 2 and 5 times a power of ten.
function ceiling(n) {
  if (!(n > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 5, 10].find((step) => step * power >= n) * power;
}

export class Chart {
  // series returns [{name, values}], where a value is null where nothing is known; format makes a text of one.
  constructor(title, format, series) {
    Object.assign(this, { title, format, series, points: [], cursor: null, width: 300 });
    this.plot = svg("svg", { role: "img", tabindex: "0" });
    this.at = el("p", { class: "at", "aria-live": "polite" });
    this.legend = el("ul", { class: "legend" });
    id("chart-list").append(el("figure", {}, el("figcaption", {}, el("h3", {}, title)), this.plot, this.legend, this.at));
    this.plot.addEventListener("pointermove", (event) => this.pointAt(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.read(null));
    this.plot.addEventListener("blur", () => this.read(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(([entry]) => {
      this.width = Math.max(200, Math.round(entry.contentRect.width));
      this.draw();
    }).observe(this.plot);
  }

  show(points) {
    this.points = points;
    this.draw();
  }

  x(at) {
    const end = this.points.length ? this.points[this.points.length - 1].at : 0;
    return left + (this.width - left - 4) * (1 - (end - at) / span);
  }

  draw() {
    if (!this.points.length) return;
    this.lines = this.series(this.points);
    const most = ceiling(Math.max(...this.lines.flatMap((line) => line.values.map((v) => v ?? 0))));
    const y = (value) => top + (height - top - bottom) * (1 - value / most);
    this.plot.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    const drawn = [...this.axes(most, y)];
    this.lines.forEach((line, i) => drawn.push(svg("path", { class: `series s${i + 1}`, d: this.path(line.values, y) })));
    if (this.cursor !== null && this.points[this.cursor]) {
      const x = this.x(this.points[this.cursor].at);
      drawn.push(svg("line", { class: "cursor", x1: x, x2: x, y1: top, y2: height - bottom }));
    }
    this.plot.replaceChildren(...drawn);
    this.describe();
  }

  *axes(most, y) {
    for (const part of [0, 0.5, 1]) {
      const at = y(most * part);
      yield svg("line", { class: "grid", x1: left, x2: this.width, y1: at, y2: at });
      yield svg("text", { class: "axis", x: left - 6, y: at + 4, "text-anchor": "end" }, this.format(most * part));
    }
    const end = this.points[this.points.length - 1].at;
    for (const minutes of [15, 10, 5, 0]) {
      const anchor = minutes === 15 ? "start" : minutes === 0 ? "end" : "middle";
      yield svg("text", { class: "axis", x: this.x(end - minutes * 60), y: height - 4, "text-anchor": anchor }, minutes ? `−${minutes} min` : "now");
    }
  }

  path(values, y) {
    let text = "", gap = true;
    values.forEach((value, i) => {
      const known = value !== null && value !== undefined;
      if (known) text += `${gap ? "M" : "L"}${this.x(this.points[i].at).toFixed(1)} ${y(value).toFixed(1)}`;
      gap = !known;
    });
    return text;
  }

  // describe says in words what the lines show: to all in the legend, and to a screen reader as what the image is.
  describe() {
    const last = this.points.length - 1;
    const said = this.lines.map((line) => {
      const known = line.values.filter((v) => v !== null && v !== undefined);
      const now = line.values[last];
      return [line.name, now ?? 0, known.length ? Math.max(...known) : 0];
    });
    while (this.legend.children.length > said.length) this.legend.lastChild.remove();
    said.forEach(([name, now], i) => {
      let item = this.legend.children[i];
      if (!item) {
        item = el("li", {}, svg("svg", { "aria-hidden": "true", viewBox: "0 0 28 8" }, svg("path", { class: `series s${i + 1}`, d: "M0 4H28" })), el("span"));
        this.legend.append(item);
      }
      put(item.lastChild, `${name} ${this.format(now)}`);
    });
    const text = said.map(([name, now, most]) => `${name} ${this.format(now)} now, at most ${this.format(most)}`).join("; ");
    this.plot.setAttribute("aria-label", `${this.title}, the last 15 minutes: ${text || "nothing"}.`);
  }

  pointAt(x) {
    if (!this.points.length) return;
    let nearest = 0;
    this.points.forEach((point, i) => {
      if (Math.abs(this.x(point.at) - x) < Math.abs(this.x(this.points[nearest].at) - x)) nearest = i;
    });
    this.read(nearest);
  }

  key(event) {
    const last = this.points.length - 1;
    const from = this.cursor ?? last + 1;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from - 12, PageDown: from + 12, Home: 0, End: last }[event.key];
    if (event.key === "Escape") return this.read(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.read(Math.min(last, Math.max(0, to)));
  }

  read(cursor) {
    if (cursor === this.cursor) return;
    this.cursor = cursor;
    this.draw();
    if (cursor === null || !this.points[cursor]) return put(this.at, "");
    const at = new Date(this.points[cursor].at * 1000).toLocaleTimeString("sv");
    const values = this.lines.map((line) => {
      const value = line.values[cursor];
      return `${line.name} ${value === null || value === undefined ? "unknown" : this.format(value)}`;
    });
    put(this.at, `${at}: ${values.join(", ") || "none"}`);
  }
}
