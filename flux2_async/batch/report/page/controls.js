// Search, filter, order and keys.

function fillControls() {
  fillStates();
  fillSort();
  const credits = rows.reduce((sum, row) => sum + (row.credits ?? 0), 0);
  const told = [requests(), moment(Date.parse($("summary").dataset.written) / 1000, "short")];
  if (credits) told.splice(1, 0, `${number(credits)} credits`);
  $("summary").textContent = told.map((text) => text.replaceAll(" ", "\u00a0")).join(" · ");
}

// Both are filled again while rows arrive: what is there stays, with its focus and its choice.

function fillStates() {
  const totals = new Map();
  for (const row of rows) totals.set(row.state, (totals.get(row.state) ?? 0) + 1);
  const states = [...STATES, ...[...totals.keys()].filter((state) => !STATES.includes(state))];
  const chips = new Map([...$("states").children].map((button) => [button.dataset.state, button]));
  let before = null;
  for (const state of states) {
    const total = totals.get(state);
    let button = chips.get(state);
    // The last request has left a state that is still chosen.
    if (!total && !button) continue;
    if (!button) {
      button = chip(state, total ?? 0);
      before ? before.after(button) : $("states").prepend(button);
    }
    button.querySelector(".total").textContent = number(total ?? 0);
    button.hidden = !total && !chosen.has(state);
    before = button;
  }
}

function fillSort() {
  const wanted = COLUMNS[sort.value]?.[0];
  const names = COLUMNS.flatMap((column, index) => (column.used ? [[index, column[0]]] : []));
  const there = [...sort.options].map((option) => [Number(option.value), option.textContent]);
  if (JSON.stringify(names) === JSON.stringify(there)) return;
  sort.replaceChildren(...names.map(([value, text]) => make("option", { value, text })));
  const again = names.find(([, text]) => text === wanted);
  if (again) sort.value = again[0];
}

function chip(state, total) {
  const button = make("button", { type: "button", "aria-pressed": "false", "data-state": state },
    make("span", { className: "dot", "data-state": state }), state, make("span", { className: "total", text: number(total) }));
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
