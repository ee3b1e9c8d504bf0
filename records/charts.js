"use strict";
// Elements, line and dot charts in plain SVG, byte bars and tables, shared by the two pages. Text of the data only ever
// becomes text nodes and attributes.
const SVG = "http://www.w3.org/2000/svg";
const HUES = 6;
const color = (i) => typeof i === "string" ? `var(--${i})` : `var(--c${i % HUES})`;
const commas = (n) => n === null || n === undefined ? "?" : Math.round(n).toLocaleString("en-US");
const fixed = (v, digits = 4) => v === null || v === undefined ? "?" : v.toFixed(digits);

// The text, or its first and last characters: names of runs differ at their ends.
function cut(text, most) {
  const chars = [...text], tail = Math.floor(most / 3);
  if (chars.length <= most) return text;
  return `${chars.slice(0, most - tail - 1).join("")}\u2026${chars.slice(-tail).join("")}`;
}

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

// A box that scrolls sideways, by keyboard too, with a line above it that says so while there is more than fits.
function scroller(label, ...children) {
  const box = h("div", {class: "scroll", role: "region", "aria-label": label}, ...children);
  const hint = h("p", {class: "hint soft", hidden: true}, "There is more to the right: scroll sideways.");
  new ResizeObserver(() => {
    const more = box.scrollWidth > box.clientWidth + 1;
    hint.hidden = !more;
    if (more) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }).observe(box);
  return h("div", {}, hint, box);
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((v) => v >= 0.8 * raw) || raw;
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) {
    out.push(Math.abs(v) < step / 1e6 ? 0 : v);
  }
  return out;
}

function spread(values, least) {
  const low = Math.min(...values), high = Math.max(...values), pad = Math.max((high - low) * 0.06, least);
  return [low - pad, high + pad];
}

function short(v) {
  if (Math.abs(v) >= 1e6) return `${+(v / 1e6).toFixed(2)}M`;
  return Math.abs(v) >= 1e4 ? `${+(v / 1e3).toFixed(1)}k` : `${+v.toPrecision(4)}`;
}

// The first losses are far above the rest: the upper end of the axis is 1.1 times what 97 % of the values stay below.
function withoutTheFirst(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(0.97 * (sorted.length - 1))] * 1.1;
}

function keyOf(one) {
  const shape = one.hollow ? "hollow" : one.dashed ? "dashed" : one.line ? "" : "square";
  return h("span", {class: `key ${shape}`, style: `color:${color(one.color)}`});
}

function legendOf(series) {
  return h("ul", {class: "legend"},
    ...series.filter((one) => one.name).map((one) => h("li", {}, keyOf(one), h("span", {}, one.name))));
}

// series: [{name, color, points: [[x, y, tip?]], line, dots, dashed, stairs, hollow, silent}].
// options: title, x, y (axis names), note (instead of y in the title), xTick, yTick (formats), xTicks(low, high), mark
// (x of the cap), least (smallest padding of [x, y]), yLow (fixed lower end), yClip(values) (upper end), yFrom (values
// that set the range of y: what lies outside is drawn at the edge), legend, pick(point): what a click or Enter does.
function chart(series, options) {
  const plot = h("div", {class: "plot"}), unit = h("span", {class: "unit"}, ` ${options.note || options.y}`);
  const card = h("div", {class: "card"}, h("h3", {}, options.title, unit), plot);
  const all = series.flatMap((one) => one.points);
  if (!all.length) {
    plot.append(h("p", {class: "soft"}, "There is no data for this chart."));
    return card;
  }
  const least = options.least || [1, 1e-3];
  const ys = options.yFrom && options.yFrom.length ? options.yFrom : all.map((p) => p[1]);
  const range = {x: spread(all.map((p) => p[0]), least[0]), y: spread(ys, least[1])};
  if (options.yLow !== undefined) range.y = [options.yLow, Math.max(...ys, 1e-9) * 1.08];
  if (options.yClip) range.y[1] = Math.min(range.y[1], options.yClip(ys));
  if (options.legend) card.append(legendOf(series));
  let seen = -1;
  const draw = () => {
    if (plot.clientWidth === seen) return;
    seen = plot.clientWidth;
    drawChart(plot, series, options, range);
  };
  new ResizeObserver(draw).observe(plot);
  draw();
  return card;
}

