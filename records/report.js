const DATA = JSON.parse(document.getElementById("data").textContent);
const runs = DATA.runs, page = document.getElementById("page");
const fixed = (v, n = 4) => v === null ? "?" : v.toFixed(n);
const percent = (v) => `${(100 * v).toFixed(2)} %`;

function lines(column, options) {
  const series = runs.map((run, i) => ({name: run.name, color: i, line: true, dots: column === "val" && run.val.length < 25, points: run[column].map(([x, y]) => [x, y])}));
  return chart(series, {x: "step", legend: true, ...options});
}

function summary() {
  const columns = [["run", (r) => r.name], ["val_bpb", (r) => fixed(r.bpb)], ["before int8", (r) => fixed(r.before)], ["steps", (r) => commas(r.steps)], ["seconds", (r) => commas(r.seconds)],
    ["bytes", (r) => commas(r.total)], ["peak MiB", (r) => commas(r.memory)], ["seed", (r) => `${r.seed ?? "?"}`], ["machine", (r) => r.device || "?"], ["data", (r) => r.data || "?"]];
  const right = (i) => i > 0 && i < 8 ? "right num" : "";
  return h("div", {class: "card tablecard"}, h("div", {class: "scroll"}, h("table", {class: "small"},
    h("thead", {}, h("tr", {}, ...columns.map(([title], i) => h("th", {scope: "col", class: right(i)}, title)))),
    h("tbody", {}, ...runs.map((run, n) => h("tr", {}, ...columns.map(([, cell], i) => h("td", {class: right(i)}, i ? null : h("span", {class: "dot", style: `background:${color(n)}`}), cell(run)))))))));
}

function budgets() {
  return h("div", {class: "card wide"}, h("h3", {}, "Byte budget by tensor group", h("span", {class: "unit"}, " shares of the model file, estimated from the entropy of each tensor's bytes")),
    ...runs.map((run) => h("div", {style: "margin-top:10px"}, h("div", {class: "soft"}, run.name), budgetBar({...run.groups, ...(run.code ? {code: run.code} : {})}, DATA.cap))));
}

function tensors() {
  const names = [...new Set(runs.flatMap((run) => run.tensors.filter((t) => t[4] !== null).map((t) => t[0])))];
  const of = runs.map((run) => new Map(run.tensors.map((t) => [t[0], t])));
  const most = Math.max(1e-9, ...runs.flatMap((run) => run.tensors.map((t) => t[4] ?? 0)));
  const bar = (t, n) => t ? h("div", {class: "budget", style: "height:8px;margin-top:4px", title: percent(t[4])}, h("span", {style: `width:${100 * t[4] / most}%;background:${color(n)}`})) : null;
  return h("div", {class: "card tablecard wide"}, h("h3", {style: "padding:14px 16px 6px"}, "Expected rounding error per tensor",
    h("span", {class: "unit"}, " step / \u221a12, relative to the tensor's root mean square; and the bytes of the tensor")),
    h("div", {class: "scroll"}, h("table", {class: "small"}, h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "tensor"), ...runs.map((run) => h("th", {scope: "col"}, run.name)))),
      h("tbody", {}, ...names.map((name) => h("tr", {}, h("td", {}, name), ...of.map((map, n) => { const t = map.get(name); return h("td", {class: "num"}, t ? h("div", {class: "pair"}, h("span", {}, percent(t[4])), h("span", {class: "soft"}, `${commas(t[3])} bytes`)) : "\u2013", bar(t, n)); })))))));
}

const clip = (values) => { const v = [...values].sort((a, b) => a - b); return v[Math.floor(0.97 * (v.length - 1))] * 1.1; };
page.replaceChildren(h("h1", {}, "Parity Golf runs"), h("p", {class: "soft"}, "Runs side by side. To read values, point at a curve, or focus it and use the arrow keys."), summary(),
  h("div", {class: "grid"},
    lines("train", {title: "Training loss", y: "nats per token", yTick: (v) => `${+v.toFixed(3)}`, yClip: clip}),
    lines("val", {title: "Validation", y: "bits per byte", yTick: (v) => `${+v.toFixed(4)}`}),
    lines("lr", {title: "Learning rate", y: "scale of all learning rates", yTick: (v) => `${+v.toFixed(3)}`, yLow: 0}),
    lines("rate", {title: "Throughput", y: "tokens per second, between log lines", yLow: 0}),
    budgets(), ...(runs.some((run) => run.tensors.length) ? [tensors()] : [])));
document.documentElement.dataset.ready = runs.length;
