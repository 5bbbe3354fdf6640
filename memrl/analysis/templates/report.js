"use strict";

const PAGE_ROWS = 50;

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/* The drawings of the page are whole SVG files: what is saved is what is shown. */
function setUpSaving() {
  for (const button of document.querySelectorAll("button[data-save]")) {
    const drawing = document.querySelector(`.drawing[data-stem="${button.dataset.save}"] .page svg`);
    button.addEventListener("click", () => save(`${button.dataset.save}.svg`, "image/svg+xml", drawing.outerHTML));
    button.parentElement.hidden = false;
  }
}

/* A link to something that is folded opens it. */
function unfold() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let place = target; place; place = place.parentElement) {
    if (place.tagName === "DETAILS") place.open = true;
  }
  if (target) target.scrollIntoView();
}

/* The table of settings: filter, sort, and as many rows as were asked for. */
function setUpTable() {
  const table = document.getElementById("settings");
  if (!table) return;
  const { columns, rows } = JSON.parse(document.getElementById("settings-data").textContent);
  const words = document.getElementById("filter-text"), status = document.getElementById("settings-status");
  const choices = [...document.querySelectorAll("select[data-column]")], more = document.getElementById("settings-more");
  const body = table.tBodies[0], heads = [...table.querySelectorAll("th")].map((head) => head.textContent);
  const split = (text) => text.toLowerCase().split(/[\s,]+/).filter(Boolean);
  /* Words are looked for in what was set, not in what was measured. */
  const set = (row) => rows[row].slice(0, heads.indexOf("runs")).map((cell) => cell[0]);
  const named = split(`${heads.join(" ")} lr`), found = rows.map((_, row) => new Set(set(row).flatMap(split)));
  let order = rows.map((_, i) => i), limit = PAGE_ROWS;

  const sortKey = (row, column) => rows[row][column].at(-1);
  /* A number means itself, a word its beginning, and the name of a column nothing. */
  const holds = (row, word) => {
    if (named.includes(word)) return true;
    if (!isNaN(word)) return set(row).some((text) => text !== "" && Number(text) === Number(word)) || found[row].has(word);
    return [...found[row]].some((other) => other.startsWith(word));
  };
  const isShown = (row) =>
    split(words.value).every((word) => holds(row, word)) &&
    choices.every((c) => c.value === "" || String(rows[row][c.dataset.column][0]) === c.value);

  function show() {
    const shown = order.filter(isShown);
    body.replaceChildren(...shown.slice(0, limit).map((row) => {
      const line = document.createElement("tr");
      rows[row].forEach((cell, i) => {
        const field = line.insertCell();
        field.textContent = cell[0];
        if (columns[i].text) field.className = "text";
      });
      return line;
    }));
    status.textContent = `${Math.min(limit, shown.length)} of ${shown.length} settings shown, ${rows.length} in all`;
    more.hidden = shown.length <= limit;
  }

  table.querySelectorAll("th button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.closest("th"), down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      order.sort((a, b) => {
        const [x, y] = [sortKey(a, column), sortKey(b, column)];
        if (x === null || y === null) return (x === null) - (y === null) || a - b;
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) || a - b;
      });
      show();
    });
  });
  const restart = () => { limit = PAGE_ROWS; show(); };
  words.addEventListener("input", restart);
  choices.forEach((choice) => choice.addEventListener("change", restart));
  more.addEventListener("click", () => { limit += 4 * PAGE_ROWS; show(); });
  document.getElementById("settings-csv").addEventListener("click", () => {
    const line = (cells) => cells.map((text) => `"${String(text).replaceAll('"', '""')}"`).join(",");
    save("settings.csv", "text/csv", [heads, ...order.filter(isShown).map((row) => rows[row].map((cell) => cell[0]))].map(line).join("\n"));
  });
  show();
}

setUpSaving();
setUpTable();
addEventListener("hashchange", unfold);
unfold();
