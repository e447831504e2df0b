"use strict";

// Whatever is in the rows reaches the page as text, through textContent and through addresses that are looked at.

const rows = JSON.parse(document.getElementById("rows").textContent);
const $ = (id) => document.getElementById(id);
const grid = $("grid"), viewer = $("viewer"), search = $("search"), sort = $("sort"), direction = $("direction");

const STATES = ["done", "failed", "unknown", "submitted", "submitting", "queued"];
// What stands where the picture would be: by state, and where it is done by what became of the download.
const REASONS = {
  failed: ["No picture", "The service refused it, or failed."],
  unknown: ["Not known", "Its reply was lost, so it may have been paid for."],
  submitted: ["Being made", "The service has accepted it."],
  submitting: ["Being sent", "The service has not answered yet."],
  queued: ["Waiting", "It was not sent yet."],
  off: ["Not downloaded", "The address works for about a day."],
  pending: ["Not downloaded yet", "The same command again goes on with it."],
  expired: ["Expired", "The service does not keep the picture any more."],
  done: ["No preview", "The file cannot be shown small."],
};
const GAP = 20, NARROWEST = 300, AHEAD = 900, SOURCES = 3;
// Browsers end a page at 17 million pixels or more.
const TALLEST = 15e6;

function make(tag, { text, ...properties } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

const safe = (address) => (/^(https?:\/\/|\.\.?\/)/i.test(address ?? "") ? address : undefined);
const moment = (seconds, timeStyle = "medium") => new Date(seconds * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle });
const count = (number) => number.toLocaleString("en-GB");
const rounded = (number) => Number(number.toFixed(2)).toLocaleString("en-GB");

function span(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

// Columns: label, value to compare, text to show

const COLUMNS = [
  ["Input order", (row) => row.index],
  ["Id", (row) => row.id],
  ["State", (row) => row.state],
  ["Prompt", (row) => row.prompt],
  ["Credits", (row) => row.credits, rounded],
  ["Time taken", (row) => row.took, span],
  ["Accepted", (row) => row.submitted, moment],
  ["Finished", (row) => row.finished, moment],
  ["Model", (row) => row.model],
  ["Tier", (row) => row.tier],
  ["Aspect ratio", (row) => row.ratio],
  ["Resolution", (row) => row.resolution],
  ["Task id", (row) => row.task],
  ["Download", (row) => row.download],
  ["Error", (row) => row.error],
  ["Kind of error", (row) => row.type],
  ["Input line", (row) => row.line],
];

function prepare() {
  const extra = new Set();
  rows.forEach((row, index) => {
    row.index = index;
    row.inputs ??= [];
    row.outputs ??= [];
    row.extra = new Map(row.extra);
    row.haystack = [row.prompt, row.id, row.task].join("\n").toLowerCase();
    for (const name of row.extra.keys()) extra.add(name);
  });
  for (const name of extra) COLUMNS.push([name, (row) => row.extra.get(name)]);
  // A column of figures is compared as such, wherever it came from.
  for (const column of COLUMNS) {
    const values = rows.map(column[1]).filter((value) => value !== undefined);
    column.figures = values.length > 0 && values.every((value) => String(value).trim() !== "" && isFinite(value));
    column.used = values.length > 0;
  }
}

// What is shown, and in which order

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
const chosen = new Set();
let shown = [], current = 0, opened = null;

function select() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS[sort.value];
  const turn = direction.getAttribute("aria-pressed") === "true" ? -1 : 1;
  shown = rows.filter((row) => (!chosen.size || chosen.has(row.state)) && words.every((word) => row.haystack.includes(word)));
  shown.sort((one, other) => compare(column, turn, one, other));
  current = 0;
  $("nothing").hidden = shown.length > 0;
  arrange();
  if (scrollY > grid.offsetTop - $("tools").offsetHeight) scrollTo(0, $("tools").offsetTop);
}

function compare(column, turn, one, other) {
  const a = column[1](one), b = column[1](other);
  // What has no value comes last either way.
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined) || one.index - other.index;
  const order = column.figures ? a - b : collator.compare(a, b);
  return order * turn || one.index - other.index;
}

