// While the batch runs: rows arrive, and whatever somebody looks at stays where it is.

const OFTEN = 500;
const known = new Map();
let arriving = [], due = null, told = 0;
let saying = "";

function follow(address) {
  $("link").hidden = false;
  // Nothing is known of the batch until the server has told.
  $("tools").hidden = true;
  $("summary").textContent = "";
  const source = new EventSource(address);
  source.addEventListener("message", (event) => {
    news = JSON.parse(event.data);
    arriving.push(...news.rows);
    due ??= setTimeout(arrive, OFTEN);
  });
  // What is left becomes less without news as well.
  setInterval(() => { if (news.running) showSummary(); }, COUNTED);
  source.addEventListener("error", () => showLink("lost", "no connection; looking again"));
}

function arrive() {
  const begun = performance.now();
  const changed = merge(arriving);
  arriving = [];
  if (changed.size) {
    rows.sort((one, other) => (one.line ?? Infinity) - (other.line ?? Infinity) || one.index - other.index);
    rows.forEach((row, index) => { row.index = index; });
    findColumns();
    fillStates();
    fillSort();
    refresh(changed);
  }
  showSummary();
  // A page of very many rows takes its time, and is to be used meanwhile.
  due = null;
  if (arriving.length) due = setTimeout(arrive, Math.max(OFTEN, 10 * (performance.now() - begun)));
}

function merge(arrived) {
  const changed = new Set();
  for (const row of arrived) {
    const old = known.get(row.id);
    const index = old ? old.index : rows.length;
    // The same object, by which everything else knows it.
    if (old) for (const name of Object.keys(old)) delete old[name];
    const kept = Object.assign(old ?? {}, row);
    prepareRow(kept, index);
    if (!old) {
      known.set(row.id, kept);
      rows.push(kept);
    }
    changed.add(kept);
  }
  return changed;
}

function refresh(changed) {
  const marked = shown[current], opening = opened === null ? null : shown[opened];
  const focused = document.activeElement?.closest?.(".card")?.row ?? null;
  const empty = shown.length === 0;
  choose();
  current = Math.max(0, shown.indexOf(marked));
  if (empty) {
    arrange();
  } else {
    stretch();
    rearrange(changed);
  }
  if (focused && focused === shown[current]) cards.get(current)?.firstChild.focus({ preventScroll: true });
  if (Date.now() - told > SPOKEN) {
    told = Date.now();
    tell();
  }
  if (viewer.open && opening) {
    const index = shown.indexOf(opening);
    if (index >= 0) opened = index;
    if (changed.has(opening)) fill(opening);
    $("previous").disabled = opened === 0;
    $("next").disabled = opened >= reachable - 1;
  }
}

// Cards whose rows are as they were move to their new places; the others are drawn anew.
function rearrange(changed) {
  const places = new Map(shown.map((row, index) => [row, index]));
  const kept = [...cards.values()].filter((card) => !changed.has(card.row) && places.has(card.row) && places.get(card.row) < reachable);
  for (const card of cards.values()) if (!kept.includes(card)) card.remove();
  cards.clear();
  kept.sort((one, other) => places.get(one.row) - places.get(other.row));
  let before = null;
  for (const card of kept) {
    const index = places.get(card.row);
    put(card, index);
    cards.set(index, card);
    if (before && before.nextSibling !== card) before.after(card);
    before = card;
  }
  paint();
}

function showSummary() {
  const done = rows.filter((row) => row.state === "done").length;
  const total = Math.max(news.total ?? 0, rows.length);
  $("tools").hidden = !rows.length;
  $("waiting").hidden = rows.length > 0;
  const parts = [`${number(done)} of ${total === 1 ? "1 request" : `${number(total)} requests`} done`, ...creditsTold()];
  const left = news.running && news.ends ? roughly(news.ends - Date.now() / 1000) : "";
  if (left) parts.push(`${left}, until ${clock(news.ends)}`);
  $("summary").textContent = parts.map((text) => text.replaceAll(" ", "\u00a0")).join(" · ");
  const last = news.changed ? `last change ${new Date(news.changed * 1000).toLocaleTimeString("en-GB")}` : "no request yet";
  showLink(news.running ? "live" : "ended", `${news.running ? "running" : "not running"} · ${last}`);
  if (rows.length) {
    saying = news.running ? parts[0] : `${parts[0]}; the batch does not run`;
    speak(() => { if ($("said").textContent !== saying) $("said").textContent = saying; });
  }
  showExpectations();
}
