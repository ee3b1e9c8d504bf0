const DATA = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const DAY = 864e5, TRACKS = Object.keys(DATA.titles), SHORT = {track_10min_16mb: "10 minutes", track_non_record_16mb: "non-record"};
const state = {track: "", open: location.hash.slice(1), sort: "rank", up: true};
const day = (e) => Date.parse(e.date) || 0;
const idOf = (e) => `${e.track}/${e.folder}`;
const hue = (e) => TRACKS.indexOf(e.track);
const bpb = (v) => v === null || v >= 100 ? "?" : v.toFixed(4);
const tone = (e) => e.founding ? "" : {fails: "bad", passes: "good"}[e.verdict] || "warn";
const worst = (e) => e.rank === null ? 1e9 : e.rank;
const COLUMNS = [
  ["rank", "rank", worst, ""], ["name", "run", (e) => e.name.toLowerCase(), ""], ["score", "val_bpb", (e) => e.val_bpb, "right"],
  ["author", "author", (e) => e.author.toLowerCase(), ""], ["track", "track", (e) => e.track, ""], ["date", "date", (e) => e.date, ""],
  ["total", "bytes", (e) => e.total ?? Infinity, "right"], ["verdict", "verification", (e) => e.verdict, ""],
];

function open(e) {
  state.open = state.open === idOf(e) ? "" : idOf(e);
  history.replaceState(null, "", state.open ? `#${state.open}` : " ");
  render();
  const button = document.querySelector(`[data-id="${CSS.escape(idOf(e))}"]`);
  if (button) button.focus({preventScroll: true});
}

function detail(e) {
  const facts = [["authors", e.author], ["GitHub", e.github], ["date", e.date], ["data", e.dataset || e.data], ["steps", commas(e.steps)],
    ["training", e.seconds === null ? "?" : `${e.seconds.toLocaleString("en-US")} s`], ["machine", e.hardware || "?"], ["val_loss", e.val_loss === null ? "?" : `${e.val_loss.toFixed(4)} nats per token`],
    ["before quantization", e.before === null ? "?" : `${e.before.toFixed(4)} bits per byte`],
    ["seeds", e.seeds ? `${e.seeds}` + (e.sd !== null ? `, mean ${e.mean.toFixed(4)} \u00b1 ${e.sd.toFixed(4)}` : "") : "no log"], ["folder", idOf(e)]];
  const list = h("dl", {}, ...facts.map(([name, value]) => h("div", {class: name === "folder" ? "wide" : null}, h("dt", {}, name), h("dd", {}, value))));
  const parts = e.budget ? {...e.budget} : e.model ? {model: e.model} : {};
  if (e.code) parts.code = e.code;
  const seed = (c, i) => `seed ${c.seed ?? i + 1}`;
  const clip = (values) => { const v = [...values].sort((a, b) => a - b); return v[Math.floor(0.97 * (v.length - 1))] * 1.1; };
  const charts = e.curves.length ? [
    chart(e.curves.map((c, i) => ({name: seed(c, i), color: i, line: true, points: c.train})), {title: "Training loss", x: "step", y: "nats per token", yTick: (v) => `${+v.toFixed(3)}`, yClip: clip}),
    chart(e.curves.map((c, i) => ({name: seed(c, i), color: i, line: true, dots: c.val.length < 25, points: c.val})), {title: "Validation", x: "step", y: "bits per byte", yTick: (v) => `${+v.toFixed(3)}`}),
  ] : [];
  return h("tr", {class: "detail"}, h("td", {colspan: COLUMNS.length},
    h("p", {}, e.blurb), e.founding ? h("p", {class: "soft"}, "The challenge published these figures. There is no log here, and the run was not repeated here.") : null,
    list, e.why.length ? h("div", {class: "card"}, h("h3", {}, `Verification: ${e.verdict}`), ...e.why.map((w) => h("div", {class: "soft"}, w))) : null,
    Object.keys(parts).length ? h("div", {class: "card", style: "margin:12px 0"}, h("h3", {}, "Byte budget"), budgetBar(parts, DATA.cap)) : null,
    charts.length ? h("div", {class: "grid"}, ...charts) : null));
}

function row(e) {
  const cells = {
    rank: [h("span", {class: "num soft"}, e.rank === null ? "\u2013" : `${e.rank}`)],
    name: [h("button", {class: "name", "aria-expanded": String(state.open === idOf(e)), "data-id": idOf(e), onclick: (event) => { event.stopPropagation(); open(e); }}, e.name), h("div", {class: "blurb"}, e.blurb)],
    score: [h("span", {class: "num score"}, bpb(e.val_bpb)), e.sd !== null ? h("div", {class: "num soft"}, `\u00b1 ${e.sd.toFixed(4)}`) : null],
    author: [e.author], track: [h("span", {class: "num"}, h("span", {class: "dot", style: `background:${color(hue(e))}`}), SHORT[e.track])], date: [h("span", {class: "num"}, e.date)],
    total: [h("span", {class: "num"}, commas(e.total))],
    verdict: [h("span", {class: `chip ${tone(e)}`}, e.founding ? "published, not run here" : e.verdict)],
  };
  return h("tr", {class: "row", onclick: () => open(e)}, ...COLUMNS.map(([key, , , side]) => h("td", {class: `c-${key} ${side}`}, ...cells[key])));
}

