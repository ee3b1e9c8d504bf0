const DATA = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const DAY = 864e5, NONE = 100;  // NONE: val_bpb of an entry without a score
const TRACKS = Object.keys(DATA.titles), SHORT = {track_10min_16mb: "10 minutes", track_non_record_16mb: "Non-record"};
const day = (e) => Date.parse(e.date) || 0;
const idOf = (e) => `${e.track}/${e.folder}`;
const bpb = (v) => fixed(v === null || v >= NONE ? null : v);
const tone = (e) => e.founding ? "" : {fails: "bad", passes: "good"}[e.verdict] || "warn";
const places = (e) => e.rank === null ? Infinity : e.rank;
const percent = (v) => `${+(100 * v).toFixed(2)} %`;

// [name, title, what it sorts by, side]
const COLUMNS = [
  ["rank", "rank", places, ""], ["name", "run", (e) => e.name.toLowerCase(), ""],
  ["score", "val_bpb", (e) => e.val_bpb, "right"], ["author", "author", (e) => e.author.toLowerCase(), ""],
  ["date", "date", (e) => e.date, ""], ["total", "bytes = model + code", (e) => e.total ?? Infinity, "right"],
  ["verdict", "verification", (e) => e.verdict, ""],
];

// One ranking for each track and data set that has entries: scores on different data sets are never side by side. The
// official track on FineWeb comes first, and is what the page opens with.
const RANKINGS = [];
for (const data of [DATA.fineweb, ...new Set(DATA.entries.map((e) => e.data).filter((d) => d !== DATA.fineweb))]) {
  for (const track of TRACKS) {
    const entries = DATA.entries.filter((e) => e.track === track && e.data === data);
    if (entries.length) RANKINGS.push({track, data, entries});
  }
}
const state = {ranking: RANKINGS[0], open: "", sort: "rank", up: true};

// An address that ends in #track/folder opens that entry, in its own ranking.
function follow() {
  const wanted = DATA.entries.find((e) => `#${encodeURI(idOf(e))}` === location.hash);
  if (wanted) Object.assign(state, {ranking: RANKINGS.find((r) => r.entries.includes(wanted)), open: idOf(wanted)});
  render();
}

function open(e) {
  state.open = state.open === idOf(e) ? "" : idOf(e);
  history.replaceState(null, "", state.open ? `#${encodeURI(state.open)}` : " ");
  render(`[data-id="${CSS.escape(idOf(e))}"]`);
}

// The first sentence, or as many words as fit.
function lead(text, most = 140) {
  const first = /^.+?[.!?](?=\s|$)/.exec(text);
  if (first && first[0].length <= most) return first[0];
  return text.length <= most ? text : `${text.slice(0, most).replace(/[\s,;:]+\S*$/, "")}\u2026`;
}

function factsOf(e) {
  const seeds = e.sd === null ? `${e.seeds}` : `${e.seeds}, mean ${fixed(e.mean)} \u00b1 ${fixed(e.sd)}`;
  return [
    ["author", e.author || "?"], ["GitHub", e.github || "?"], ["date", e.date || "?"], ["data", e.dataset || e.data],
    ["steps", commas(e.steps)], ["training", e.seconds === null ? "?" : `${e.seconds.toLocaleString("en-US")} s`],
    ["machine", e.hardware || "?"], ["val_loss", e.val_loss === null ? "?" : `${fixed(e.val_loss)} nats per token`],
    ["before quantization", e.before === null ? "?" : `${fixed(e.before)} bits per byte`],
    ["seeds", e.seeds ? seeds : "no log"], ["of the cap", e.total === null ? "?" : percent(e.total / DATA.cap)],
    ["bytes = model + code", `${commas(e.total)} ${addends(e)}`], ["folder", idOf(e)],
  ];
}

