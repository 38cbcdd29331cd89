"use strict";
// The pages' only script: decides again at another level, filters, sorts, marks. It sets text and
// never HTML, so that a file's name stays text. Without it a page still shows everything.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const root = document.documentElement;
const list = byId("cards");
const facts = new Map((data.cards || []).map((card) => [String(card.index), card]));
const places = new Map((data.cards || []).map((card, place) => [card, place]));
const marks = new Map(); // from an image's number to "good" or "bad"
let chosen = null;
let level = null;

root.classList.add("scripted");

function allCards() {
  return list ? Array.from(list.children) : [];
}

function visibleCards() {
  return allCards().filter((card) => !card.hidden);
}

function factsOf(card) {
  return facts.get(card.dataset.index);
}

// Decisions

function isAnomalous(p) {
  return p <= data.levels[level].alpha * (1 + 1e-9);
}

function inPercent(share) {
  return `${Number((100 * share).toPrecision(2))} %`;
}

function setLevel(k) {
  level = Math.min(Math.max(k, 0), data.levels.length - 1);
  const { alpha, text, x, threshold } = data.levels[level];
  let count = 0;
  for (const card of allCards()) {
    const anomalous = isAnomalous(factsOf(card).p);
    count += anomalous;
    card.classList.toggle("anomalous", anomalous);
    card.querySelector(".verdict").textContent = anomalous ? "▲ anomalous" : "✓ normal";
  }
  byId("count").textContent = count;
  byId("expected").textContent = Number((alpha * facts.size).toPrecision(3));
  for (const one of document.querySelectorAll(".alpha")) one.textContent = inPercent(alpha);
  byId("alpha").textContent = text;
  byId("at").textContent = threshold === null ? "" : `score above ${threshold.toPrecision(3)}`;
  byId("command").textContent = data.command.replace("ALPHA", text);
  byId("threshold").setAttribute("transform", `translate(${x})`);
  byId("level").value = level;
  showAndHide();
}

function nearestLevel(x) {
  let best = 0;
  data.levels.forEach((one, k) => {
    if (Math.abs(one.x - x) < Math.abs(data.levels[best].x - x)) best = k;
  });
  return best;
}

function startDragging() {
  const chart = byId("chart");
  const handle = byId("threshold");
  const move = (event) => {
    const frame = chart.getScreenCTM().inverse();
    setLevel(nearestLevel(new DOMPoint(event.clientX, event.clientY).matrixTransform(frame).x));
  };
  handle.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    handle.setPointerCapture(event.pointerId);
    handle.addEventListener("pointermove", move);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    handle.addEventListener(end, () => handle.removeEventListener("pointermove", move));
  }
  byId("level").addEventListener("input", (event) => setLevel(Number(event.target.value)));
}

// What is shown, and in which order

function isWanted(card) {
  const name = factsOf(card).name.toLowerCase();
  if (!name.includes(byId("search").value.trim().toLowerCase())) return false;
  const wanted = byId("filter").value;
  const own = marks.get(card.dataset.index) || "none";
  if (wanted === "anomalous") return card.classList.contains("anomalous");
  if (wanted === "normal") return !card.classList.contains("anomalous");
  if (["good", "bad", "none"].includes(wanted)) return own === wanted;
  if (wanted === "errors") return ["missed", "alarm"].includes(factsOf(card).group);
  return wanted === "all" || factsOf(card).group === wanted;
}

function showAndHide() {
  if (!list || !byId("search")) return;
  for (const card of allCards()) card.hidden = !isWanted(card);
  const count = visibleCards().length;
  byId("shown").textContent = `${count} of ${facts.size} shown`;
  if (byId("nothing")) byId("nothing").hidden = count > 0;
  if (chosen && chosen.hidden) choose(null);
}

function sortCards() {
  const orders = {
    worst: (a, b) => a.p - b.p || b.score - a.score || a.index - b.index,
    name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }),
    order: (a, b) => a.index - b.index,
    given: (a, b) => places.get(a) - places.get(b),
  };
  const order = orders[byId("sort").value];
  const cards = allCards();
  cards.sort((a, b) => order(factsOf(a), factsOf(b)));
  list.append(...cards);
}

// One card is chosen, by the keyboard or a click