// The grid: as many cards as can be seen, wherever the page is scrolled to

const cards = new Map();
let columns = 1, pitch = 1, width = 1, reachable = 0;

function arrange() {
  const room = grid.clientWidth;
  columns = Math.max(1, Math.floor((room + GAP) / (NARROWEST + GAP)));
  width = (room - GAP * (columns - 1)) / columns;
  grid.style.setProperty("--card-width", `${width}px`);
  for (const card of cards.values()) card.remove();
  cards.clear();
  pitch = cardHeight() + GAP;
  reachable = Math.min(shown.length, Math.floor(TALLEST / pitch) * columns);
  grid.style.height = `${Math.max(0, Math.ceil(reachable / columns) * pitch - GAP)}px`;
  tell();
  paint();
}

function cardHeight() {
  if (!shown.length) return 1;
  const sample = grid.appendChild(draw(shown[0]));
  const height = sample.offsetHeight;
  sample.remove();
  return height;
}

function tell() {
  let text = shown.length === rows.length ? "" : `${count(shown.length)} of ${requests()}`;
  if (reachable < shown.length) text = `The first ${count(reachable)} of ${count(shown.length)}; search for the others`;
  $("count").textContent = text;
}

const requests = () => (rows.length === 1 ? "1 request" : `${count(rows.length)} requests`);

function paint() {
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor((top - AHEAD) / pitch)) * columns;
  const end = Math.min(reachable, Math.max(0, Math.ceil((top + innerHeight + AHEAD) / pitch)) * columns);
  for (const [index, card] of cards) {
    // Who has the focus keeps it, however far away.
    if ((index >= first && index < end) || card.contains(document.activeElement)) continue;
    card.remove();
    cards.delete(index);
  }
  for (let index = first; index < end; index++) if (!cards.has(index)) place(index);
}

function place(index) {
  const card = draw(shown[index]);
  card.setAttribute("aria-setsize", shown.length);
  card.setAttribute("aria-posinset", index + 1);
  card.style.transform = `translate(${(index % columns) * (width + GAP)}px, ${Math.floor(index / columns) * pitch}px)`;
  const button = card.firstChild;
  button.tabIndex = index === current ? 0 : -1;
  button.addEventListener("focus", () => mark(index));
  button.addEventListener("click", () => open(index));
  // Read aloud in the order of the page, in whatever order they came.
  const later = Math.min(...[...cards.keys()].filter((other) => other > index));
  grid.insertBefore(card, cards.get(later) ?? null);
  cards.set(index, card);
}

function mark(index) {
  const before = cards.get(current);
  if (before) before.firstChild.tabIndex = -1;
  current = index;
  const card = cards.get(index);
  if (card) card.firstChild.tabIndex = 0;
}

function focus(index) {
  if (!reachable) return;
  index = Math.max(0, Math.min(reachable - 1, index));
  const top = grid.getBoundingClientRect().top + Math.floor(index / columns) * pitch;
  const low = $("tools").offsetHeight + 12, high = innerHeight - 12;
  if (top < low) scrollBy(0, top - low);
  else if (top + pitch - GAP > high) scrollBy(0, Math.min(top - low, top + pitch - GAP - high));
  paint();
  cards.get(index).firstChild.focus({ preventScroll: true });
}

// One card

function draw(row) {
  const well = make("span", { className: "well", "data-state": row.state });
  if (row.inputs.length) well.append(sources(row.inputs));
  well.append(output(row));
  const figures = [row.credits === undefined ? "" : `${rounded(row.credits)} cr`, row.took === undefined ? "" : span(row.took)];
  const line = make("span", { className: "line" },
    badge(row.state),
    make("span", { className: "id", text: row.id, dir: "auto" }),
    make("span", { className: "figures", text: figures.filter(Boolean).join(" · ") }));
  const words = make("span", { className: "words" }, make("span", { className: "text", text: row.prompt ?? "", dir: "auto" }), line);
  return make("li", { className: "card" }, make("button", { type: "button", "aria-label": label(row) }, well, words));
}

