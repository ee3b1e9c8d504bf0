"use strict";
// Line and dot charts in plain SVG, shared by the two pages. Text of the data only ever becomes text nodes.
const SVG = "http://www.w3.org/2000/svg";
const color = (i) => i === "ink" ? "var(--ink)" : `var(--c${i % 6})`;
const commas = (n) => n === null || n === undefined ? "?" : Math.round(n).toLocaleString("en-US");

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (name === "style") node.style.cssText = value;
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

function s(tag, attributes = {}, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((v) => v >= raw) || raw;
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) out.push(Math.abs(v) < step / 1e6 ? 0 : v);
  return out;
}

function spread(values, least) {
  let low = Math.min(...values), high = Math.max(...values);
  const pad = Math.max((high - low) * 0.06, least);
  return [low - pad, high + pad];
}

const short = (v) => Math.abs(v) >= 1e6 ? `${+(v / 1e6).toFixed(2)}M` : Math.abs(v) >= 1e4 ? `${+(v / 1e3).toFixed(1)}k` : `${+v.toPrecision(4)}`;

// series: [{name, color, points: [[x, y, tip?]], line, dots, dashed, stairs, hollow}]; options: title, x, y (axis names), xTick, yTick (formats),
// least (smallest padding of [x, y]), yLow (fixed lower end), pick(point): what a click on a dot does
function chart(series, options) {
  const xTick = options.xTick || short, yTick = options.yTick || short, height = options.height || 230;
  const all = series.flatMap((one) => one.points);
  const plot = h("div", {class: "plot"}), card = h("div", {class: "card"}, h("h3", {}, options.title, h("span", {class: "unit"}, ` ${options.note || options.y}`)), plot);
  if (!all.length) {
    plot.append(h("p", {class: "soft"}, "The log has no data for this chart."));
    return card;
  }
  const least = options.least || [0, 1e-3];
  const [xLow, xHigh] = spread(all.map((p) => p[0]), least[0] || 1e-9);
  let [yLow, yHigh] = options.yLow === undefined ? spread(all.map((p) => p[1]), least[1]) : [options.yLow, Math.max(...all.map((p) => p[1]), 1e-9) * 1.08];
  if (options.yClip) yHigh = Math.min(yHigh, options.yClip(all.map((p) => p[1])));
  const tip = h("div", {class: "tip", hidden: true});
  const legend = h("ul", {class: "legend"});
  for (const one of series) if (one.name) legend.append(h("li", {}, h("span", {class: `key${one.line ? "" : " square"}`, style: `background:${color(one.color)}`}), one.name));
  if (all.some((p) => p.hollow)) legend.append(h("li", {}, h("span", {class: "key square", style: "border:2px solid var(--soft);border-radius:50%"}), "fails a check: no rank"));
  if (series.length > 1 || options.legend) card.append(legend);

  function draw() {
    const width = Math.max(260, plot.clientWidth || 520), left = 52, right = 22, top = 8, bottom = 38;
    const X = (v) => left + (v - xLow) / (xHigh - xLow || 1) * (width - left - right);
    const Y = (v) => top + (yHigh - Math.min(v, yHigh)) / (yHigh - yLow || 1) * (height - top - bottom);
    const svg = s("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: "0", "aria-label": `${options.title}: ${options.y} over ${options.x}; use the arrow keys to read values`});
    for (const v of ticks(yLow, yHigh, 5)) {
      svg.append(s("line", {x1: left, x2: width - right, y1: Y(v), y2: Y(v), stroke: "var(--line)"}), s("text", {x: left - 8, y: Y(v) + 4, "text-anchor": "end"}, yTick(v)));
    }
    const xTicks = options.xTicks ? options.xTicks(xLow, xHigh) : ticks(xLow, xHigh, Math.max(2, Math.floor(width / 110)));
    for (const v of xTicks) svg.append(s("text", {x: X(v), y: height - bottom + 18, "text-anchor": "middle"}, xTick(v)));
    svg.append(s("text", {x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle"}, options.x));
    if (options.mark && options.mark >= xLow && options.mark <= xHigh) {
      svg.append(s("line", {x1: X(options.mark), x2: X(options.mark), y1: top, y2: height - bottom, stroke: "var(--bad)", "stroke-dasharray": "2 3"}),
        s("text", {x: X(options.mark) + 5, y: top + 10, style: "fill:var(--bad)"}, "cap"));
    }
    for (const one of series) {
      if (one.line && one.points.length) {
        let path = "";
        one.points.forEach((p, i) => { path += !i ? `M${X(p[0])} ${Y(p[1])}` : one.stairs ? `H${X(p[0])}V${Y(p[1])}` : `L${X(p[0])} ${Y(p[1])}`; });
        if (one.stairs) path += `H${width - right}`;
        svg.append(s("path", {d: path, fill: "none", stroke: color(one.color), "stroke-width": one.stairs ? 1.5 : 2, "stroke-linejoin": "round",
          "stroke-dasharray": one.dashed ? "5 4" : "none", opacity: one.faint ? 0.45 : 1}));
      }
      if (one.dots || one.points.length === 1) for (const p of one.points) {
        const dot = s("circle", {cx: X(p[0]), cy: Y(p[1]), r: p.big ? 7 : 5, fill: p.hollow ? "var(--card)" : color(one.color), stroke: p.hollow ? color(one.color) : "var(--card)", "stroke-width": 2});
        if (options.pick) { dot.style.cursor = "pointer"; dot.addEventListener("click", () => options.pick(p)); }
        svg.append(dot);
      }
    }
    const guide = s("line", {y1: top, y2: height - bottom, stroke: "var(--soft)", "stroke-dasharray": "3 3", visibility: "hidden"});
    svg.append(guide);
    const places = [...new Set(series.filter((o) => !o.silent).flatMap((o) => o.points.map((p) => p[0])))].sort((a, b) => a - b);
    function show(v, y) {
      const lines = [];
      for (const one of series) {
        if (one.silent || !one.points.length) continue;
        if (one.dots && !one.line) {
          for (const p of one.points) if (p[0] === v && p[2]) lines.push([Math.abs(Y(p[1]) - (y ?? Y(p[1]))), p[2]]);
        } else {
          const near = one.points.reduce((a, b) => Math.abs(b[0] - v) < Math.abs(a[0] - v) ? b : a);
          lines.push([0, near[2] || `${one.name ? one.name + "  " : ""}${yTick(near[1])} at ${xTick(near[0])}`]);
        }
      }
      if (!lines.length) return hide();
      lines.sort((a, b) => a[0] - b[0]);
      tip.textContent = lines.slice(0, 4).map((l) => l[1]).join("\n");
      tip.hidden = false;
      guide.setAttribute("x1", X(v)); guide.setAttribute("x2", X(v)); guide.setAttribute("visibility", "visible");
      tip.style.left = `${Math.max(0, Math.min(X(v) + 12, width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${top + 4}px`;
    }
    function hide() { tip.hidden = true; guide.setAttribute("visibility", "hidden"); }
    let at = places.length - 1;
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * width / box.width, y = (event.clientY - box.top) * height / box.height;
      at = places.reduce((best, v, i) => Math.abs(X(v) - x) < Math.abs(X(places[best]) - x) ? i : best, 0);
      show(places[at], y);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (event.key === "Escape") hide();
      if (!move) return;
      event.preventDefault();
      at = Math.max(0, Math.min(places.length - 1, at + move));
      show(places[at]);
    });
    plot.replaceChildren(svg, tip);
  }
  let seen = 0;
  new ResizeObserver(() => { if (plot.clientWidth !== seen) { seen = plot.clientWidth; draw(); } }).observe(plot);
  draw();
  return card;
}

const PARTS = ["embedding", "attention", "mlp", "head", "controls", "scales", "model", "code"];
const PART_COLORS = {embedding: 0, attention: 2, mlp: 3, head: 4, controls: 5, scales: 1, model: 0, code: "ink"};

// The byte budget of one run as a bar: parts {name: bytes}, cap
function budgetBar(parts, cap) {
  const names = PARTS.filter((name) => parts[name]), used = names.reduce((sum, name) => sum + parts[name], 0), whole = Math.max(cap, used);
  const bar = h("div", {class: "budget", role: "img", "aria-label": `${commas(used)} of ${commas(cap)} bytes`});
  const legend = h("ul", {class: "legend"});
  for (const name of names) {
    bar.append(h("span", {style: `width:${100 * parts[name] / whole}%;background:${color(PART_COLORS[name])}`, title: `${name}: ${commas(parts[name])} bytes`}));
    legend.append(h("li", {}, h("span", {class: "key square", style: `background:${color(PART_COLORS[name])}`}), `${name} ${commas(parts[name])}`));
  }
  legend.append(h("li", {}, h("span", {class: "key square", style: "background:var(--rest)"}), used < cap ? `${commas(cap - 1 - used)} left` : `over by ${commas(used - cap + 1)}`));
  return h("div", {}, bar, legend);
}
