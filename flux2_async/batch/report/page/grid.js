// The grid: it draws only the cards that can be seen, so that ten thousand rows scroll like ten.

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
  stretch();
  tell();
  paint();
}

function stretch() {
  reachable = Math.min(shown.length, Math.floor(TALLEST / pitch) * columns);
  grid.style.height = `${Math.max(0, Math.ceil(reachable / columns) * pitch - GAP)}px`;
}

function cardHeight() {
  if (!shown.length) return 1;
  const sample = grid.appendChild(draw(shown[0]));
  const height = sample.offsetHeight;
  sample.remove();
  return height;
}

function tell() {
  let text = shown.length === rows.length ? "" : `${number(shown.length)} of ${requests()}`;
  if (reachable < shown.length) text = `The first ${number(reachable)} of ${number(shown.length)}; search for the others`;
  $("count").textContent = text;
}

const requests = () => (rows.length === 1 ? "1 request" : `${number(rows.length)} requests`);

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
  card.row = shown[index];
  const button = card.firstChild;
  button.addEventListener("focus", () => mark(card.index));
  button.addEventListener("click", () => open(card.index));
  put(card, index);
  // Read aloud in the order of the page, in whatever order they came.
  const later = Math.min(...[...cards.keys()].filter((other) => other > index));
  grid.insertBefore(card, cards.get(later) ?? null);
  cards.set(index, card);
}

function put(card, index) {
  card.index = index;
  card.setAttribute("aria-setsize", shown.length);
  card.setAttribute("aria-posinset", index + 1);
  card.style.transform = `translate(${(index % columns) * (width + GAP)}px, ${Math.floor(index / columns) * pitch}px)`;
  card.firstChild.tabIndex = index === current ? 0 : -1;
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
  const figures = [row.credits === undefined ? "" : `${number(row.credits)} cr`, row.took === undefined ? "" : span(row.took)];
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
  if (picture?.thumb) place.append(preview(picture, row));
  // An error that tells of what is unknown is long, and what to do stands at its end.
  else place.append(reason(row, row.state === "unknown" ? undefined : row.error));
  if (row.outputs.length > 1) place.append(make("span", { className: "many", text: `1 of ${row.outputs.length}` }));
  return place;
}

// A server makes the small picture when it is asked for, and may find that it cannot.
function preview(picture, row) {
  const small = image(picture.thumb);
  small.addEventListener("error", () => small.replaceWith(reason({ ...row, download: "done" }, undefined)), { once: true });
  return small;
}

function reason(row, error) {
  const [title, usual] = REASONS[row.state === "done" ? row.download : row.state] ?? REASONS.done;
  const words = error ?? (UNFINISHED.has(row.state) ? expectation(row) : usual);
  return make("span", { className: "reason" }, make("b", { text: title }), make("span", { text: words, dir: "auto" }));
}

// Time passes without news as well.
function showExpectations() {
  for (const card of cards.values()) {
    const words = UNFINISHED.has(card.row.state) && !card.row.error && card.querySelector(".reason span");
    if (words) words.textContent = expectation(card.row);
  }
}
