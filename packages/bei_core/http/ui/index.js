const MAX_TEXTS = 200;
const COLOURS = ["#ffe08a", "#b7e4c7", "#a9d6ff", "#f7c5d8", "#d8c8ff", "#ffd0a8"];
let info = {};

const lines = (id) => $(id).value.split("\n").filter((line) => line.trim());
const named = (body) => ($("choice").hidden ? body : { ...body, model: $("served").value });
const number = (value, digits = 4) => element("td", { class: "number" }, value.toFixed(digits));

function table(caption, heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  return element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...rows));
}

const row = (...cells) => element("tr", {}, ...cells.map((cell) => (cell instanceof Node ? cell : element("td", {}, cell))));
const bar = (value, label) => element("td", {}, element("meter", { min: 0, max: 1, value, "aria-label": label }));

// Vectors of length 1, one a text.
const vectors = (inputs) => call("embed", named({ inputs, normalize: true }));
const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);

// Coordinates of each row by the two principal components, from the rows' scalar products (power iteration).
function project(rows) {
  const mean = rows[0].map((_, column) => rows.reduce((sum, each) => sum + each[column], 0) / rows.length);
  const centred = rows.map((each) => each.map((value, column) => value - mean[column]));
  const products = centred.map((a) => centred.map((b) => dot(a, b)));
  return [0, 1].map(() => {
    let axis = rows.map((_, index) => Math.sin(index + 1));
    let length = 0;
    for (let step = 0; step < 100; step++) {
      const next = products.map((each) => dot(each, axis));
      length = Math.hypot(...next);
      axis = length ? next.map((value) => value / length) : axis;
    }
    products.forEach((each, i) => each.forEach((_, j) => (each[j] -= length * axis[i] * axis[j])));
    return axis.map((value) => value * Math.sqrt(length));
  });
}

function plot(texts, [xs, ys]) {
  const scale = (values, size) => {
    const low = Math.min(...values), span = Math.max(...values) - low || 1;
    return values.map((value) => 30 + ((value - low) / span) * (size - 60));
  };
  const [left, top] = [scale(xs, 600), scale(ys, 300)];
  const dots = texts.flatMap((text, index) => [
    element("circle", { cx: left[index], cy: top[index], r: 5 }, element("title", {}, text)),
    element("text", { x: left[index] + 8, y: top[index] + 4 }, String(index + 1)),
  ]);
  return element("svg", { viewBox: "0 0 600 300", role: "img", "aria-label": "Texts by two principal components; the table below has the numbers" }, ...dots);
}

const RUNS = {
  async compare() {
    const [a, b] = await vectors([$("left").value, $("right").value]);
    return [element("p", {}, "Cosine similarity ", element("strong", {}, dot(a, b).toFixed(4)), `, ${a.length} dimensions`)];
  },
  async scatter() {
    const texts = lines("list").slice(0, MAX_TEXTS);
    if (texts.length < 3) throw new Error("give at least three texts, one a line");
    const found = await vectors(texts);
    const rows = texts.map((text, index) => {
      const others = found.map((other, place) => (place === index ? -2 : dot(found[index], other)));
      const nearest = others.indexOf(Math.max(...others));
      return row(String(index + 1), text, texts[nearest], number(others[nearest]));
    });
    return [plot(texts, project(found)), table("Nearest neighbours", ["#", "Text", "Nearest", "Cosine"], rows)];
  },
  async rerank() {
    const texts = lines("documents");
    const ranks = await call("rerank", named({ query: $("query").value, texts }));
    return [table("Most relevant first", ["Text", "Score", ""], ranks.map(({ index, score }) => row(texts[index], number(score), bar(score, texts[index]))))];
  },
  async classify() {
    const labels = await call("predict", named({ inputs: $("classified").value }));
    return [table("Labels", ["Label", "Score", ""], labels.map(({ label, score }) => row(label, number(score), bar(score, label))))];
  },
  async entities() {
    const text = $("tagged").value;
    const [found] = await call("predict_tokens", named({ inputs: [[text]], aggregation_strategy: "simple" }));
    const characters = [...text]; // the server counts code points
    const parts = [];
    let end = 0;
    const labels = [...new Set(found.map((entity) => entity.entity_group))];
    for (const entity of found) {
      parts.push(characters.slice(end, entity.start).join(""));
      const style = `background:${COLOURS[labels.indexOf(entity.entity_group) % COLOURS.length]}`;
      const word = characters.slice(entity.start, entity.end).join("");
      parts.push(element("mark", { style, title: entity.score.toFixed(4) }, word, element("small", {}, entity.entity_group)));
      end = entity.end;
    }
    parts.push(characters.slice(end).join(""));
    return [element("p", { class: "tokens" }, ...parts), ...(found.length ? [] : [element("p", {}, "No entities.")])];
  },
  async terms() {
    const [weights] = await call("embed_sparse", named({ inputs: [$("weighed").value] }));
    const best = weights.sort((a, b) => b.value - a.value).slice(0, 30);
    const terms = await call("decode", named({ ids: best.map(({ index }) => [index]), skip_special_tokens: false }));
    return [table(`The heaviest of ${weights.length} terms`, ["Term", "Id", "Weight"], best.map(({ index, value }, place) => row(terms[place], String(index), number(value))))];
  },
  async tokens() {
    const [tokens] = await call("tokenize", named({ inputs: $("split").value }));
    const shown = tokens.map(({ text, id }, index) => element("span", { class: "token", style: `background:${COLOURS[index % COLOURS.length]}`, title: `id ${id}` }, text));
    return [element("p", {}, `${tokens.length} tokens`), element("p", { class: "tokens" }, ...shown.flatMap((token) => [token, " "]))];
  },
};