function drawChart(plot, series, options, range) {
  const width = Math.max(240, plot.clientWidth || 520), height = 230, left = 54, right = 26, top = 8, bottom = 40;
  const xTick = options.xTick || short, yTick = options.yTick || short;
  const [xLow, xHigh] = range.x, [yLow, yHigh] = range.y;
  const X = (v) => left + (v - xLow) / (xHigh - xLow || 1) * (width - left - right);
  const Y = (v) => top + (yHigh - Math.max(yLow, Math.min(v, yHigh))) / (yHigh - yLow || 1) * (height - top - bottom);
  const use = `use the arrow keys to read values${options.pick ? ", Enter to open a run" : ""}`;
  const label = `${options.title}: ${options.y} over ${options.x}; ${use}`;
  const svg = s("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: "0", "aria-label": label});
  for (const v of ticks(yLow, yHigh, 5)) {
    svg.append(s("line", {x1: left, x2: width - right, y1: Y(v), y2: Y(v), stroke: "var(--line)"}));
    svg.append(s("text", {x: left - 8, y: Y(v) + 4, "text-anchor": "end"}, yTick(v)));
  }
  const whole = (v) => Math.abs(v - Math.round(v)) < 1e-9;  // steps and bytes
  const xTicks = options.xTicks || ((low, high) => ticks(low, high, Math.floor(width / 90)).filter(whole));
  for (const v of xTicks(xLow, xHigh)) {
    svg.append(s("text", {x: X(v), y: height - bottom + 18, "text-anchor": "middle"}, xTick(v)));
  }
  svg.append(s("text", {x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle"}, options.x));
  if (options.mark && options.mark >= xLow && options.mark <= xHigh) {
    const x = X(options.mark), dashes = {stroke: "var(--bad)", "stroke-dasharray": "2 3"};
    svg.append(s("line", {x1: x, x2: x, y1: top, y2: height - bottom, ...dashes}));
    svg.append(s("text", {x: x - 5, y: top + 10, "text-anchor": "end", style: "fill:var(--bad)"}, "cap"));
  }
  for (const one of series) {
    if (one.line && one.points.length) svg.append(lineOf(one, X, Y, width - right));
    if (one.dots || one.points.length === 1) svg.append(...one.points.map((p) => dotOf(one, p, X, Y, options.pick)));
  }
  const tip = h("div", {class: "tip", "aria-live": "polite", hidden: true});
  plot.replaceChildren(svg, tip);
  readValues(svg, tip, series, {X, Y, xTick, yTick, width, top, bottom: height - bottom, pick: options.pick});
}

function lineOf(one, X, Y, end) {
  let path = "";
  one.points.forEach((p, i) => {
    if (!i) path += `M${X(p[0])} ${Y(p[1])}`;
    else path += one.stairs ? `H${X(p[0])}V${Y(p[1])}` : `L${X(p[0])} ${Y(p[1])}`;
  });
  if (one.stairs) path += `H${end}`;
  return s("path", {d: path, fill: "none", stroke: color(one.color), "stroke-width": one.stairs ? 1.5 : 2,
    "stroke-linejoin": "round", "stroke-dasharray": one.dashed ? "5 4" : "none"});
}

function dotOf(one, p, X, Y, pick) {
  const own = color(one.color), card = "var(--card)";
  const paint = one.hollow ? {fill: card, stroke: own} : {fill: own, stroke: card};
  const dot = s("circle", {cx: X(p[0]), cy: Y(p[1]), r: p.big ? 7 : 5, "stroke-width": 2, ...paint});
  if (pick) {
    dot.style.cursor = "pointer";
    dot.addEventListener("click", () => pick(p));
  }
  return dot;
}

const TIP_LINES = 12;

// The values at one x under the pointer, or where the arrow keys have gone.
function readValues(svg, tip, series, {X, Y, xTick, yTick, width, top, bottom, pick}) {
  const dashes = {stroke: "var(--soft)", "stroke-dasharray": "3 3"};
  const guide = s("line", {y1: top, y2: bottom, visibility: "hidden", ...dashes});
  svg.append(guide);
  const heard = series.filter((one) => !one.silent && one.points.length);
  const places = [...new Set(heard.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => a - b);
  let at = places.length - 1, nearest = null;

  function hide() {
    tip.hidden = true;
    guide.setAttribute("visibility", "hidden");
  }
  function show(v, y) {
    const found = [];  // [distance from the pointer, words, point]
    for (const one of heard) {
      if (one.line) {
        const p = one.points.reduce((a, b) => Math.abs(b[0] - v) < Math.abs(a[0] - v) ? b : a);
        found.push([0, `${cut(one.name, 40)}  ${yTick(p[1])} at ${xTick(p[0])}`.trim(), p]);
      } else {
        for (const p of one.points) if (p[0] === v) found.push([Math.abs(Y(p[1]) - (y ?? Y(p[1]))), p[2], p]);
      }
    }
    if (!found.length) return hide();
    found.sort((a, b) => a[0] - b[0]);
    nearest = found[0][2];
    const most = heard.some((one) => one.line) ? TIP_LINES : 3, more = found.length - most;
    tip.textContent = [...found.slice(0, most).map((f) => f[1]), ...(more > 0 ? [`and ${more} more`] : [])].join("\n");
    tip.hidden = false;
    for (const end of ["x1", "x2"]) guide.setAttribute(end, X(v));
    guide.setAttribute("visibility", "visible");
    tip.style.left = 0;  // to measure it at its full width
    tip.style.left = `${Math.max(0, Math.min(X(v) + 12, width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${top + 4}px`;
  }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    at = places.reduce((best, v, i) => Math.abs(X(v) - x) < Math.abs(X(places[best]) - x) ? i : best, 0);
    show(places[at], y);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (event.key === "Escape") hide();
    if (event.key === "Enter" && pick && !tip.hidden) {
      event.preventDefault();  // or the key would press what gets the focus
      pick(nearest);
    }
    if (!move) return;
    event.preventDefault();
    at = tip.hidden ? at : Math.max(0, Math.min(places.length - 1, at + move));
    show(places[at]);
  });
}

const PART_COLORS = {embedding: 0, attention: 2, mlp: 3, head: 4, controls: 5, scales: 1, model: "soft",
  code: "ink", rest: 1, all: "soft"};
const PART_NAMES = {rest: "neither model nor code", all: "model and code"};

// Bytes of a run by part {name: bytes}: groups of the model file where it is known, else the model; and the code. What
// the stated total has beyond them is `rest`.
function partsOf(groups, {total, model, code}) {
  const parts = groups && Object.keys(groups).length ? {...groups} : model ? {model} : {};
  if (code) parts.code = code;
  const used = Object.values(parts).reduce((sum, bytes) => sum + bytes, 0);
  if (total > used) parts[used ? "rest" : "all"] = total - used;
  return parts;
}

// What a total is made of, `= model + code`; with the sign that is true where all three are known and do not add up.
function addends({total, model, code}) {
  const off = total !== null && model !== null && code !== null && total !== model + code;
  return `${off ? "\u2260" : "="} ${commas(model)} + ${commas(code)}`;
}

// The byte budget of one run as a bar.
function budgetBar(parts, cap) {
  const names = Object.keys(PART_COLORS).filter((name) => parts[name]);
  const used = names.reduce((all, name) => all + parts[name], 0);
  if (!used) return h("p", {class: "soft"}, "No bytes are stated.");
  const whole = Math.max(cap, used);
  const bar = h("div", {class: "budget", role: "img", "aria-label": `${commas(used)} of ${commas(cap)} bytes`});
  const legend = h("ul", {class: "legend"});
  const entry = (paint, words) => {
    legend.append(h("li", {}, h("span", {class: "key square", style: `color:${paint}`}), h("span", {}, words)));
  };
  for (const name of names) {
    const paint = color(PART_COLORS[name]), words = `${PART_NAMES[name] || name} ${commas(parts[name])}`;
    bar.append(h("span", {style: `width:${100 * parts[name] / whole}%;background:${paint}`, title: words}));
    entry(paint, words);
  }
  entry("var(--rest)", used < cap ? `${commas(cap - 1 - used)} left` : `over by ${commas(used - cap + 1)}`);
  return h("div", {}, bar, legend);
}
