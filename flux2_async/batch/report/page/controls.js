// Search, filter, order and keys.

function fillControls() {
  fillStates();
  fillSort();
  const told = [requests(), ...creditsTold(), moment(Date.parse($("summary").dataset.written) / 1000, "short")];
  $("summary").textContent = told.map((text) => text.replaceAll(" ", "\u00a0")).join(" · ");
}

// Both are filled again while rows arrive: what is there stays, with its focus and its choice.

const chips = new Map(STATES.map((state) => [state, $("states").appendChild(chip(state))]));

function fillStates() {
  for (const [state, button] of chips) {
    const total = rows.filter((row) => row.state === state).length;
    button.querySelector(".total").textContent = number(total);
    // The last request may have left a state that is still chosen.
    button.hidden = !total && !chosen.has(state);
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

function chip(state) {
  const button = make("button", { type: "button", "aria-pressed": "false", "data-state": state },
    make("span", { className: "dot", "data-state": state }), state, make("span", { className: "total" }));
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
  for (const button of chips.values()) button.setAttribute("aria-pressed", "false");
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
