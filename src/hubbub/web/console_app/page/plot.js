// A line chart of the last minutes as SVG: values on the left, times below, and the value under the pointer.

const NAMESPACE = "http://www.w3.org/2000/svg";
const MIN_SECONDS = 60, MAX_SECONDS = 300;
const GAP_SECONDS = 5; // no line is drawn over a longer pause
const LEFT = 40, BOTTOM = 20, TOP = 8, RIGHT = 8;

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

function shape(parent, name, attributes, text = "") {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

/** The next number of the form 1, 2 or 5 times a power of ten. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

export class Plot {
  constructor(box, label) {
    this.box = box;
    this.points = [];
    this.svg = shape(box, "svg", { role: "img", "aria-label": label });
    this.pointer = null;
    new ResizeObserver(() => this.draw()).observe(box);
    box.addEventListener("pointermove", (event) => this.point(event.offsetX));
    box.addEventListener("pointerleave", () => this.point(null));
  }

  point(at) {
    this.pointer = at;
    this.draw();
  }

  /** `points` are pairs of a time in seconds and a value, or null. */
  show(points) {
    this.points = points;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.box;
    if (width === 0) return;
    const svg = this.svg;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const known = this.points.filter(([, value]) => value !== null);
    const now = this.points.at(-1)?.[0] ?? Date.now() / 1000;
    const most = roundUp(Math.max(4, ...known.map(([, value]) => value)));
    const span = Math.min(Math.max(now - (known[0]?.[0] ?? now), MIN_SECONDS), MAX_SECONDS);
    const x = (at) => LEFT + (width - LEFT - RIGHT) * (1 - (now - at) / span);
    const y = (value) => TOP + (height - TOP - BOTTOM) * (1 - value / most);
    for (const value of [0, most / 2, most]) {
      shape(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) });
      shape(svg, "text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, compact.format(value));
    }
    const step = span > 2 * MIN_SECONDS ? 60 : 20;
    for (let back = step; back < span; back += step) {
      const text = step === 60 ? `−${back / 60} min` : `−${back} s`;
      shape(svg, "text", { x: x(now - back), y: height - 4, "text-anchor": "middle" }, text);
    }
    const lines = [];
    let last = -Infinity;
    for (const [at, value] of known.filter(([at]) => now - at <= span)) {
      if (at - last > GAP_SECONDS) lines.push([]);
      lines.at(-1).push([x(at), y(value)]);
      last = at;
    }
    for (const line of lines) {
      const path = "M" + line.map(([left, top]) => `${left.toFixed(1)} ${top.toFixed(1)}`).join("L");
      shape(svg, "path", { class: "area", d: `${path}V${y(0)}H${line[0][0].toFixed(1)}Z` });
      shape(svg, "path", { class: "line", d: path });
    }
    if (this.pointer === null || known.length === 0) return;
    const distance = ([at]) => Math.abs(x(at) - this.pointer);
    const [at, value] = known.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    const time = new Date(at * 1000).toLocaleTimeString();
    const anchor = x(at) > width / 2 ? "end" : "start";
    shape(svg, "circle", { cx: x(at), cy: y(value), r: 3.5 });
    shape(svg, "text", { class: "value", x: x(at) + (anchor === "end" ? -8 : 8), y: TOP + 10, "text-anchor": anchor },
      `${value.toLocaleString("en", { maximumFractionDigits: 1 })} at ${time}`);
  }
}
