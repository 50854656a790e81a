"use strict";
// Draws the JSON in the page. Texts are set by textContent only, so no text of a store becomes markup.
const page = JSON.parse(document.getElementById("page").textContent);
const SHOWN = 200; // lines of a table that are drawn at first; a button draws the others

function element(name, text, parts = []) {
  const node = document.createElement(name);
  if (text !== undefined && text !== null) node.textContent = text;
  node.append(...parts);
  return node;
}

// ---------------------------------------------------------------- tables

// The number that a text sorts by: 65.1 of "65.1 ± 0.4", -3.2 of "−3.2 [..]", 15 of "15 %"; null for none.
function sortNumber(text) {
  const match = /^[<~ ]*([+\u2212-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)/i.exec(text);
  return match ? Number(match[1].replace("\u2212", "-")) : null;
}

// Numbers first, ascending; then texts without a number, alphabetically.
function compare(a, b) {
  const x = sortNumber(a), y = sortNumber(b);
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x !== null ? -1 : 1;
  return a.localeCompare(b, undefined, { numeric: true });
}

function drawSheet(sheet, index) {
  const head = element("tr"), body = element("tbody");
  const order = sheet.lines.map((_, i) => i);
  let shown = SHOWN;
  const more = element("button");
  more.className = "more";

  function fill() {
    const rows = order.slice(0, shown).map((i) => element("tr", null, sheet.lines[i].map((text, column) => {
      const cell = element("td"), record = sheet.cells[`${i},${column}`];
      if (sheet.left.includes(column)) cell.className = "left";
      if (record === undefined || text === "" || text === "-") { cell.textContent = text; return cell; }
      const button = element("button", text);
      button.title = "show where this number comes from";
      button.addEventListener("click", () => openRecord(record));
      cell.append(button);
      return cell;
    })));
    body.replaceChildren(...rows);
    more.hidden = shown >= order.length;
    more.textContent = `show all ${order.length} lines`;
  }

  sheet.header.forEach((name, column) => {
    const cell = element("th"), button = element("button", name || "\u00a0");
    if (sheet.left.includes(column)) cell.className = "left";
    button.title = "sort";
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      for (const other of head.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      order.sort((a, b) => {
        const x = sheet.lines[a][column], y = sheet.lines[b][column];
        const empty = (x === "" || x === "-") - (y === "" || y === "-"); // empty cells stay at the bottom
        return empty || (down ? -1 : 1) * compare(x, y) || a - b;
      });
      fill();
    });
    cell.append(button);
    head.append(cell);
  });
  more.addEventListener("click", () => { shown = order.length; fill(); });
  fill();
  const table = element("table", null, [element("thead", null, [head]), body]);
  table.id = `sheet-${index}`;
  const scroll = element("div", null, [table]);
  scroll.className = "scroll";
  return [element("h2", sheet.title), scroll, more];
}

// ---------------------------------------------------------------- provenance of a number

const dialog = element("dialog");

function list(pairs) {
  return element("dl", null, pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .flatMap(([name, value]) => [element("dt", name), element("dd", typeof value === "string" ? value : JSON.stringify(value))]));
}

function openRecord(name) {
  const record = page.records[name];
  if (record === undefined) return;
  const close = element("button", "close");
  close.className = "more";
  close.addEventListener("click", () => dialog.close());
  const parts = [element("h2", name)];
  const facts = Object.entries(record).filter(([key]) => key !== "trials" && key !== "command");
  parts.push(list(facts));
  if (record.trials && record.trials.length) {
    const columns = Object.keys(record.trials[0]);
    const head = element("tr", null, columns.map((column) => element("th", column)));
    const lines = record.trials.slice(0, 1000).map((trial) =>
      element("tr", null, columns.map((column) => {
        const cell = element("td", trial[column] === null ? "-" : String(trial[column]));
        cell.className = "left";
        return cell;
      })));
    const scroll = element("div", null, [element("table", null, [element("thead", null, [head]), element("tbody", null, lines)])]);
    scroll.className = "scroll";
    parts.push(scroll);
  }
  const command = record.command || page.command;
  if (command) parts.push(element("h2", "command that makes it"), element("pre", command));
  dialog.replaceChildren(...parts, close);
  dialog.showModal();
}
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

// ---------------------------------------------------------------- figures

// Plotly is compressed in the page and unpacked when the first figure scrolls into view.
let library;
function plotly() {
  library ??= (async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = element("script", await new Response(stream).text());
    document.head.append(script);
    return window.Plotly;
  })();
  return library;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const out = { ...layout, paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: ink }, autosize: true,
    modebar: { bgcolor: "transparent", color: style.getPropertyValue("--faint").trim(), activecolor: ink } };
  delete out.width;
  for (const key of Object.keys(out)) {
    if (/^[xy]axis\d*$/.test(key)) out[key] = { ...out[key], gridcolor: line, zerolinecolor: line, linecolor: line };
  }
  return out;
}

function drawFigure(figure, index) {
  const box = element("div");
  box.className = "figure";
  box.id = `figure-${index}`;
  box.style.height = `${figure.spec.layout.height || 420}px`;
  const draw = async () => {
    try {
      const Plotly = await plotly();
      const layout = themed(figure.spec.layout);
      if (layout.images) { // keep the shape of photographs on narrow screens
        layout.height = Math.min(layout.height, 90 + layout.height * box.clientWidth / 900);
        box.style.height = `${layout.height}px`;
        box.style.minHeight = "0";
      }
      await Plotly.react(box, figure.spec.data, layout, { responsive: true, displaylogo: false });
      box.dataset.drawn = "yes";
    } catch (error) {
      box.textContent = `this browser cannot draw the figure: ${error}`;
    }
  };
  new IntersectionObserver((entries, observer) => {
    if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); draw(); }
  }, { rootMargin: "300px" }).observe(box);
  dark.addEventListener("change", () => { if (box.dataset.drawn) draw(); });
  return [element("h2", figure.title), box, ...(figure.note ? [element("p", figure.note)] : [])];
}

// ---------------------------------------------------------------- the page

const notes = element("ul", null, page.notes.map((note) => element("li", note)));
notes.className = "notes";
document.querySelector("main").append(
  element("h1", page.title),
  ...page.sheets.flatMap(drawSheet),
  ...(page.notes.length ? [element("h2", "Notes"), notes] : []),
  ...(page.command && page.missing ? [element("h2", "Command that fills the empty cells"), element("pre", page.command),
    ...(page.cost ? [element("p", page.cost)] : [])] : []),
  ...page.figures.flatMap(drawFigure),
  ...(page.command && !page.missing ? [element("h2", "Command that made this report"), element("pre", page.command)] : []),
  dialog,
);
document.documentElement.dataset.ready = "yes";