function label(row) {
  const told = row.state === "failed" && row.error ? `failed: ${row.error}` : row.state;
  return `${row.prompt ?? ""}, ${row.id}, ${told}`;
}

function badge(state) {
  return make("span", { className: "state", "data-state": state }, make("span", { className: "dot" }), state);
}

function sources(inputs) {
  const column = make("span", { className: "sources" });
  inputs.slice(0, SOURCES).forEach((picture, index) => {
    const tile = make("span", { className: "source" }, picture.thumb ? image(picture.thumb) : tileText(picture));
    if (index === SOURCES - 1 && inputs.length > SOURCES) tile.append(make("span", { className: "more", text: `+${inputs.length - SOURCES + 1}` }));
    column.append(tile);
  });
  return column;
}

const tileText = (picture) => (/^https?:/i.test(picture.name) ? "URL" : "file");

function image(source, alt = "") {
  return make("img", { loading: "lazy", decoding: "async", alt, draggable: false, src: safe(source) ?? "" });
}

function output(row) {
  const place = make("span", { className: "output" });
  const picture = row.outputs[0];
  if (picture?.thumb) place.append(image(picture.thumb));
  else place.append(reason(row, row.error));
  if (row.outputs.length > 1) place.append(make("span", { className: "many", text: `1 of ${row.outputs.length}` }));
  return place;
}

function reason(row, error) {
  const [title, usual] = REASONS[row.state === "done" ? row.download : row.state] ?? REASONS.done;
  return make("span", { className: "reason" }, make("b", { text: title }), make("span", { text: error ?? usual, dir: "auto" }));
}

// One request, large

function open(index) {
  opened = index;
  const row = shown[index];
  fill(row);
  $("previous").disabled = index === 0;
  $("next").disabled = index === reachable - 1;
  if (!viewer.open) viewer.showModal();
  $("stage").focus();
  viewer.scrollTop = 0;
}

function fill(row) {
  $("viewer-title").textContent = row.id;
  $("prompt").textContent = row.prompt ?? "";
  $("error").textContent = row.type ? `${row.type}: ${row.error ?? ""}` : row.error ?? "";
  $("error").dataset.state = row.state;
  $("error").hidden = !row.error;
  const strips = [["Result", row.outputs], [row.inputs.length > 1 ? "Inputs" : "Input", row.inputs]];
  $("pictures").replaceChildren(...strips.filter(([, pictures]) => pictures.length).flatMap(([title, pictures]) => strip(title, pictures, row)));
  $("facts").replaceChildren(...facts(row));
  const first = row.outputs[0];
  show(row, first, "Result");
}

function strip(title, pictures, row) {
  const list = make("ul", { className: "strip", role: "list" });
  const links = [];
  pictures.forEach((picture, index) => {
    const name = pictures.length > 1 ? `${title} ${index + 1}` : title;
    if (picture.thumb) {
      const button = make("button", { type: "button", "aria-label": `${name}: ${picture.name}`, "aria-pressed": "false" }, image(picture.thumb));
      button.picture = picture;
      button.addEventListener("click", () => show(row, picture, name));
      list.append(make("li", {}, button));
    } else {
      links.push(make("li", {}, link(picture)));
    }
  });
  const parts = [make("h3", { text: title })];
  if (list.children.length) parts.push(list);
  if (links.length) parts.push(make("ul", { className: "strip", role: "list" }, ...links));
  return parts;
}

function link(picture) {
  const href = safe(picture.href);
  if (!href) return make("span", { text: picture.name });
  return make("a", { href, target: "_blank", rel: "noopener noreferrer", text: picture.name });
}

function show(row, picture, name) {
  const stage = $("stage");
  stage.dataset.state = picture ? "" : row.state;
  for (const button of $("pictures").querySelectorAll("button")) button.setAttribute("aria-pressed", button.picture === picture);
  const href = safe(picture?.href);
  $("file").parentElement.hidden = !href;
  $("file").href = href ?? "";
  $("file").textContent = picture ? `Open ${picture.name}` : "";
  if (!picture?.thumb) {
    // The error stands beside it already.
    stage.replaceChildren(reason(row, undefined));
    return;
  }
  const alt = name.startsWith("Result") ? `${name}: ${row.prompt ?? ""}` : `${name}: ${picture.name}`;
  const large = make("img", { alt, src: href ?? picture.thumb });
  // The file may have been moved since; what is left of it is better than nothing.
  large.addEventListener("error", () => { large.src = picture.thumb; }, { once: true });
  stage.replaceChildren(large);
}

