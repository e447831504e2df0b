const SHOWN = 200, MOST_CELLS = 60, WAIT = 4000;
const tasks = new Map();
let ahead = 0, accepted = 0, ended = 0, hush;

const now = () => Date.now() + ahead;
// Asked for as a client does, a picture would count as a client's call, and meet the faults that are meant for one.
const shown = (path) => `/page/shown${path}`;
const clock = (moment) => new Date(moment).toLocaleTimeString("en-GB");

// What is said aloud, and shown for a moment when it answers a button.

function say(text, { quietly = false } = {}) {
  const said = $("said");
  said.className = quietly ? "heard" : "said";
  said.textContent = text;
  clearTimeout(hush);
  hush = setTimeout(() => { said.textContent = ""; }, WAIT);
}

function summary() {
  if ($("said").textContent) speak(summary);
  else say(`${number(accepted)} tasks accepted, ${number(ended)} of those shown have ended`, { quietly: true });
}

async function press(path, body) {
  try {
    const answer = await fetch(path, { method: "POST", body });
    const text = await answer.text();
    return { ok: answer.ok, text: answer.headers.get("Content-Type")?.startsWith("application/json") ? JSON.parse(text).message : text };
  } catch {
    return { ok: false, text: "the emulator does not answer" };
  }
}

// The ledger, the limit, the connections

function showLedger(ledger) {
  accepted = ledger.accepted;
  for (const name of ["accepted", "charged", "refused"]) $(name).textContent = number(ledger[name]);
  $("reasons").textContent = ledger.reasons.map(([reason, count]) => `${number(count)} × ${reason}`).join(" · ");
  $("reasons").hidden = !ledger.reasons.length;
  $("others").textContent = `Balance ${number(ledger.balance)} · ${number(ledger.polls)} polls · ${number(ledger.uploads)} uploads · ${number(ledger.callbacks)} callbacks`;
  showCount();
}

const POLICIES = { sliding: "a log of the last seconds", fixed: "fixed windows", bucket: "a token bucket", counter: "two weighted windows" };

function showLimit(limit) {
  const bar = $("bar");
  bar.hidden = !limit;
  if (!limit) {
    $("limit-sum").textContent = "No limit";
    $("limit-text").textContent = "Every new task is admitted.";
    return;
  }
  const full = limit.wait > 0;
  $("limit-sum").replaceChildren(number(limit.used), " of ", number(limit.limit), " ", make("small", { text: `${limit.policy === "sliding" ? "in any" : "per"} ${number(limit.period)} s` }));
  bar.classList.toggle("full", full);
  bar.setAttribute("aria-valuemax", limit.limit);
  bar.setAttribute("aria-valuenow", limit.used);
  bar.setAttribute("aria-valuetext", `${number(limit.used)} of ${number(limit.limit)}`);
  drawBar(bar, limit);
  const room = full ? `Full: 429 for ${number(limit.wait)} s more` : "A new task is admitted now";
  $("limit-text").textContent = `${room} · counted by ${POLICIES[limit.policy] ?? limit.policy}`;
}

function drawBar(bar, { limit, used }) {
  const whole = limit > MOST_CELLS;
  bar.classList.toggle("whole", whole);
  const cells = whole ? 1 : limit;
  while (bar.children.length > cells) bar.lastChild.remove();
  while (bar.children.length < cells) bar.append(make("span"));
  [...bar.children].forEach((cell, index) => cell.classList.toggle("used", whole || index < used));
  bar.firstChild.style.width = whole ? `${Math.min(100, (100 * used) / limit)}%` : "";
}

function showConnections(connections) {
  const list = $("connections"), old = new Map([...list.children].map((item) => [item.dataset.number, item]));
  connections.forEach((connection, index) => {
    const key = String(connection.number);
    const item = old.get(key) ?? wire(connection);
    old.delete(key);
    const words = item.firstChild;
    words.textContent = `${connection.peer} · ${connection.endpoint} · ${connection.busy ? "answering" : "idle"} · ${number(connection.calls)}`;
    words.classList.toggle("busy", connection.busy);
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
  });
  const focused = [...old.values()].some((item) => item.contains(document.activeElement));
  for (const item of old.values()) item.remove();
  // The keyboard stays where connections are cut.
  if (focused) (list.querySelector("button") ?? $("fault-on")).focus();
  $("no-connections").hidden = connections.length > 0;
}

function wire(connection) {
  const button = make("button", { type: "button", text: "Cut", "aria-label": `Cut the connection of ${connection.peer}` });
  button.addEventListener("click", async () => {
    const answer = await press(`/connections/${connection.number}/cut`);
    say(answer.ok ? `The connection of ${connection.peer} was cut` : answer.text);
  });
  return make("li", { "data-number": connection.number }, make("span", { className: "peer" }), button);
}

async function armFault(event) {
  event.preventDefault();
  const on = $("fault-on").value, kind = $("fault-kind").selectedOptions[0];
  const answer = await press("/faults", JSON.stringify({ on, kind: kind.value }));
  say(answer.ok ? `The next ${on}: ${kind.text}` : answer.text);
}

function fitKinds() {
  // A callback is sent, not answered: there is no reply to cut.
  const body = $("fault-kind").querySelector("[value=cut_body]");
  body.disabled = $("fault-on").value === "callback";
  if (body.disabled && body.selected) $("fault-kind").value = "cut_after";
}

// The tasks

