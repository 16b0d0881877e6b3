// The page asks the JSON routes of the service that sent it, and draws what they say.
// Every text comes in by textContent: nothing that a client sent can become markup.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const said = {}; // by route: the last answer, or why there is none
const open = new Set(); // predictions whose features are shown

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((c) => c !== null));
  return made;
}

function shape(tag, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== "") made.textContent = text;
  return made;
}

// Fill a panel; what had the keyboard's focus in it has it again.
function put(box, ...children) {
  const focus = box.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  box.replaceChildren(...children);
  if (focus) box.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}

const note = (text, fault = false) => node("p", { class: fault ? "note fault" : "note" }, text);

// ---- numbers and times

function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) >= 1e9 || Math.abs(value) < 1e-4)) return value.toExponential(1);
  const whole = Number.isInteger(value) || Math.abs(value) >= 10 ** digits;
  const how = whole ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: digits };
  return new Intl.NumberFormat("en", how).format(value);
}

const clock = (date, seconds = false) => date.toISOString().slice(11, seconds ? 19 : 16);
const day = (date) => date.toISOString().slice(5, 10);

function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  const [name, size] = units.find(([, s]) => seconds >= s) ?? ["s", 1];
  return `${number(Math.floor(seconds / size))} ${name}`;
}

// ---- drawing

function ticks(low, high, wanted = 4) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) out.push(i * step + 0);
  return out;
}

function frame(box, { x, y, xTicks, label, height = 190, left = 46 }) {
  const width = Math.max(box.clientWidth, 220);
  const [right, top, bottom] = [8, 8, 24];
  const place = (from, to, a, b) => (v) => a + ((v - from) / (to - from || 1)) * (b - a);
  const px = place(x[0], x[1], left, width - right);
  const py = place(y[0], y[1], height - bottom, top);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (const t of ticks(y[0], y[1])) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: py(t), y2: py(t) }));
    svg.append(shape("text", { x: left - 7, y: py(t) + 4, "text-anchor": "end" }, number(t)));
  }
  svg.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: py(y[0]), y2: py(y[0]) }));
  for (const [value, text] of xTicks(width)) {
    svg.append(shape("text", { x: px(value), y: height - 7, "text-anchor": "middle" }, text));
  }
  return { svg, px, py, left, right: width - right, top, bottom: height - bottom };
}

function path(points, px, py) {
  let d = "", pen = false;
  for (const [x, y] of points) {
    if (y === null) pen = false;
    else {
      d += `${pen ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
      pen = true;
    }
  }
  return d;
}

function key(...names) {
  return node("p", { class: "key" }, ...names.map(([name, kind]) => node("span", {}, node("i", { class: kind }), name)));
}

// Bars from the ground up, each from an edge to the next one.
function columns({ svg, px, py, bottom }, edges, values, { kind, gap = 0, round = 0 }) {
  values.forEach((v, i) => {
    const width = Math.max(1, px(edges[i + 1]) - px(edges[i]) - gap);
    if (v) svg.append(shape("rect", { class: kind(i), x: px(edges[i]), y: py(v), width, height: bottom - py(v), rx: Math.min(round, width / 3) }));
  });
}

// A line with the band around it, which may be missing; points are { at, low, value, high }.
function banded(box, points, { xTicks, label, zero = false, tell }) {
  const all = points.flatMap((p) => [p.value, p.low ?? p.value, p.high ?? p.value]).concat(zero ? [0] : []);
  const drawn = frame(box, { x: [points[0].at, points[points.length - 1].at], y: [Math.min(...all), Math.max(...all) + 1e-9], xTicks, label });
  const { svg, px, py, left, right } = drawn;
  const along = (end) => points.map((p) => [p.at, p[end]]);
  if (points.every((p) => p.low !== null && p.high !== null)) {
    svg.append(shape("path", { class: "under", d: `${path([...along("low"), ...along("high").reverse()], px, py)}Z` }));
  }
  if (zero) svg.append(shape("line", { class: "zero", x1: left, x2: right, y1: py(0), y2: py(0) }));
  svg.append(shape("path", { class: "stroke", d: path(along("value"), px, py) }));
  pointer(drawn, points.map((p) => px(p.at)), tell);
  return drawn;
}

// A bar or two a row, with its name before and its number behind; rows are { name, values, bars: [[class, from, to]], told }.
function labelled(rows, { width, left, line, thick, low, high, right, label }) {
  const px = (v) => left + ((v - low) / (high - low || 1)) * (width - left - right);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${Math.max(rows.length, 1) * line}`, role: "img", "aria-label": `${label}: ${rows.map((r) => `${r.name} ${r.told}`).join(", ")}` });
  rows.forEach(({ name, values, bars, told, whole }, i) => {
    const y = i * line + 2, middle = y + ((bars.length || 2) * thick) / 2 + 4;
    const text = shape("text", { class: "reason", x: 0, y: middle }, name);
    if (values) text.append(shape("tspan", { class: "values", dx: 6 }, values));
    if (whole) text.append(shape("title", {}, whole));
    svg.append(text);
    bars.forEach(([kind, from, to], k) => svg.append(shape("rect", { class: kind, x: Math.min(px(from), px(to)), y: y + k * thick, width: Math.max(1.5, Math.abs(px(to) - px(from))), height: thick - 0.5, rx: Math.min(2, thick / 4) })));
    svg.append(shape("text", { x: Math.max(left, ...bars.flatMap(([, from, to]) => [px(from), px(to)])) + 5, y: middle }, told));
  });
  return svg;
}

