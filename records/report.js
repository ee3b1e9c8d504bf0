const DATA = JSON.parse(document.getElementById("data").textContent);
const runs = DATA.runs, page = document.getElementById("page");
const percent = (v) => `${(100 * v).toFixed(2)} %`;
const FEW = 4;  // so many names fit below each chart
const isDashed = (i) => i >= HUES;  // the colours begin again
const SCORE = (v) => `${+v.toFixed(4)}`, LOSS = (v) => `${+v.toFixed(3)}`;

const seriesOf = (run, i) => ({name: run.name, color: i, dashed: isDashed(i), line: true});

function bytesOf(run) {
  return h("div", {}, commas(run.total), h("div", {class: "soft"}, addends(run)));
}

// [title, value, whether it is a number]
const COLUMNS = [
  ["run", (r) => r.name, false], ["val_bpb", (r) => fixed(r.bpb), true], ["before int8", (r) => fixed(r.before), true],
  ["steps", (r) => commas(r.steps), true], ["seconds", (r) => commas(r.seconds), true],
  ["bytes", bytesOf, true], ["peak MiB", (r) => commas(r.memory), true], ["seed", (r) => `${r.seed ?? "?"}`, true],
  ["machine", (r) => r.device || "?", false], ["data", (r) => r.data || "?", false],
];

// colored: whether each run stands beside the key of its curves
function table(shown, colored) {
  const side = (isNumber) => isNumber ? "right num" : "words";
  const head = COLUMNS.map(([title, , isNumber]) => h("th", {scope: "col", class: side(isNumber)}, title));
  const key = (run, n) => colored ? keyOf(seriesOf(run, n)) : null;
  const rows = shown.map((run, n) => h("tr", {}, h("td", {class: "lead"}, key(run, n), run.name),
    ...COLUMNS.slice(1).map(([title, value, isNumber]) =>
      h("td", {class: side(isNumber), "data-label": title}, value(run)))));
  return h("div", {class: "card tablecard"}, scroller("table of runs",
    h("table", {class: "small runs"}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows))));
}

function lines(column, options) {
  const series = runs.map((run, i) => ({...seriesOf(run, i), dots: column === "val" && run.val.length < 25,
    points: run[column].map(([x, y]) => [x, y])}));
  return chart(series, {x: "step", legend: runs.length <= FEW, ...options});
}

function budgets() {
  const note = " by tensor group where there is a model file, estimated from the entropy of its bytes";
  return h("div", {class: "card wide"}, h("h3", {}, "Byte budget", h("span", {class: "unit"}, note)),
    ...runs.map((run) => h("div", {class: "one"}, h("div", {class: "soft"}, run.name),
      budgetBar(partsOf(run.groups, run), DATA.cap))));
}

function tensors() {
  const shown = runs.map((run, n) => ({run, n, map: new Map(run.tensors.map((t) => [t[0], t]))}))
    .filter(({map}) => map.size);
  const names = [...new Set(shown.flatMap(({run}) => run.tensors.filter((t) => t[4] !== null).map((t) => t[0])))];
  const most = Math.max(1e-9, ...shown.flatMap(({run}) => run.tensors.map((t) => t[4] ?? 0)));
  const bar = (t, n) => h("div", {class: "budget"},
    h("span", {style: `width:${100 * t[4] / most}%;background:${color(n)}`}));
  const cell = (t, n) => t ? h("td", {class: "num"}, h("div", {class: "pair"}, h("span", {}, percent(t[4])),
    h("span", {class: "soft"}, `${commas(t[3])} bytes`)), bar(t, n)) : h("td", {}, "\u2013");
  const head = h("tr", {}, h("th", {scope: "col", class: "sticky"}, "tensor"),
    ...shown.map(({run}) => h("th", {scope: "col"}, run.name)));
  const rows = names.map((name) => h("tr", {}, h("th", {scope: "row", class: "sticky"}, name),
    ...shown.map(({map, n}) => cell(map.get(name), n))));
  const note = " step / \u221a12, relative to the tensor's root mean square; and the bytes of the tensor";
  const table = h("table", {class: "small tensors"}, h("thead", {}, head), h("tbody", {}, ...rows));
  return h("div", {class: "card tablecard wide"},
    h("h3", {class: "inset"}, "Expected rounding error per tensor", h("span", {class: "unit"}, note)),
    scroller("rounding error per tensor", table));
}

function sideBySide() {
  const distinct = (name) => [...new Set(runs.map((run) => run[name]))];
  const [groups, data] = [distinct("group"), distinct("data")];
  let warning = "";
  if (groups.length > 1) warning = `On different data (${groups.join(", ")}): do not compare losses and scores.`;
  else if (data.length > 1) {
    warning = `In different tokens (${data.join(", ")}): compare bits per byte, not nats per token.`;
  }
  const words = "Runs side by side. To read values, point at a curve, or focus it and use the arrow keys.";
  return [h("p", {class: "soft"}, words),
    warning ? h("p", {class: "warning"}, warning) : null, table(runs, true),
    h("div", {class: "grid"},
      runs.length > FEW ? h("div", {class: "card wide"}, legendOf(runs.map(seriesOf))) : "",
      lines("train", {title: "Training loss", y: "nats per token", yTick: LOSS, yClip: withoutTheFirst}),
      lines("val", {title: "Validation", y: "bits per byte", yTick: SCORE}),
      lines("lr", {title: "Learning rate", y: "scale of all learning rates", yTick: LOSS, yLow: 0}),
      lines("rate", {title: "Throughput", y: "tokens per second, between log lines", yLow: 0}),
      budgets(), runs.some((run) => run.tensors.length) ? tensors() : "")];
}

// Scores of many runs, those that can be compared together.
function summary() {
  const words = `${runs.length} runs, the best score first. For curves, give at most ${DATA.most}.`;
  const parts = [h("p", {class: "soft"}, words)];
  for (const group of new Set(runs.map((run) => run.group))) {
    const here = runs.filter((run) => run.group === group);
    const against = (title, x, value, least) => chart([{name: "runs", color: 0, dots: true,
      points: here.filter((run) => run.bpb !== null && value(run) !== null).map((run) =>
        [value(run), run.bpb, `${fixed(run.bpb)}  ${cut(run.name, 40)}`])}],
    {title, x, y: "bits per byte", yTick: SCORE, least, mark: title.includes("bytes") ? DATA.cap : null});
    parts.push(h("h2", {}, group), h("div", {class: "grid"},
      against("Score against bytes", "total bytes", (run) => run.total, [2e4, 0.004]),
      against("Score against steps", "steps", (run) => run.steps, [1, 0.004])), table(here, false));
  }
  return parts;
}

const parts = DATA.summary ? summary() : sideBySide();
page.replaceChildren(h("h1", {}, "Parity Golf runs"), ...parts.filter((part) => part));
document.documentElement.dataset.ready = runs.length;