// Before and after in the same place tell more than side by side.
function flip() {
  const buttons = [...$("pictures").querySelectorAll("button")];
  const at = buttons.findIndex((button) => button.getAttribute("aria-pressed") === "true");
  buttons[(at + 1) % buttons.length]?.click();
}

function facts(row) {
  const skipped = new Set(["Input order", "Id", "Prompt", "Error", "Kind of error"]);
  return COLUMNS.filter(([title, value]) => !skipped.has(title) && value(row) !== undefined).flatMap(([title, value, text = String]) => [
    make("dt", { text: title, dir: "auto" }),
    make("dd", { dir: "auto" }, title === "State" ? badge(row.state) : text(value(row))),
  ]);
}

function step(by) {
  const index = opened + by;
  if (index >= 0 && index < reachable) open(index);
}

// Controls

function fillControls() {
  const totals = new Map();
  for (const row of rows) totals.set(row.state, (totals.get(row.state) ?? 0) + 1);
  const states = [...STATES.filter((state) => totals.has(state)), ...[...totals.keys()].filter((state) => !STATES.includes(state))];
  for (const state of states) $("states").append(chip(state, totals.get(state)));
  COLUMNS.forEach((column, index) => column.used && sort.append(make("option", { value: index, text: column[0] })));
  const credits = rows.reduce((sum, row) => sum + (row.credits ?? 0), 0);
  const told = [requests(), moment(Date.parse($("summary").dataset.written) / 1000, "short")];
  if (credits) told.splice(1, 0, `${rounded(credits)} credits`);
  $("summary").textContent = told.map((text) => text.replaceAll(" ", "\u00a0")).join(" · ");
}

function chip(state, total) {
  const button = make("button", { type: "button", "aria-pressed": "false" },
    make("span", { className: "dot", "data-state": state }), state, make("span", { className: "total", text: count(total) }));
  button.addEventListener("click", () => {
    if (!chosen.delete(state)) chosen.add(state);
    button.setAttribute("aria-pressed", chosen.has(state));
    select();
  });
  return button;
}

function reset() {
  search.value = "";
  chosen.clear();
  for (const button of $("states").children) button.setAttribute("aria-pressed", "false");
  select();
  search.focus();
}

const MOVES = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: () => columns, ArrowUp: () => -columns, Home: () => -Infinity, End: () => Infinity };

function keyInGrid(event) {
  const move = MOVES[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  focus(current + move());
}

function keyInViewer(event) {
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    event.preventDefault();
    step(event.key === "ArrowRight" ? 1 : -1);
  }
  if (event.key === " " && !event.target.closest("a, button")) {
    event.preventDefault();
    flip();
  }
}

function keyAnywhere(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");
  if (event.key === "/" && !typing && !viewer.open) {
    event.preventDefault();
    search.focus();
    search.select();
  }
}

function keyInSearch(event) {
  if (event.key !== "ArrowDown" && event.key !== "Enter") return;
  event.preventDefault();
  focus(0);
}

function listen() {
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; paint(); });
  }, { passive: true });
  let room = grid.clientWidth;
  new ResizeObserver(() => {
    if (grid.clientWidth !== room) { room = grid.clientWidth; arrange(); }
  }).observe(grid);
  addEventListener("resize", paint);
  search.addEventListener("input", select);
  sort.addEventListener("change", select);
  direction.addEventListener("click", () => {
    direction.setAttribute("aria-pressed", direction.getAttribute("aria-pressed") !== "true");
    select();
  });
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", reset);
  grid.addEventListener("keydown", keyInGrid);
  search.addEventListener("keydown", keyInSearch);
  viewer.addEventListener("keydown", keyInViewer);
  document.addEventListener("keydown", keyAnywhere);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("close", () => focus(opened));
}

prepare();
fillControls();
listen();
select();
