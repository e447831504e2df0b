const rows = JSON.parse($("rows").textContent);
const grid = $("grid"), viewer = $("viewer"), search = $("search"), sort = $("sort"), direction = $("direction");

const STATES = ["done", "failed", "unknown", "submitted", "submitting", "queued"];
const UNFINISHED = new Set(["submitted", "submitting", "queued"]);
// What stands where the picture would be: by state, and where it is done by what became of the download.
const REASONS = {
  failed: ["No picture", "The service refused it, or failed."],
  unknown: ["Not known", "It may have been accepted and paid for: flux2 unknown with this folder asks what became of it."],
  submitted: ["Being made", "The service has accepted it."],
  submitting: ["Being sent", "The service has not answered yet."],
  queued: ["Waiting", "It was not sent yet."],
  off: ["Not downloaded", "The address works for about a day."],
  pending: ["Not downloaded yet", "The same command again goes on with it."],
  expired: ["Expired", "The service does not keep the picture any more."],
  done: ["No preview", "The file cannot be shown small."],
};
const GAP = 20, NARROWEST = 300, AHEAD = 900, SOURCES = 3;
// Documented, in seconds: so long a task takes where too few have told.
const QUICKEST = 8, SLOWEST = 95, ENOUGH = 5;
// Seconds until the end of a task is seen by the batch and told here: so much later than that none is called late.
const HEARD = 10;
const COUNTED = 2000;
// Browsers end a page at 17 million pixels or more.
const TALLEST = 15e6;

// What the server told last; a file has none.
let news = {};
// How long those took that are done, the quickest first.
let took = [];

const safe = (address) => (/^(https?:\/\/|\.\.?\/)/i.test(address ?? "") ? address : undefined);
const moment = (seconds, timeStyle = "medium") => new Date(seconds * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle });
// With a zone alone Chromium writes an hour before ten with one digit.
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" };
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB", CLOCK);

function span(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

function roughly(seconds) {
  if (!(seconds >= 1)) return "";
  if (seconds < 60) return `about ${seconds < 20 ? Math.ceil(seconds) : 5 * Math.ceil(seconds / 5)} s left`;
  return seconds < 6000 ? `about ${Math.round(seconds / 60)} min left` : `about ${(seconds / 3600).toFixed(1)} h left`;
}

// When one is expected to have ended: half of those that took longer than it has run have by then, or, where nobody
// knows whether the batch goes on, nine in ten of all. The first few tell too little.
function expectedEnd(row) {
  if (row.state === "queued" || row.state === "submitting") return news.running && news.ends ? news.ends : undefined;
  if (row.state !== "submitted" || row.submitted === undefined) return undefined;
  if (!news.running) return row.submitted + (took.length < ENOUGH ? SLOWEST : took[Math.floor(0.9 * took.length)]);
  const longer = took.filter((seconds) => seconds > Date.now() / 1000 - row.submitted);
  return longer.length < ENOUGH ? undefined : row.submitted + longer[Math.floor(longer.length / 2)];
}

// What stands in the place of a picture that is not made yet.
function expectation(row) {
  const now = Date.now() / 1000, end = expectedEnd(row), [, usual] = REASONS[row.state];
  if (row.state !== "submitted" || row.submitted === undefined) return end ? `${usual} All are expected to have ended by ${clock(end)}.` : usual;
  if (!news.running) {
    const past = `It was expected by ${clock(end)}; the same command again goes on with it.`;
    return `${usual} ${end < now ? past : `${span(now - row.submitted)} so far, expected by ${clock(end)}.`}`;
  }
  const left = roughly((end ?? 0) - now);
  if (left) return `${span(now - row.submitted)} so far, ${left}, until ${clock(end)}`;
  if (took.length < ENOUGH) return `${span(now - row.submitted)} so far, of usually ${QUICKEST} to ${SLOWEST} s`;
  const late = now - row.submitted > took[took.length - ENOUGH] + HEARD;
  return `${span(now - row.submitted)} so far${late ? ", longer than most" : ""}`;
}

// What was charged, and that some of it may be untold; nothing where there is neither.
function creditsTold() {
  const credits = rows.reduce((sum, row) => sum + (row.credits ?? 0), 0);
  const unknown = rows.filter((row) => row.state === "unknown").length;
  if (!unknown) return credits ? [`${number(credits)} credits`] : [];
  return [`${number(credits)} credits`, `perhaps more (${number(unknown)} unknown)`];
}

// Columns: label, value to compare, text to show

const COLUMNS = [
  ["Input order", (row) => row.index],
  ["Id", (row) => row.id],
  ["State", (row) => row.state],
  ["Prompt", (row) => row.prompt],
  ["Credits", (row) => row.credits, number],
  ["Time taken", (row) => row.took, span],
  ["Accepted", (row) => row.submitted, moment],
  ["Finished", (row) => row.finished, moment],
  ["Expected end", expectedEnd, clock],
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

const KNOWN = COLUMNS.length;

function prepare() {
  rows.forEach(prepareRow);
  findColumns();
}

function prepareRow(row, index) {
  row.index = index;
  row.inputs ??= [];
  row.outputs ??= [];
  row.extra = new Map(row.extra);
  row.haystack = [row.prompt, row.id, row.task].join("\n").toLowerCase();
}

function findColumns() {
  took = rows.filter((row) => row.state === "done" && row.took).map((row) => row.took).sort((one, other) => one - other);
  const extra = new Set(rows.flatMap((row) => [...row.extra.keys()]));
  COLUMNS.length = KNOWN;
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
  choose();
  current = 0;
  arrange();
  // What is left begins at the top, without the headline coming back.
  scrollTo(0, Math.min(scrollY, grid.offsetTop - $("tools").offsetHeight - 30));
}

function choose() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS[sort.value];
  const turn = direction.getAttribute("aria-pressed") === "true" ? -1 : 1;
  shown = rows.filter((row) => (!chosen.size || chosen.has(row.state)) && words.every((word) => row.haystack.includes(word)));
  shown.sort((one, other) => compare(column, turn, one, other));
  $("nothing").hidden = shown.length > 0 || rows.length === 0;
}

function compare(column, turn, one, other) {
  const a = column[1](one), b = column[1](other);
  // What has no value comes last either way.
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined) || one.index - other.index;
  const order = column.figures ? a - b : collator.compare(a, b);
  return order * turn || one.index - other.index;
}
