"use strict";

const INK = "#111111";
const PAGE_ROWS = 50;
const figures = JSON.parse(document.getElementById("figure-data").textContent);

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/* What all plots share. Plots are drawn in ink on paper; a dark page turns both around, bands in ink included. */
function completeLayout(layout, height) {
  const axis = {
    automargin: true, gridcolor: color("--grid"), linecolor: color("--soft"), zeroline: false, showline: true,
    ticks: "outside", tickcolor: color("--soft"), exponentformat: "none", separatethousands: true,
  };
  const styled = {
    height,
    margin: { l: 48, r: 18, t: 10, b: layout.showlegend ? 84 : 42 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: color("--sans"), size: 12, color: color("--ink") },
    hovermode: "closest", hoverlabel: { align: "left", bgcolor: color("--panel"), font: { color: color("--ink") } },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    ...layout,
  };
  for (const name of ["xaxis", "yaxis"]) {
    styled[name] = { ...axis, ...layout[name], title: { standoff: 8, ...(layout[name] || {}).title } };
  }
  return styled;
}

function inInk(value) {
  const ink = color("--ink"), channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",");
  return JSON.parse(JSON.stringify(value).replaceAll(INK, ink).replaceAll(`rgba(${channels(INK)},`, `rgba(${channels(ink)},`));
}

async function drawFigure(figure, index) {
  const name = figure.dataset.figure, turn = (figure.turn = (figure.turn || 0) + 1), panels = figure.querySelector(".panels");
  panels.querySelectorAll(".plot").forEach((plot) => Plotly.purge(plot));
  panels.replaceChildren();
  panels.classList.toggle("wide", figures[name][index].plots[0].is_wide);
  // All panels stand before the first plot is drawn: a plot takes the width that its panel has then.
  const plots = figures[name][index].plots.map((spec) => {
    const panel = document.createElement("div"), plot = document.createElement("div");
    panel.className = "panel";
    if (spec.title) {
      const heading = document.createElement("h3");
      heading.textContent = spec.title;
      panel.append(heading);
    }
    plot.className = "plot";
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", [figure.dataset.title, spec.title, figures[name][index].label].filter(Boolean).join(", "));
    plot.style.height = `${spec.height}px`;
    panel.append(plot);
    panels.append(panel);
    return [plot, spec];
  });
  for (const [plot, spec] of plots) {
    if (figure.turn !== turn) return; // the reader chose again meanwhile
    await Plotly.newPlot(plot, inInk(spec.traces), completeLayout(inInk(spec.layout), spec.height), {
      // Where nothing can hover, plotly would show its buttons all the time, on top of the plot.
      displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    });
    await new Promise((resume) => setTimeout(resume, 0));
  }
}

async function drawAll() {
  const shown = document.querySelectorAll("figure[data-figure]");
  for (const figure of shown) {
    const choice = figure.querySelector("select");
    const index = () => (choice ? Number(choice.value) : 0);
    await drawFigure(figure, index());
    if (choice) choice.onchange = () => drawFigure(figure, index());
  }
  document.documentElement.dataset.drawn = shown.length;
}

async function loadPlotly() {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

/* The table of settings: filter, sort, and as many rows as were asked for. */
function setUpTable() {
  const table = document.getElementById("settings");
  if (!table) return;
  const { columns, rows } = JSON.parse(document.getElementById("settings-data").textContent);
  const words = document.getElementById("filter-text"), status = document.getElementById("settings-status");
  const choices = [...document.querySelectorAll("select[data-column]")], more = document.getElementById("settings-more");
  const body = table.tBodies[0], texts = rows.map((row) => row.map((cell) => cell[0]).join(" ").toLowerCase());
  let order = rows.map((_, i) => i), limit = PAGE_ROWS;

  const sortKey = (row, column) => rows[row][column].at(-1);
  const isShown = (row) =>
    words.value.toLowerCase().split(/\s+/).every((word) => texts[row].includes(word)) &&
    choices.every((c) => c.value === "" || String(rows[row][c.dataset.column][0]) === c.value);

  function show() {
    const found = order.filter(isShown);
    body.replaceChildren(...found.slice(0, limit).map((row) => {
      const line = document.createElement("tr");
      rows[row].forEach((cell, i) => {
        const field = line.insertCell();
        field.textContent = cell[0];
        if (columns[i].text) field.className = "text";
      });
      return line;
    }));
    status.textContent = `${Math.min(limit, found.length)} of ${found.length} settings shown, ${rows.length} in all`;
    more.hidden = found.length <= limit;
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
  show();
}

setUpTable();
loadPlotly().then(drawAll).then(() => {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
});