function table(entries) {
  const key = COLUMNS.find((c) => c[0] === state.sort)[2];
  const sorted = entries.map((e, i) => [e, i]).sort(([a, i], [b, j]) => {
    const [x, y] = [key(a), key(b)];
    return (x < y ? -1 : x > y ? 1 : 0) * (state.up ? 1 : -1) || i - j;
  }).map(([e]) => e);
  const head = h("tr", {}, ...COLUMNS.map(([name, title, , side]) => h("th", {scope: "col", class: side, "aria-sort": state.sort === name ? (state.up ? "ascending" : "descending") : "none"},
    h("button", {onclick: () => { state.up = state.sort === name ? !state.up : true; state.sort = name; render(); document.querySelector(`[data-sort="${name}"]`).focus(); }, "data-sort": name}, title))));
  const body = h("tbody", {});
  for (const e of sorted) {
    body.append(row(e));
    if (state.open === idOf(e)) body.append(detail(e));
  }
  return h("div", {class: "card tablecard"}, h("div", {class: "scroll"}, h("table", {class: "board"}, h("thead", {}, head), body)));
}

function overview(entries) {
  const shown = entries.filter((e) => e.val_bpb < 100), series = [];
  const tip = (e) => `${bpb(e.val_bpb)}  ${e.name.slice(0, 40)}\n${e.date}, ${commas(e.total)} bytes`;
  const point = (e, x) => Object.assign([x, e.val_bpb, tip(e)], {entry: e, hollow: e.rank === null, big: state.open === idOf(e)});
  const present = TRACKS.filter((t) => shown.some((e) => e.track === t));
  const line = [], dots = [], sizes = [];
  for (const track of present) {
    const own = shown.filter((e) => e.track === track), i = TRACKS.indexOf(track);
    let best = Infinity;
    const steps = own.filter((e) => e.rank !== null && day(e)).sort((a, b) => day(a) - day(b) || a.val_bpb - b.val_bpb)
      .filter((e) => e.val_bpb < best && ((best = e.val_bpb), true)).map((e) => [day(e), e.val_bpb]);
    line.push({color: i, line: true, stairs: true, silent: true, points: steps, name: ""});
    dots.push({name: SHORT[track], color: i, dots: true, points: own.filter(day).map((e) => point(e, day(e)))});
    sizes.push({name: SHORT[track], color: i, dots: true, points: own.filter((e) => e.total !== null).map((e) => point(e, e.total))});
  }
  series.push(...line, ...dots);
  const date = (v) => new Date(v).toISOString().slice(5, 10);
  const days = (low, high) => { const step = Math.max(1, Math.ceil((high - low) / DAY / 5)), out = []; for (let v = Math.ceil(low / DAY) * DAY; v <= high; v += step * DAY) out.push(v); return out; };
  const pick = (p) => open(p.entry), yTick = (v) => `${+v.toFixed(4)}`;
  return h("div", {class: "grid"},
    chart(series, {title: "Score over time", x: "date", y: "bits per byte", note: "bits per byte; the line shows the record", xTick: date, xTicks: days, yTick, least: [2 * DAY, 0.004], pick, legend: true}),
    chart(sizes, {title: "Score against bytes", x: "total bytes", y: "bits per byte", mark: DATA.cap, yTick, least: [2e4, 0.004], pick, legend: true}));
}

function render() {
  const entries = DATA.entries.filter((e) => !state.track || e.track === state.track);
  const y = scrollY, parts = [h("h1", {}, "Parity Golf records"),
    h("p", {class: "soft"}, "The best language models in 16,000,000 bytes of code and int8+zlib weights, ranked by bits per byte of raw validation text; lower is better. Select a run to see its curves and bytes."),
    h("div", {class: "bar", role: "group", "aria-label": "track"}, ...[["", "All tracks"], ...TRACKS.map((t) => [t, DATA.titles[t].split(":")[0]])].map(([track, title]) =>
      h("button", {"aria-pressed": String(state.track === track), onclick: () => { state.track = track; render(); }}, title)))];
  for (const data of [...new Set(entries.map((e) => e.data))]) {
    const own = entries.filter((e) => e.data === data);
    parts.push(h("h2", {}, data === "FineWeb" ? "FineWeb validation" : data),
      h("p", {class: "soft"}, data === "FineWeb" ? "The challenge's data: 50,000 documents, 151,080,891 bytes." : "Another data set: these scores cannot be compared with scores on FineWeb."),
      overview(own), table(own));
  }
  if (!entries.length) parts.push(h("p", {}, "No records yet."));
  page.replaceChildren(...parts);
  scrollTo(0, y);
}
render();
document.documentElement.dataset.ready = DATA.entries.length;