function choose(card) {
  if (chosen) chosen.classList.remove("chosen");
  chosen = card;
  if (!card) return;
  card.classList.add("chosen");
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}

function columns(cards) {
  const first = cards[0].offsetTop;
  const next = cards.findIndex((card) => card.offsetTop > first);
  return next < 1 ? cards.length : next;
}

function step(key) {
  const cards = visibleCards();
  if (cards.length === 0) return;
  const at = cards.indexOf(chosen);
  const width = columns(cards);
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width }[key];
  const next = at < 0 ? 0 : at + by;
  if (next >= 0 && next < cards.length) choose(cards[next]);
}

// Marks

function mark(card, value) {
  const index = card.dataset.index;
  if (value && marks.get(index) !== value) marks.set(index, value);
  else marks.delete(index);
  showMark(card);
  keepMarks();
  showAndHide();
}

function showMark(card) {
  const value = marks.get(card.dataset.index) || "";
  card.dataset.mark = value;
  for (const button of card.querySelectorAll("[data-mark]")) {
    button.setAttribute("aria-pressed", String(button.dataset.mark === value));
  }
  if (byId("save")) {
    byId("save").disabled = marks.size === 0;
    const count = marks.size === 1 ? "1 mark" : `${marks.size || ""} marks`.trim();
    byId("save").textContent = `Save ${count} as CSV`;
  }
}

// A browser may keep nothing for files: marks then last as long as the page.
function keepMarks() {
  try {
    localStorage.setItem(data.id, JSON.stringify(Array.from(marks)));
  } catch {
    // as above
  }
}

function restoreMarks() {
  try {
    for (const [index, value] of JSON.parse(localStorage.getItem(data.id)) || []) {
      if (facts.has(index) && ["good", "bad"].includes(value)) marks.set(index, value);
    }
  } catch {
    // as above
  }
  allCards().forEach(showMark);
}

// As `pydfm score` writes them: a cell that a spreadsheet would take for a formula gets an
// apostrophe.
function cell(value) {
  const text = String(value);
  const safe = /^[=+\-@]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function marksAsCsv() {
  const rows = [["path", "mark", "verdict", "score", "p_value"]];
  for (const [index, one] of facts) {
    if (!marks.has(index)) continue;
    const verdict = byId(`card-${index}`).classList.contains("anomalous") ? "anomalous" : "ok";
    rows.push([one.path, marks.get(index), verdict, one.score, one.p]);
  }
  return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
}

function saveMarks() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([marksAsCsv()], { type: "text/csv" }));
  link.download = data.csv_name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Keys, clicks, light and dark

function switchTheme() {
  const dark = getComputedStyle(root).colorScheme === "dark";
  root.dataset.theme = dark ? "light" : "dark";
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key.startsWith("Arrow") && list) step(event.key);
  else if (event.key === "/" && byId("search")) byId("search").focus();
  else if (event.key === "o" && byId("overlays")) byId("overlays").click();
  else if (event.key === "t") switchTheme();
  else if (event.key === "Enter" && chosen === event.target) chosen.classList.toggle("large");
  else if (event.key === "Escape") choose(null);
  else if ("gbu".includes(event.key) && chosen && byId("save")) {
    mark(chosen, { g: "good", b: "bad", u: "" }[event.key]);
  } else return;
  event.preventDefault();
}

function onClick(event) {
  const card = event.target.closest(".card");
  if (!card || event.target.closest("a, summary")) return;
  choose(card);
  const button = event.target.closest("[data-mark]");
  if (button && button !== card) mark(card, button.dataset.mark);
  else if (event.target.closest(".picture")) card.classList.toggle("large");
}

byId("theme").addEventListener("click", switchTheme);
document.addEventListener("keydown", onKey);
if (list) {
  list.addEventListener("click", onClick);
  restoreMarks();
}
if (byId("search")) {
  byId("search").addEventListener("input", showAndHide);
  byId("filter").addEventListener("change", showAndHide);
  byId("sort").addEventListener("change", sortCards);
  showAndHide();
}
if (byId("overlays")) {
  byId("overlays").addEventListener("change", (event) => {
    document.body.classList.toggle("no-overlays", !event.target.checked);
  });
}
if (byId("save")) byId("save").addEventListener("click", saveMarks);
if (data.levels) {
  startDragging();
  level = data.start;
}