// What the pointer is over, told beside it; the arrow keys move along the chart, and a reader says what is there.
const reached = {}; // by chart: where the keys were
function pointer({ svg, top, bottom }, xs, tell) {
  const name = svg.getAttribute("aria-label"), last = xs.length - 1, tip = $("tip");
  const cross = shape("line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" });
  svg.append(cross);
  const about = { tabindex: 0, role: "slider", "aria-valuemin": 0, "aria-valuemax": last, "data-focus": name };
  for (const [key, value] of Object.entries(about)) svg.setAttribute(key, value);
  const at = () => Math.min(last, reached[name] ?? last);
  function say(i) {
    svg.setAttribute("aria-valuenow", i);
    svg.setAttribute("aria-valuetext", tell(i).replace("\n", ": "));
  }
  function show(i, pageX, pageY) {
    cross.setAttribute("x1", xs[i]);
    cross.setAttribute("x2", xs[i]);
    cross.setAttribute("visibility", "visible");
    tip.textContent = tell(i);
    tip.hidden = false;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(4, Math.min(room, pageX + 14))}px`;
    tip.style.top = `${pageY - tip.offsetHeight - 10}px`;
  }
  function hide() {
    cross.setAttribute("visibility", "hidden");
    tip.hidden = true;
  }
  function showReached() {
    const box = svg.getBoundingClientRect();
    say(at());
    show(at(), box.left + scrollX + xs[at()], box.top + scrollY + top + 20);
  }
  svg.addEventListener("pointermove", (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    show(xs.reduce((best, one, i) => (Math.abs(one - x) < Math.abs(xs[best] - x) ? i : best), 0), event.pageX, event.pageY);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("focus", () => svg.matches(":focus-visible") && showReached());
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const moved = { ArrowLeft: at() - 1, ArrowDown: at() - 1, ArrowRight: at() + 1, ArrowUp: at() + 1, PageDown: at() - 10, PageUp: at() + 10, Home: 0, End: last }[event.key];
    if (event.key === "Escape") hide();
    if (moved === undefined) return;
    event.preventDefault();
    reached[name] = Math.max(0, Math.min(last, moved));
    showReached();
  });
  say(at());
}

function timeTicks(slices, length) {
  return (width) => {
    const span = slices.length * length;
    const steps = [60, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800];
    const step = steps.find((s) => span / s <= width / 75) ?? 604800;
    const begin = Date.parse(slices[0].time) / 1000;
    const out = [];
    for (let t = Math.ceil(begin / step) * step; t < begin + span; t += step) {
      const date = new Date(t * 1000);
      out.push([(t - begin) / length, step >= 86400 ? day(date) : clock(date)]);
    }
    return out.filter(([at]) => at > slices.length * 0.03 && at < slices.length * 0.97);
  };
}

function when(slices, i, length) {
  const begin = new Date(slices[i].time);
  const text = `${clock(begin, length < 60)} to ${clock(new Date(begin.getTime() + length * 1000), length < 60)}`;
  return length >= 3600 ? `${day(begin)}, ${text}` : text;
}

function drawTraffic() {
  const { body, fault } = said.traffic;
  if (fault) return [$("traffic"), $("latency")].forEach((b) => put(b, note(fault, true)));
  const { slices, slice_s: length } = body;
  $("traffic-unit").textContent = `predictions per ${length === 60 ? "minute" : `${number(length / 60)} minutes`}, UTC`;
  if (!slices.some((s) => s.count)) {
    return [$("traffic"), $("latency")].forEach((b) => put(b, note("No prediction in this time.")));
  }
  const x = [0, slices.length];
  const xTicks = timeTicks(slices, length);
  const bars = frame($("traffic"), { x, y: [0, Math.max(...slices.map((s) => s.count)) * 1.05], xTicks, label: "Predictions over time", height: 214 });
  columns(bars, [...slices.keys(), slices.length], slices.map((s) => s.count), { kind: (i) => (i === slices.length - 1 ? "fill part" : "fill"), gap: 1.5, round: 2 });
  const middles = slices.map((_, i) => bars.px(i + 0.5));
  pointer(bars, middles, (i) => `${when(slices, i, length)}\n${number(slices[i].count)} predictions${i === slices.length - 1 ? ", so far" : ""}`);
  put($("traffic"), bars.svg);

  const lines = frame($("latency"), { x, y: [0, Math.max(...slices.map((s) => s.p95_ms ?? 0)) * 1.08 || 1], xTicks, label: "Latency over time" });
  for (const [name, kind] of [["p95_ms", "second"], ["mean_ms", ""]]) {
    const points = slices.map((s, i) => [i + 0.5, s[name]]);
    lines.svg.append(shape("path", { class: `stroke ${kind}`, d: path(points, lines.px, lines.py) }));
    points.forEach(([at, v], i) => { // a slice with no neighbour would be no line at all
      const alone = v !== null && (points[i - 1]?.[1] ?? null) === null && (points[i + 1]?.[1] ?? null) === null;
      if (alone) lines.svg.append(shape("circle", { class: `dot ${kind}`, cx: lines.px(at), cy: lines.py(v), r: 3 }));
    });
  }
  pointer(lines, middles, (i) => {
    const s = slices[i];
    return `${when(slices, i, length)}\nmean ${number(s.mean_ms, 3)}, 95 % below ${number(s.p95_ms, 3)}, most ${number(s.max_ms, 3)}`;
  });
  put($("latency"), lines.svg, key(["mean", ""], ["95 % stay below", "second"]));
}

function drawPrices() {
  const { body, fault } = said.prices;
  const box = $("prices");
  if (fault) return put(box, note(fault, true));
  const { edges, window, reference, rows } = body;
  $("prices-unit").textContent = [body.unit, `newest ${number(rows)} predictions`].filter(Boolean).join(", ");
  if (!rows && !reference) return put(box, note("No prediction yet, and no model to compare with."));
  const share = (counts) => {
    const all = counts.reduce((a, b) => a + b, 0);
    return counts.map((c) => (all ? c / all : 0) * 100);
  };
  const live = share(window), old = reference ? share(reference) : [];
  const drawn = frame(box, {
    x: [edges[0], edges[edges.length - 1]],
    y: [0, Math.max(...live, ...old) * 1.06],
    xTicks: (width) => ticks(edges[0], edges[edges.length - 1], width / 80).map((t) => [t, number(t)]),
    label: "Distribution of the prices",
    height: 200,
  });
  const { svg, px, py } = drawn;
  columns(drawn, edges, live, { kind: () => "under" });
  const steps = (values) => [[edges[0], 0], ...values.flatMap((v, i) => [[edges[i], v], [edges[i + 1], v]]), [edges[edges.length - 1], 0]];
  if (reference) svg.append(shape("path", { class: "stroke old", d: path(steps(old), px, py) }));
  if (rows) svg.append(shape("path", { class: "stroke", d: path(steps(live), px, py) }));
  pointer(drawn, live.map((_, i) => px((edges[i] + edges[i + 1]) / 2)), (i) => `${number(edges[i])} to ${number(edges[i + 1])}\nlive ${number(live[i], 3)} %` + (reference ? `, reference ${number(old[i], 3)} %` : ""));
  const beyond = body.below + body.above;
  put(box, svg, key([rows ? "live, percent" : "live: no prediction yet", ""], ...(reference ? [["training, percent", "old"]] : []), ...(beyond ? [[`${number(beyond)} beyond the edges`, ""]] : [])));
}

const KIND = { healthy: "good", degraded: "warn", unhealthy: "bad", ok: "good", drift: "bad", worse: "bad", suspect: "warn", unknown: "" };
const pill = (text) => node("span", { class: `pill ${KIND[text] ?? ""}` }, text);

function drawHealth() {
  const { body, fault } = said.health;
  if (fault) {
    $("state").className = "pill bad";
    $("state").textContent = "no answer";
    return put($("health"), note(fault, true));
  }
  $("state").className = `pill ${KIND[body.status]}`;
  $("state").textContent = body.status;
  const rows = Object.entries(body.checks).map(([name, check]) =>
    node("li", {}, node("span", {}, name), pill(check.state), node("span", { class: "detail" }, check.detail)));
  put($("health"), node("ul", { class: "checks" }, ...rows));
}

// A number: share of houses below each value, of both sides. Dots are medians.
function curve(name, sides) {
  const [width, height] = [150, 84];
  const values = sides.flatMap(([, s]) => s.quantiles);
  const low = Math.min(...values), high = Math.max(...values);
  const median = ({ quantiles: all }) => number(all[(all.length - 1) / 2], 3);
  const label = `${name}: median ${median(sides[1][1])}, in the training ${median(sides[0][1])}`;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const px = (v) => 3 + ((v - low) / (high - low || 1)) * (width - 6), py = (q) => height - 16 - q * (height - 20);
  svg.append(shape("line", { class: "axis", x1: 0, x2: width, y1: height - 15, y2: height - 15 }));
  for (const [kind, { quantiles: all }] of sides) {
    svg.append(shape("path", { class: `stroke ${kind}`, d: path(all.map((v, i) => [v, i / (all.length - 1)]), px, py) }));
    if (all.length) svg.append(shape("circle", { class: kind ? "old-fill" : "dot", cx: px(all[(all.length - 1) / 2]), cy: py(0.5), r: 3 }));
  }
  svg.append(shape("text", { x: 0, y: height - 3 }, number(low, 3)), shape("text", { x: width, y: height - 3, "text-anchor": "end" }, number(high, 3)));
  return svg;
}

// A category: its share on both sides; of more than six, those that changed most, and all others as one.
function shares(name, sides) {
  const [old, live] = sides.map(([, s]) => s.shares);
  const all = [...new Set([...Object.keys(old), ...Object.keys(live)])];
  const change = (n) => Math.abs((live[n] ?? 0) - (old[n] ?? 0));
  const named = new Set(all.length > 6 ? [...all].sort((a, b) => change(b) - change(a)).slice(0, 5) : all);
  const rest = all.filter((n) => !named.has(n)), sum = (side) => rest.reduce((total, n) => total + (side[n] ?? 0), 0);
  const found = all.filter((n) => named.has(n)).map((n) => [n, old[n] ?? 0, live[n] ?? 0]);
  const most = Math.max(...found.flatMap(([, a, b]) => [a, b])), percent = (v) => `${number(v * 100, 2)} %`;
  const rows = found.map(([n, a, b]) => ({
    name: n.length > 9 ? `${n.slice(0, 8)}…` : n,
    whole: `${n}: ${percent(b)}, in the training ${percent(a)}`,
    bars: [["old-fill", 0, a], ["fill", 0, b]],
    told: percent(b),
  }));
  const others = `${percent(sum(live))} (${percent(sum(old))})`; // no bar: together they would dwarf each of the named
  if (rest.length) rows.push({ name: `${rest.length} others`, bars: [], told: others });
  return labelled(rows, { width: 150, left: 56, line: 14, thick: 5, low: 0, high: most, right: 34, label: name });
}

function picture(feature) {
  const sides = [["old", feature.reference], ["", feature.window]];
  if (sides.some(([, s]) => s.quantiles.length)) return curve(feature.name, sides);
  return sides.some(([, s]) => Object.keys(s.shares).length) ? shares(feature.name, sides) : null;
}

function drawDrift() {
  const { body, fault } = said.drift;
  $("drift-said").textContent = "";
  if (fault) return put($("drift"), note(fault, true));
  const { report } = body;
  const level = (f) => (body.features.includes(f.name) ? "drift" : body.suspects.includes(f.name) || f.stuck || f.verdict === "drift" ? "suspect" : f.verdict);
  const order = { drift: 0, suspect: 1, ok: 2, unknown: 2 };
  const shown = report.features.map((f) => [level(f), f]).sort((a, b) => order[a[0]] - order[b[0]]);
  const words = { ok: "the houses asked about are like those of the training", drift: body.features.join(", "), unknown: body.reason || "too few predictions to tell" };
  const worth = body.houses ? `; ${number(body.houses)} houses, worth ${number(Math.round(body.effective))}, in the newest ${number(body.asked)} predictions of version ${body.model_version}` : "";
  const since = body.since ? `; since ${body.since.replace("T", " ").slice(0, 16)}` : "", needs = body.needs ? `; to know more: ${body.needs}` : "";
  put($("drift-said"), pill(body.verdict), ` ${words[body.verdict]}${worth}${since}${needs}`);
  if (!report.rows) return put($("drift"), note("No prediction of this version yet."));
  const cards = shown.map(([state, f]) => {
    const facts = [
      f.effect === null ? null : `effect ${number(Math.round(f.effect * 100) / 100 + 0)}`,
      f.p_corrected === null ? null : `p ${f.p_corrected < 0.001 ? "<\u00a00.001" : number(f.p_corrected, 2)}`,
      f.window.missing || f.reference.missing ? `missing ${number(f.window.missing * 100, 2)} % (${number(f.reference.missing * 100, 2)} %)` : null,
      f.note || null,
    ];
    return node("article", { class: state === "drift" ? "feature alarm" : "feature", "data-state": state },
      node("h3", {}, node("span", {}, f.name), pill(state)), picture(f), node("p", {}, facts.filter(Boolean).join(" · ")));
  });
  put($("drift"), node("div", { class: "features" }, ...cards),
    key(["asked about: share of houses below each value, the dot is the median; or share of each category", ""], ["training", "old"]));
}

function table(name, columns, rows, kind = "") {
  const head = node("tr", {}, ...columns.map(([title, how]) => node("th", { class: how, scope: "col" }, title)));
  const lines = rows.map((cells) => node("tr", {}, ...cells.map((cell, i) => node("td", { class: columns[i][1], "data-name": columns[i][0] }, cell))));
  const made = node("table", { class: kind, "aria-label": name }, node("thead", {}, head), node("tbody", {}, ...lines));
  return node("div", { class: "table", tabindex: 0, role: "region", "aria-label": name, "data-focus": name }, made);
}

function drawError() {
  const { body, fault } = said.error;
  if (fault) return put($("error"), note(fault, true));
  if (!body.versions.length) return put($("error"), note("No price really paid was reported yet (POST /feedback)."));
  const columns = [["version", ""], ["model", "spare"], ["sales", "number"], ["MAE", "number"], ["RMSE", "number"], ["bias", "number"], ["inside", "number"], ["by quarter, cheap to dear", "number"]];
  const share = (x) => (x === null ? "–" : number(x * 100, 3));
  const rows = body.versions.map((v) => [v.model_version, v.model, number(v.n), number(v.mae, 3), number(v.rmse, 3), number(v.bias, 3), v.within === null ? "–" : `${share(v.within)} %`, v.quarters.map((q) => share(q.within)).join(" · ")]);
  const told = body.judgement ? [node("p", {}, pill(body.judgement.verdict), ` ${body.judgement.told}`)] : [];
  put($("error"), ...told, table("Live error", columns, rows, "stack"));
}

function drawRecent() {
  const { body, fault } = said.recent;
  if (fault) return put($("recent"), note(fault, true));
  if (!body.predictions.length) return put($("recent"), note("No prediction is on record yet."));
  const columns = [["time", ""], ["price", "number"], ["interval", "number spare"], ["paid", "number"], ["ms", "number"], ["version", "spare"], ["route", "spare"], ["house", ""]];
  const rows = body.predictions.map((p) => {
    const more = node("details", {}, node("summary", { "data-focus": `values ${p.id}` }, `${Object.keys(p.features).length} values`));
    const end = p.capped ? " or more" : "", range = p.low === null ? "–" : `${number(p.low)} to ${number(p.high)}${end}`;
    const about = [["prediction", p.id], ["request", p.request_id || "–"], ["interval", range], ["version", p.model_version], ["route", p.route]];
    const list = [...about, ...Object.entries(p.features)];
    more.append(node("dl", {}, ...list.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value === null ? "unknown" : String(value))])));
    more.open = open.has(p.id);
    more.addEventListener("toggle", () => (more.open ? open.add(p.id) : open.delete(p.id)));
    const named = node("span", { class: "id", title: p.request_id }, p.request_id);
    const at = new Date(p.time);
    const priced = node("button", { class: "link", title: "Why?", "data-focus": p.id }, number(p.price), p.high === null || p.price >= p.high ? end : "");
    const odd = [p.clipped ? "price clipped" : null, p.outside.length ? `unlike the training: ${p.outside.join(", ")}` : null];
    const limits = odd.filter(Boolean).map((text) => node("span", { class: "pill warn" }, text));
    priced.addEventListener("click", () => askWhy(p));
    return [node("span", {}, node("span", { class: "spare" }, `${day(at)} `), clock(at, true)), priced, range,
      p.actual === null ? "–" : number(p.actual), number(p.latency_ms, 3), p.model_version, p.route, node("div", {}, more, ...limits, named)];
  });
  put($("recent"), table("Recent predictions", columns, rows));
}

// ---- why a price is what it is, for the prediction that was clicked

let why = null; // that prediction and the answer, null until it is there

async function askWhy(prediction) {
  const asked = { prediction, answer: null };
  why = asked;
  drawWhy();
  $("why-panel").scrollIntoView({ block: "nearest" });
  const answer = await ask("explain", prediction.features);
  if (why !== asked) return; // another one was clicked meanwhile
  asked.answer = answer;
  drawWhy();
  $("why-panel").scrollIntoView({ block: "nearest" });
}

const shown = (value) => (typeof value === "number" ? number(value, 3) : value ?? "unknown");
const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + number(Math.abs(Math.round(value * 100) / 100), 3);

// From the price of the reference house to this one, the largest steps first, what is small as one.
function steps(box, explanation, price) {
  const large = explanation.reasons.filter((r) => r.contribution !== 0).slice(0, 8);
  const rest = price - explanation.base - large.reduce((sum, r) => sum + r.contribution, 0);
  const all = large.map((r) => [r.feature, `${shown(r.value)} (${shown(r.reference)})`, r.contribution]);
  if (Math.abs(rest) > 1e-9) all.push(["all others", "", rest]);
  const ends = all.reduce((so, [, , step]) => [...so, so[so.length - 1] + step], [explanation.base]);
  const width = Math.max(box.clientWidth, 220);
  const rows = all.map(([name, values, step], i) => ({ name, values, bars: [[step > 0 ? "raises" : "lowers", ends[i], ends[i + 1]]], told: signed(step) }));
  return labelled(rows, { width, left: Math.min(230, width * 0.5), line: 25, thick: 16, low: Math.min(...ends), high: Math.max(...ends), right: 52, label: "What each feature adds to the price" });
}

// The price along one number that an owner could change, with its interval; the dot is this house.
function contrast(box, { feature, unit, value, values, prices, low, high }, priceUnit) {
  const points = values.map((v, i) => ({ at: v, value: prices[i], low: low?.[i] ?? null, high: high?.[i] ?? null }));
  const { svg, px, py } = banded(box, points, {
    xTicks: (width) => ticks(values[0], values[values.length - 1], width / 90).map((t) => [t, number(t)]),
    label: `The price along ${feature}`,
    tell: (i) => `${feature} ${number(values[i])}\n${number(prices[i])}${low ? ` (${number(low[i])} to ${number(high[i])})` : ""}`,
  });
  const at = values.indexOf(value);
  if (at >= 0) svg.append(shape("circle", { class: "dot second", cx: px(value), cy: py(prices[at]), r: 4 }));
  const title = node("h3", {}, feature, node("small", {}, [unit, `against ${priceUnit}`].filter(Boolean).join(", ")));
  return [title, svg, key(["price, all else as it is", ""], ...(at >= 0 ? [["this house", "second"]] : []))];
}

function drawWhy() {
  $("why-panel").hidden = why === null;
  if (why === null) return;
  const { prediction, answer } = why;
  const [reasons, contrasts] = [node("div", { class: "chart" }), node("div", { class: "chart" })];
  $("why-said").textContent = "";
  if (answer === null) return put($("why"), note("Working it out…"));
  if (answer.fault) return put($("why"), note(answer.fault, true));
  const { explanation, prediction: price, unit, interval, capped, model_version: version } = answer.body;
  const range = interval ? `, ${number(interval.low)} to ${number(interval.high)}${capped ? " or more" : ""}` : "";
  const other = version === prediction.model_version ? "" : `, by version ${version} (version ${prediction.model_version} said ${number(prediction.price)})`;
  $("why-said").textContent = `${number(price)}${range}${other}; the reference house: ${number(explanation.base)} (${unit})`;
  put($("why"), reasons, contrasts);
  const exact = explanation.error !== null && explanation.error <= 1e-6 * Math.abs(price) ? "exact" : explanation.error === null ? "off by an unknown amount" : `off by ${number(explanation.error, 2)} at most, as measured`;
  reasons.append(steps(reasons, explanation, price), node("p", { class: "key" }, `The house's value, the reference house's in brackets, and what that adds to the price in ${unit}: ${exact}.`));
  for (const one of explanation.contrasts) contrasts.append(...contrast(contrasts, one, unit));
}

// By how much the challenger's squared error is smaller, look by look, with the band that always holds.
function gainOver(box, { looks, version }) {
  const known = looks.filter((l) => l.low !== null).map((l) => ({ ...l, at: Date.parse(l.time) }));
  if (!known.length) return put(box, note("No interval yet: too few sales of closed days."));
  if (known.length === 1) known.unshift({ ...known[0], at: known[0].at - 3600e3 });
  const points = known.map((l) => ({ at: l.at, value: l.gain, low: l.low, high: l.high }));
  const [from, to] = [known[0].at, known[known.length - 1].at];
  const daily = to - from > 36 * 3600e3;
  const { svg } = banded(box, points, {
    xTicks: () => [0.12, 0.5, 0.88].map((share) => from + share * (to - from)).map((t) => [t, daily ? day(new Date(t)) : clock(new Date(t))]),
    label: `Gain of version ${version}, look by look`,
    zero: true,
    tell: (i) => {
      const l = known[i];
      return `${l.time.slice(0, 16).replace("T", " ")}\n${number(l.gain, 3)} (${number(l.low, 3)} to ${number(l.high, 3)}), ${number(l.sales)} sales`;
    },
  });
  put(box, svg, key(["gain: squared error that the challenger saves, and its band", ""]));
}

const VERDICTS = { begin: "unknown", "go on": "unknown", promote: "better", stop: "worse", end: "ended", keep: "worse", "roll back": "better" };

function drawStory(name, story) {
  const word = story.act.split(": ")[1];
  const mark = node("span", { class: `pill ${{ better: "good", worse: "bad" }[VERDICTS[word]] ?? ""}` }, word);
  const done = story.done ? `; ${story.done}` : story.over ? "" : "; under way";
  put($(`${name}-said`), mark, ` version ${story.version} beside ${story.against} since ${story.since.slice(0, 16).replace("T", " ")}: ${story.reason}${done}`);
  const [chart, right] = [node("div", { class: "chart" }), node("div")];
  put($(name), node("div", { class: "pair" }, chart, right));
  gainOver(chart, story);
  const row = (role, version, share, error) => [role, version, `${number(share * 100, 3)} %`, number(story.answered[version] ?? 0), number(error, 3)];
  const versions = [
    row(name === "trial" ? "champion" : "new champion", story.against, 1 - story.share, story.rmse.champion),
    row(name === "trial" ? "challenger" : "former champion", story.version, story.share, story.rmse.challenger),
  ];
  right.append(table(`Both versions (${name})`, [["role", ""], ["version", ""], ["share", "number"], ["answered", "number"], ["RMSE", "number"]], versions));
  if (!story.bands.length) return;
  const end = (value, text) => (value === null ? text : number(value, 3));
  const bands = story.bands.map((b) => [b.low === null ? `below ${end(b.high, "∞")}` : b.high === null ? `from ${end(b.low, "")}` : `${end(b.low)} to ${end(b.high)}`,
    number(b.houses), `${number(b.sales)} (${number(b.houses ? (b.sales / b.houses) * 100 : 0, 2)} %)`, number(b.gain, 3)]);
  right.append(table(`Price bands (${name})`, [["price band", ""], ["houses", "number"], ["sold", "number"], ["gain", "number"]], bands));
}

function drawTrial() {
  const { body, fault } = said.trial;
  $("trial-said").textContent = "";
  if (fault) return put($("trial"), note(fault, true));
  if (body.trial) drawStory("trial", body.trial);
  else put($("trial"), note("No version was tried beside the champion yet (housing-mlops challenge VERSION)."));
  $("watch-panel").hidden = body.watch === null;
  if (body.watch) drawStory("watch", body.watch);
}

function drawDecisions() {
  const { body, fault } = said.decisions;
  if (fault) return put($("decisions"), note(fault, true));
  if (!body.decisions.length) return put($("decisions"), note("Nobody has looked yet (housing-mlops retrain)."));
  const columns = [["time", ""], ["decision", ""], ["outcome", ""], ["version", ""], ["verdict", ""], ["reason", ""]];
  const steps = body.decisions.filter((d) => !d.act.endsWith("go on")); // those are the points of the charts above
  const rows = steps.slice(0, 10).map((d) => {
    const at = new Date(d.time);
    const training = d.state !== "done" ? d.state : d.promoted === null ? "waits" : d.promoted ? "promoted" : "not promoted";
    const came = d.act === "train" ? training : d.state;
    return [`${day(at)} ${clock(at)}`, d.act, came || "–", d.version ?? "–", d.verdict ?? "–", d.reason];
  });
  put($("decisions"), table("Decisions", columns, rows, "stack"));
}

function drawTiles() {
  const { metrics, traffic, drift } = said;
  const tiles = [];
  const tile = (name, value, unit = "", wide = false) => tiles.push(
    node("dl", { class: "tile" }, node("dt", {}, name), node("dd", { class: wide ? "wide" : "" }, value, unit ? node("small", {}, ` ${unit}`) : null)));
  if (traffic && !traffic.fault) {
    const { slices } = traffic.body;
    const count = slices.reduce((sum, s) => sum + s.count, 0);
    tile("Predictions", number(count), "in this time");
    const mean = slices.reduce((sum, s) => sum + s.count * (s.mean_price ?? 0), 0) / count;
    tile("Mean price", number(count ? mean : null), said.prices?.body?.unit ?? "");
  }
  if (metrics && !metrics.fault) {
    const m = metrics.body;
    tile("Latency, 95 % below", number(m.latency_ms.p95, 3), "ms");
    tile("Refused or failed", number(m.requests.errors), `of ${number(m.requests.count)} requests`);
    tile("Houses unlike the training", number(m.predictions.outside), `of ${number(m.predictions.count)}`);
    if (m.predictions.clipped) tile("Prices clipped", number(m.predictions.clipped));
    if (m.log) tile("Waiting in the journal", number(m.log.backlog_rows), "rows");
    tile("Running for", duration(m.uptime_s));
    $("model").textContent = m.model.name === null ? "no model yet" : `${m.model.name}, version ${m.model.version}`;
  }
  if (drift && !drift.fault) tile("Drift", drift.body.verdict === "drift" ? drift.body.features.join(", ") : drift.body.verdict, "", drift.body.verdict === "drift");
  put($("tiles"), ...tiles);
}

// ---- asking

const minutes = () => $("minutes").value;
const ROUTES = { // route, how to draw it, seconds between two questions
  health: [() => "health", drawHealth, 5],
  metrics: [() => "metrics", drawTiles, 5],
  traffic: [() => `monitoring/traffic?minutes=${minutes()}`, () => { drawTraffic(); drawTiles(); }, 5],
  recent: [() => "monitoring/predictions?limit=15", drawRecent, 5],
  prices: [() => "monitoring/prices", () => { drawPrices(); drawTiles(); }, 15],
  error: [() => "monitoring/live-error", drawError, 15],
  decisions: [() => "monitoring/decisions?limit=100", drawDecisions, 30],
  trial: [() => "monitoring/trial", drawTrial, 30],
  drift: [() => "monitoring/drift", () => { drawDrift(); drawTiles(); }, 15],
};

async function ask(route, body) {
  const stored = sessionStorage.getItem("housing-key");
  const headers = { Accept: "application/json", ...(stored ? { "X-API-Key": stored } : {}) };
  try {
    const posted = body && { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } };
    const answer = await fetch(route, { headers, cache: "no-store", ...posted });
    if (answer.status === 401) $("unlock").hidden = false;
    const said = await answer.json();
    if (answer.ok || route === "health") return { body: said };
    const faults = Array.isArray(said.detail) ? said.detail.map((e) => `${e.loc[e.loc.length - 1]}: ${e.msg}`).join("; ") : said.detail;
    return { fault: typeof faults === "string" ? faults : `The service answered ${answer.status}.` };
  } catch {
    return { fault: "The service does not answer." };
  }
}

async function refresh(name) {
  const [route, draw] = ROUTES[name];
  const asked = route();
  const answer = await ask(asked);
  if (asked !== route()) return; // another time span was chosen meanwhile
  const text = JSON.stringify(answer);
  if (said[name]?.text !== text) {
    said[name] = { ...answer, text };
    draw();
  }
  if (!answer.fault) $("updated").textContent = `${clock(new Date(), true)} UTC`;
}

// A slow answer is asked for less often, a fault looked at again soon; a hidden page asks nothing.
async function follow(name) {
  for (;;) {
    const begun = performance.now();
    if (!document.hidden) await refresh(name);
    const took = (performance.now() - begun) / 1000;
    const usual = said[name]?.fault ? 2 : ROUTES[name][2];
    const pause = document.hidden ? 1 : Math.max(usual, 10 * took);
    await new Promise((resolve) => setTimeout(resolve, pause * 1000));
  }
}

function redraw() {
  for (const [name, [, draw]] of Object.entries(ROUTES)) if (said[name]) draw();
  drawWhy();
}

let width = document.documentElement.clientWidth;
addEventListener("resize", () => {
  if (width !== document.documentElement.clientWidth) {
    width = document.documentElement.clientWidth;
    redraw();
  }
});
$("minutes").addEventListener("change", () => refresh("traffic"));
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("housing-key", $("key").value);
  $("unlock").hidden = true;
  Object.keys(ROUTES).forEach(refresh);
});
Object.keys(ROUTES).forEach(follow);
