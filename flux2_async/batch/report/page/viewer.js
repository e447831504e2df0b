// One request, large: its pictures one after the other in the same place, and all that is known of it.

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