function showTasks(rows) {
  const list = $("tasks");
  for (const row of rows) {
    const known = tasks.get(row.id);
    const card = drawTask(row, known?.card);
    if (!known) list.prepend(card);
    if (row.ended && known && !known.row.ended) ended++;
    if (row.ended && !known) ended++;
    tasks.set(row.id, { row, card });
  }
  while (list.children.length > SHOWN) {
    const oldest = list.lastChild;
    if (tasks.get(oldest.dataset.id)?.row.ended) ended--;
    tasks.delete(oldest.dataset.id);
    oldest.remove();
  }
  showCount();
  tick();
}

function showCount() {
  $("nothing").hidden = accepted > 0;
  const running = tasks.size - ended;
  const older = accepted > tasks.size ? ` · the newest ${number(tasks.size)} of ${number(accepted)}` : "";
  $("count").textContent = accepted ? `${number(running)} running · ${number(ended)} ended${older}` : "";
}

// A card is made once and then changed, so that who has the focus keeps it.
function drawTask(row, card) {
  if (!card) {
    const words = make("div", { className: "words" }, make("p", { className: "prompt", text: row.prompt, title: row.prompt, dir: "auto" }));
    if (row.references.length) words.append(make("div", { className: "references" }, ...row.references.map(reference)));
    words.append(
      make("p", { className: "facts", text: `${row.model} · ${row.shape}` }),
      make("div", { className: "line" }, make("span", { className: "state" }), make("span", { className: "id", text: row.id, title: row.id })),
    );
    card = make("li", { className: "task", "data-id": row.id }, make("div", { className: "well" }), words);
  }
  card.dataset.state = row.ended ? row.state : "running";
  card.querySelector(".state").textContent = row.state;
  card.querySelector(".well").replaceChildren(...inside(row));
  finishButton(card, row);
  return card;
}

function inside(row) {
  if (row.failure) return [make("p", { className: "reason", text: row.failure, dir: "auto" })];
  if (row.ended && !row.pictures.length) return [make("p", { className: "quiet", text: "A success without a picture" })];
  if (row.ended) {
    const picture = make("img", { src: shown(row.pictures[0]), alt: `Result: ${row.prompt}`, loading: "lazy", decoding: "async" });
    // A browser draws what has come so far, and the emulator paints a picture when it is asked for.
    picture.addEventListener("load", () => picture.decode().catch(() => {}).then(() => picture.classList.add("whole")), { once: true });
    picture.addEventListener("error", () => picture.replaceWith(make("p", { className: "quiet", text: "The picture is gone, or cannot be drawn" })), { once: true });
    return row.pictures.length > 1 ? [picture, make("span", { className: "many", text: `1 of ${row.pictures.length}` })] : [picture];
  }
  const at = row.stages.indexOf(row.state);
  const stages = row.stages.map((stage, index) =>
    make("li", { className: index < at ? "past" : index === at ? "now" : "", ...(index === at && { "aria-current": "step" }) },
      make("span", { className: "dot", "aria-hidden": "true" }), stage));
  return [make("ol", { className: "stages" }, ...stages), make("progress", { className: "time", max: 1, value: 0, "aria-label": "Time", hidden: row.ends === null })];
}

function finishButton(card, row) {
  const line = card.querySelector(".line");
  let button = line.querySelector("button");
  if (row.ended) {
    const focused = button === document.activeElement;
    button?.remove();
    if (focused) nextFinish(card)?.focus();
    return;
  }
  if (button) return;
  button = make("button", { type: "button", text: "Finish", "aria-label": `Finish task ${row.number}: ${row.prompt.slice(0, 80)}` });
  button.addEventListener("click", async () => {
    const answer = await press(`/tasks/${row.id}/finish`);
    say(answer.ok ? `Task ${row.number} was finished` : answer.text);
  });
  line.append(button);
}

// The keyboard stays among the tasks that can still be finished.
function nextFinish(card) {
  const buttons = [...$("tasks").querySelectorAll("button")];
  return buttons.find((button) => card.compareDocumentPosition(button) & Node.DOCUMENT_POSITION_FOLLOWING) ?? buttons.at(-1);
}

function reference(path, index) {
  return make("span", {}, path ? make("img", { src: shown(path), alt: `Reference ${index + 1}`, loading: "lazy" }) : "URL");
}

function tick() {
  for (const { row, card } of tasks.values()) {
    if (row.ended || row.ends === null) continue;
    const time = card.querySelector(".time");
    if (time) time.value = Math.max(0, Math.min(1, (now() - row.accepted) / (row.ends - row.accepted || 1)));
  }
}

function showExports(key) {
  $("exports").textContent = [
    `export APIKLEY_API_KEY=${key}`,
    `export APIKLEY_BASE_URL=${location.origin}`,
    `export APIKLEY_UPLOAD_URL=${location.origin}/file-upload`,
    'flux2 generate "A lighthouse at dawn"',
  ].join("\n");
}

// The events

function follow() {
  const source = new EventSource("/events");
  source.addEventListener("message", (event) => {
    const news = JSON.parse(event.data);
    ahead = news.now - Date.now();
    showLink("live", "live");
    if (news.key) showExports(news.key);
    if (news.ledger) showLedger(news.ledger);
    if ("limit" in news) showLimit(news.limit);
    if (news.connections) showConnections(news.connections);
    if (news.tasks) showTasks(news.tasks);
    if (news.tasks) speak(summary);
  });
  source.addEventListener("open", () => {
    // All of it comes anew; an emulator that was started again has other tasks.
    tasks.clear();
    ended = 0;
    $("tasks").replaceChildren();
    showLink("live", "live");
  });
  source.addEventListener("error", () => showLink("lost", `no connection since ${clock(Date.now())}`));
}

$("fault").addEventListener("submit", armFault);
$("fault-on").addEventListener("change", fitKinds);
setInterval(tick, 250);
follow();