function detail(e) {
  const fact = ([name, value]) =>
    h("div", {class: /folder|bytes/.test(name) ? "wide" : null}, h("dt", {}, name), h("dd", {}, value));
  const seed = (c, i) => ({name: `seed ${c.seed ?? i + 1}`, color: i, line: true});
  const tick = {x: "step", legend: true, yTick: (v) => `${+v.toFixed(3)}`};
  const losses = e.curves.map((c, i) => ({...seed(c, i), points: c.train}));
  const scores = e.curves.map((c, i) => ({...seed(c, i), points: c.val, dots: c.val.length < 25}));
  const founding = "The challenge published these figures. There is no log here, and the run was not repeated here.";
  return h("tr", {class: "detail"}, h("td", {colspan: COLUMNS.length},
    e.blurb ? h("p", {}, e.blurb) : null, e.founding ? h("p", {class: "soft"}, founding) : null,
    h("dl", {}, ...factsOf(e).map(fact)),
    e.why.length ? h("div", {class: "card why"}, h("h3", {}, `Verification: ${e.verdict}`),
      h("ul", {}, ...e.why.map((words) => h("li", {}, words)))) : null,
    h("div", {class: "card"}, h("h3", {}, "Byte budget"), budgetBar(partsOf(e.budget, e), DATA.cap)),
    e.curves.length ? h("div", {class: "grid"},
      chart(losses, {...tick, title: "Training loss", y: "nats per token", yClip: withoutTheFirst}),
      chart(scores, {...tick, title: "Validation", y: "bits per byte"})) : null));
}

function row(e) {
  const press = (event) => { event.stopPropagation(); open(e); };
  const opened = {class: "name", "aria-expanded": String(state.open === idOf(e)), "data-id": idOf(e), onclick: press};
  const cells = {
    rank: [e.rank === null ? "\u2013" : `${e.rank}`],
    name: [h("button", opened, h("span", {}, e.name || e.folder)), h("div", {class: "blurb"}, lead(e.blurb))],
    score: [h("div", {class: "num score"}, bpb(e.val_bpb)),
      e.sd === null ? null : h("div", {class: "num soft"}, `\u00b1 ${fixed(e.sd)}`)],
    author: [cut(e.author, 80) || "?"],
    date: [h("span", {class: "num"}, e.date || "?")],
    total: [h("div", {class: "num"}, commas(e.total)), h("div", {class: "num soft"}, addends(e))],
    verdict: [h("span", {class: `chip ${tone(e)}`}, e.founding ? "published, not run here" : e.verdict)],
  };
  return h("tr", {class: "row", onclick: () => open(e)},
    ...COLUMNS.map(([name, , , side]) => h("td", {class: `c-${name} ${side}`}, ...cells[name])));
}

function sortBy(name) {
  state.up = state.sort === name ? !state.up : true;
  state.sort = name;
  render(`[data-sort="${name}"]`);
}

function table(entries) {
  const key = COLUMNS.find((c) => c[0] === state.sort)[2];
  const sorted = entries.map((e, i) => [key(e), i, e]).sort(([x, i], [y, j]) => {
    return (x < y ? -1 : x > y ? 1 : 0) * (state.up ? 1 : -1) || i - j;
  }).map(([, , e]) => e);
  const order = (name) => state.sort !== name ? "none" : state.up ? "ascending" : "descending";
  const head = h("tr", {}, ...COLUMNS.map(([name, title, , side]) =>
    h("th", {scope: "col", class: `h-${name} ${side}`, "aria-sort": order(name)},
      h("button", {"data-sort": name, onclick: () => sortBy(name)}, title))));
  const body = h("tbody", {}, ...sorted.flatMap((e) => state.open === idOf(e) ? [row(e), detail(e)] : [row(e)]));
  return h("div", {class: "card tablecard"}, h("table", {class: "board"}, h("thead", {}, head), body));
}