function choose(id, focus) {
  for (const tab of $("tabs").children) {
    const chosen = tab.dataset.panel === id;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.dataset.panel).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
}

function showTabs() {
  const panels = [...document.querySelectorAll("[role=tabpanel]")];
  panels.forEach((panel) => (panel.hidden = true));
  const shown = panels.filter((panel) => !panel.dataset.role || info.roles.includes(panel.dataset.role));
  $("tabs").replaceChildren(...shown.map((panel) => {
    const tab = element("button", { role: "tab", type: "button", id: `tab-${panel.id}`, "data-panel": panel.id, "aria-controls": panel.id }, panel.dataset.title);
    panel.setAttribute("aria-labelledby", tab.id);
    tab.onclick = () => choose(panel.id);
    return tab;
  }));
  choose(shown[0].id);
}

$("tabs").addEventListener("keydown", (event) => {
  const tabs = [...$("tabs").children], at = tabs.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(tabs[(to + tabs.length) % tabs.length].dataset.panel, true);
});

for (const form of document.querySelectorAll("form[data-run]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const result = form.querySelector(".result");
    guarded(async () => result.replaceChildren(...(await RUNS[form.dataset.run]())));
  });
}

// Prometheus' text format as a map from a series to its value.
function series(text) {
  return new Map(text.split("\n").filter((line) => line && line[0] !== "#").map((line) => [line.slice(0, line.lastIndexOf(" ")), +line.slice(line.lastIndexOf(" ") + 1)]));
}

// The quantile of what a histogram counted between two scrapes, in milliseconds: the upper bound of its bucket.
function quantile(now, before, name, share) {
  const buckets = [...now.keys()].filter((key) => key.startsWith(`${name}_bucket`));
  const counts = buckets.map((key) => now.get(key) - (before.get(key) ?? 0));
  const total = counts.at(-1);
  if (!total) return "none";
  const bound = buckets[counts.findIndex((count) => count >= share * total)].match(/le="([^"]+)"/)[1];
  return bound === "+Inf" ? "more" : `≤ ${bound * 1000} ms`;
}

let previous = null;
async function showLive() {
  if (document.hidden || $("main").hidden || $("live").hidden) return;
  const now = series(await call("metrics"));
  const restarted = previous && now.get("te_batch_next_size_count") < previous.now.get("te_batch_next_size_count");
  const before = restarted ? new Map() : (previous?.now ?? now);
  const seconds = previous ? (performance.now() - previous.at) / 1000 : 1;
  previous = { now, at: performance.now() };
  const gain = (key) => (now.get(key) ?? 0) - (before.get(key) ?? 0);
  const batches = gain("te_batch_next_size_count"), real = gain("te_batch_next_tokens_sum");
  const padding = gain("bei_padding_tokens_total");
  const stages = ["tokenization", "queue", "inference"].map((stage) => [stage, `te_request_${stage}_duration`]);
  const facts = [
    ["Inputs in the queue", now.get("te_queue_size") ?? 0],
    ["Batches a second", (batches / seconds).toFixed(1)],
    ["Inputs of a batch", batches ? (gain("te_batch_next_size_sum") / batches).toFixed(1) : "none"],
    ["Tokens a second", Math.round(real / seconds)],
    ["Padding", real ? `${((100 * padding) / (real + padding)).toFixed(1)} %` : "none"],
    ["Engine busy", `${Math.min(100, (100 * gain("bei_engine_busy_seconds_total")) / seconds).toFixed(0)} %`],
  ];
  $("live").replaceChildren(
    table("Since the last look, two seconds ago", ["What", "Value"], facts.map(([name, value]) => row(name, String(value)))),
    table("Time of requests by stage", ["Stage", "p50", "p99"], [...stages, ["whole request", "te_request_duration"]].map(
      ([stage, name]) => row(stage, quantile(now, before, name, 0.5), quantile(now, before, name, 0.99)))),
  );
}

async function showModel() {
  info = await call($("choice").hidden ? "info" : `info?model=${encodeURIComponent($("served").value)}`);
  $("model").textContent = `${info.model_id} · ${info.kind} · ${info.engine} ${info.model_dtype}`;
  const facts = Object.entries(info).map(([name, value]) => row(name, typeof value === "object" ? JSON.stringify(value) : String(value)));
  $("card").replaceChildren(table("What this server serves", ["Field of /info", "Value"], facts));
  showTabs();
  $("main").hidden = false;
}

async function start() {
  const { data } = await call("v1/models");
  $("choice").hidden = data.length < 2;
  $("served").replaceChildren(...data.map(({ id }) => element("option", {}, id)));
  await showModel();
}

$("docs").href = `${BASE}docs`;
$("served").addEventListener("change", () => guarded(showModel));
askForKey(start);
guarded(start);
let lost = false; // whether #failure has an error of the live view
setInterval(async () => {
  try {
    await showLive();
    if (lost) $("failure").textContent = "";
    lost = false;
  } catch (error) {
    lost = true;
    $("failure").textContent = error.message;
  }
}, 2000);