// Ticks of at most six days between two times, and how they are written.
function days(low, high) {
  const step = Math.max(1, Math.ceil((high - low) / DAY / 5)), out = [];
  for (let v = Math.ceil(low / DAY) * DAY; v <= high; v += step * DAY) out.push(v);
  return out;
}

function overview(entries) {
  const shown = entries.filter((e) => e.val_bpb < NONE), ranked = shown.filter((e) => e.rank !== null);
  const tip = (e) => `${bpb(e.val_bpb)}  ${cut(e.name || e.folder, 40)}\n${e.date || "?"}, ${commas(e.total)} bytes`;
  const point = (e, x) => Object.assign([x, e.val_bpb, tip(e)], {entry: e, big: state.open === idOf(e)});
  const dots = (x, known) => [["ranked", false], ["no rank: a check fails, or the score is not verified", true]].map(
    ([name, hollow]) => ({name, hollow, color: hollow ? 1 : 0, dots: true,
      points: shown.filter((e) => known(e) && (e.rank === null) === hollow).map((e) => point(e, x(e)))}),
  ).filter((one) => one.points.length);
  let best = Infinity;
  const falls = (e) => { const better = e.val_bpb < best; best = Math.min(best, e.val_bpb); return better; };
  const steps = ranked.filter(day).sort((a, b) => day(a) - day(b) || a.val_bpb - b.val_bpb).filter(falls);
  const record = {name: "best so far", color: 0, line: true, stairs: true, silent: true,
    points: steps.map((e) => [day(e), e.val_bpb])};
  const years = new Set(shown.filter(day).map((e) => e.date.slice(0, 4))).size;
  const xTick = (v) => new Date(v).toISOString().slice(...(years > 1 ? [0, 7] : [5, 10]));
  const same = {y: "bits per byte", yTick: (v) => `${+v.toFixed(4)}`, yFrom: ranked.map((e) => e.val_bpb), legend: true,
    pick: (p) => open(p.entry)};
  const times = [...(steps.length ? [record] : []), ...dots(day, day)];
  return h("div", {class: "grid"},
    chart(times, {...same, title: "Score over time", x: "date", xTick, xTicks: days, least: [2 * DAY, 0.004]}),
    chart(dots((e) => e.total, (e) => e.total !== null),
      {...same, title: "Score against bytes", x: "total bytes", mark: DATA.cap, least: [2e4, 0.004]}));
}

function choice() {
  return h("div", {class: "bar", role: "group", "aria-label": "ranking"}, ...RANKINGS.map((ranking, i) => {
    const {track, data, entries} = ranking;
    const choose = () => { state.ranking = ranking; render(`[data-ranking="${i}"]`); };
    const about = {"aria-pressed": String(state.ranking === ranking), "data-ranking": i, onclick: choose};
    return h("button", about, h("span", {}, `${SHORT[track]}, ${data} (${entries.length})`));
  }));
}

// focus: selector of what has the focus after everything is drawn anew
function render(focus) {
  const y = scrollY, parts = [h("h1", {}, "Parity Golf records"), h("p", {class: "soft"},
    "The best language models in 16,000,000 bytes of code and int8+zlib weights, ranked by bits per byte of raw " +
    "validation text; lower is better. Select a run to see its curves and bytes.")];
  if (state.ranking) {
    const {track, data, entries} = state.ranking, official = data === DATA.fineweb;
    parts.push(choice(), h("h2", {}, DATA.titles[track]), h("p", {class: "soft"}, official
      ? "On FineWeb, the challenge's data: validation on 50,000 documents, 151,080,891 bytes."
      : `On other data (${data}): not comparable with scores on FineWeb.`), overview(entries), table(entries));
  } else {
    parts.push(h("p", {}, "No records yet."));
  }
  page.replaceChildren(...parts);
  scrollTo(0, y);
  if (focus) document.querySelector(focus).focus({preventScroll: true});
}

addEventListener("hashchange", follow);
follow();
document.documentElement.dataset.ready = DATA.entries.length;
