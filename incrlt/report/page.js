(() => {
  "use strict";
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // ---- charts: figures name their colours ("@many"); the theme's CSS variables say what they are today
  const variable = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  function between(scale, share) {
    const low = channels(variable(`${scale}-low`)), high = channels(variable(`${scale}-high`));
    return `rgb(${low.map((value, i) => Math.round(value + (high[i] - value) * share)).join(",")})`;
  }

  function themed(value, isColour = false) { // a class may be called "@many": only what is a colour by its key is one
    if (typeof value === "string") {
      if (!isColour || !value.startsWith("@")) return value;
      const [name, share] = value.slice(1).split(":");
      return share === undefined ? variable(name) : between(name, parseFloat(share));
    }
    if (Array.isArray(value)) return value.map((inner) => themed(inner, isColour));
    if (value && typeof value === "object") {
      const colour = /color(scale)?$/;
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner, colour.test(key))]));
    }
    return value;
  }

  // plotly reads tags in names and texts, which here come from a run's files
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function plain(trace) {
    const shown = { ...trace };
    if (shown.name) shown.name = escaped(shown.name);
    if (Array.isArray(shown.text)) shown.text = shown.text.map((text) => Array.isArray(text) ? text : escaped(text));
    return shown;
  }

  const written = (plot) => JSON.parse(document.getElementById(`${plot.dataset.figure}-data`).textContent);
  const specOf = (plot) => plot === curves ? ofPicked() : ofClasses(written(plot));

  // A heat map has one text per column, for all its rows, or a name per row as well.
  function withColumns(figure) {
    const { rows, columns } = figure.layout.meta ?? {};
    if (!columns || (rows && rows.length * columns.length > MOST_TEXTS)) return figure;
    const across = columns.map(escaped);
    const text = rows ? rows.map((row) => across.map((name) => `${escaped(row)} → ${name}`)) : null;
    for (const trace of figure.data) if (trace.z) trace.text = text ?? trace.z.map(() => across);
    for (const axis of [figure.layout.xaxis, figure.layout.yaxis]) if (axis.ticktext) axis.ticktext = axis.ticktext.map(escaped);
    return figure;
  }

  // ---- what is chosen stands in the page's address
  const address = new URLSearchParams(location.search);

  function remember(name, value) {
    if (value === null) address.delete(name); else address.set(name, value);
    const query = address.size ? `?${address}` : location.pathname;
    try { history.replaceState(null, "", query + location.hash); } catch { /* a page without an address */ }
  }

  // ---- which class is taken for which: the matrix of the experiences that are asked for
  const MOST_TEXTS = 40000, MOST_TICKS = 60, MOST_WRITTEN = 20; // as class_charts has them
  const taken = JSON.parse(document.getElementById("taken-for-data")?.textContent ?? "null");
  const sides = ["of", "as"].map((side) => document.querySelector(`[data-${side}]`)).filter(Boolean);
  function short(name, most) { // as incrlt.written.cut
    const right = Math.floor((most - 1) / 2);
    return name.length > most ? `${name.slice(0, most - 1 - right)}…${name.slice(name.length - right)}` : name;
  }

  // "0, 4-6" is four experiences; nothing is all of them, and what names none of the run's is said to be wrong
  function classesAsked(input) {
    const parts = [...input.value.matchAll(/(\d+)(?:\s*[-–]\s*(\d+))?/g)].map(([, low, high]) => [+low, +(high ?? low)]);
    const found = taken.experiences.flatMap((t, c) => !parts.length || parts.some(([low, high]) => low <= t && t <= high) ? [c] : []);
    input.setAttribute("aria-invalid", String(!found.length));
    return found.length ? found : taken.experiences.map((_, c) => c);
  }

  function ofClasses(figure) {
    const readout = figure.layout.meta?.confusion;
    if (!readout || !taken) return figure;
    const [rows, columns] = sides.map(classesAsked), [wrong, right] = figure.data;
    const place = new Map(columns.map((c, at) => [c, at]));
    for (const trace of figure.data) {
      trace.z = rows.map(() => columns.map(() => null));
      trace.texttemplate = columns.length <= MOST_WRITTEN ? "%{z:.0f}" : "";
    }
    rows.forEach((c, at) => {
      const answers = taken.rows[readout][c], images = Math.max(1, taken.images[readout][c]);
      if (place.has(c)) right.z[at][place.get(c)] = 0;
      for (let i = 0; i < answers.length; i += 2) { // class_charts.sparse: a count, then the classes by their distances
        let other = 0;
        for (const step of answers[i + 1]) {
          other += step;
          if (place.has(other)) (other === c ? right : wrong).z[at][place.get(other)] = Math.round(1000 * answers[i] / images) / 10;
        }
      }
    });
    wrong.zmax = wrong.z.reduce((most, row) => row.reduce((a, b) => Math.max(a, b ?? 0), most), 1);
    figure.layout.meta.rows = rows.map((c) => taken.names[c]);
    figure.layout.meta.columns = columns.map((c) => taken.names[c]);
    figure.layout.height = Math.min(900, 190 + 16 * rows.length); // class_charts.height
    for (const [axis, classes] of [["xaxis", columns], ["yaxis", rows]]) {
      const few = classes.length <= MOST_TICKS, { tickvals, ticktext, ...rest } = figure.layout[axis];
      const ticks = { tickvals: classes.map((_, at) => at), ticktext: classes.map((c) => short(taken.names[c], 18)) };
      figure.layout[axis] = { ...rest, showticklabels: few, ...(few ? ticks : {}) };
    }
    return figure;
  }

  for (const [at, input] of sides.entries()) {
    const name = ["of", "as"][at];
    input.value = address.get(name) ?? input.value;
    input.addEventListener("change", () => {
      remember(name, input.value === input.defaultValue ? null : input.value);
      drawAll();
    });
  }

  const printing = () => root.hasAttribute("data-printing");

  function template() {
    const size = printing() ? 9.5 : 12;
    const axis = {
      gridcolor: "@line", linecolor: "@line", zerolinecolor: "@line", zerolinewidth: 1, ticks: "",
      automargin: true, title: { standoff: 10, font: { size, color: "@soft" } }, tickfont: { color: "@soft" },
    };
    return themed({ layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size, color: "@ink" },
      margin: { l: 48, r: 12, t: 12, b: 44 }, bargap: 0.25,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "@soft", activecolor: "@ink" },
      xaxis: { ...axis, showgrid: false, zeroline: false }, yaxis: axis,
      legend: { orientation: "h", traceorder: "normal", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { bgcolor: "@paper", bordercolor: "@line", font: { color: "@ink", size: 12 }, namelength: -1 },
    } });
  }

  const CONFIG = {
    responsive: true, displaylogo: false,
    modeBarButtons: [["toImage", "resetScale2d"]],
  };

  // ---- read-outs: charts show the chosen one; "" shows all
  const choices = [...document.querySelectorAll("[data-choose]")];
  const names = choices.map((button) => button.dataset.choose);
  const asked = address.get("readout");
  let chosen = names.includes(asked) ? asked : names.length ? names[0] : "";

  // what is shown with several choices names them all: "nme own" is a run's nearest mean, and what it answers with
  const isShownWith = (names) => (names ?? "").split(" ").includes(chosen);

  function ofChosen(traces) {
    if (!chosen || !traces.some((trace) => isShownWith(trace.meta))) return traces;
    return traces.filter((trace) => !trace.meta || isShownWith(trace.meta))
      .map((trace) => ({ ...trace, name: trace.name.replace(`${chosen} · `, "") }));
  }

  function showChosen() {
    root.toggleAttribute("data-one", chosen !== "");
    for (const button of choices) button.setAttribute("aria-pressed", String(button.dataset.choose === chosen));
    for (const figure of document.querySelectorAll("[data-readout]")) {
      figure.hidden = chosen !== "" && !isShownWith(figure.dataset.readout);
    }
  }

  // Paper does not resize what is drawn, and a page holds more than a window; narrow charts need room for legends.
  function onPaper(plot, height) {
    const width = plot.clientWidth, share = width > 400 ? 0.62 : 0.72;
    return printing() ? { width, height: Math.round(share * height) } : {};
  }

  function drawAll() {
    const shared = template();
    for (const plot of plots.filter((one) => one.clientWidth)) { // one that is hidden is drawn when it is chosen
      const figure = themed(withColumns(specOf(plot)));
      if (figure.layout.meta?.confusion) plot.style.minHeight = `${figure.layout.height}px`;
      const layout = { ...figure.layout, ...onPaper(plot, figure.layout.height), template: shared };
      const traces = ofChosen(figure.data).map(plain);
      Plotly.react(plot, traces, layout, CONFIG);
      const more = printing() ? 0 : roomFor(plot.querySelector(".legend .bg"));
      if (more > 0) Plotly.react(plot, traces, { ...layout, height: layout.height + more }, CONFIG);
    }
    legends.forEach((legend) => legend.front.size && bringForward(legend));
    drawPicked();
  }

  // On a narrow screen a legend has a line per name: the chart grows by what the legend takes beyond two.
  const roomFor = (legend) => legend ? Math.round(legend.getBoundingClientRect().height - 44) : 0;

  // ---- classes: a click on a row draws the class's curve, read from the small one in the row
  const box = document.getElementById("class-curves"), picked = new Set();
  const curves = box?.firstElementChild;
  const DASHES = ["solid", "dash", "dot", "dashdot"], SYMBOLS = ["circle", "square", "diamond", "triangle-up"];

  function curveOf(row, index) {
    const points = [...row.querySelector("title").textContent.matchAll(/after (\d+): (\d+)/g)];
    const group = row.querySelector(".dot").className.split(" ").pop();
    const name = row.cells[0].querySelector("[title]")?.title ?? row.cells[0].textContent, shown = short(name, 28);
    return {
      type: "scatter", mode: "lines+markers", name: shown, x: points.map((point) => +point[1]),
      y: points.map((point) => +point[2]), hovertemplate: shown === name ? "%{y} %" : `%{y} % ${escaped(name)}`,
      line: { color: `@${group}`, dash: DASHES[index % DASHES.length], width: 2 },
      marker: { size: 7, symbol: SYMBOLS[index % SYMBOLS.length] }, cliponaxis: false,
    };
  }

  const ofPicked = () => ({ data: [...picked].map(curveOf), layout: {
    height: 320, hovermode: "x unified", showlegend: true,
    xaxis: { title: { text: "experience" }, tickformat: "d" }, yaxis: { title: { text: "accuracy, %" }, range: [0, 100] },
  } });

  function drawPicked() {
    if (!box) return;
    box.hidden = !picked.size;
    if (!picked.size) return;
    const { data, layout } = ofPicked();
    Plotly.react(curves, themed(data).map(plain), { ...layout, ...onPaper(curves, layout.height), template: template() }, CONFIG);
  }

  function pick(row) {
    if (!row.querySelector("title")) return; // one value is no curve
    if (!picked.delete(row)) picked.add(row);
    row.classList.toggle("same", picked.has(row));
    row.setAttribute("aria-selected", String(picked.has(row)));
  }

  function pickAnew(row) {
    pick(row);
    remember("classes", picked.size ? [...picked].map((one) => one.id.replace("class-", "")).join(",") : null);
    drawPicked();
  }

  // ---- curves of many runs: their legend is a table, whose rows bring curves to the front
  const legends = [...document.querySelectorAll("[data-legend]")].map((table) => ({
    rows: [...table.tBodies[0].rows], plot: plots.find((plot) => plot.dataset.figure === table.dataset.legend), front: new Set(),
  }));

  function bringForward({ plot, front }, over) {
    if (!plot?.data) return;
    const strong = new Set(over ? [...front, over] : front);
    const opacity = plot.data.map((trace) => !strong.size || strong.has(trace.legendgroup) ? 1 : 0.15);
    Plotly.restyle(plot, { opacity, "line.width": plot.data.map((trace) => strong.has(trace.legendgroup) ? 3.6 : 2.2) });
  }

  for (const legend of legends) for (const row of legend.rows) {
    const number = row.dataset.line, button = row.querySelector("button");
    button.addEventListener("click", () => {
      if (!legend.front.delete(number)) legend.front.add(number);
      button.setAttribute("aria-pressed", String(legend.front.has(number)));
      bringForward(legend);
    });
    row.addEventListener("mouseenter", () => bringForward(legend, number));
    row.addEventListener("mouseleave", () => bringForward(legend));
  }

  function whenPrinting(on) {
    root.toggleAttribute("data-printing", on); // paper is white whatever the screen's theme
    drawAll();
    if (on) return;
    const drawn = picked.size ? [...plots, curves] : plots;
    drawn.forEach((plot) => plot.clientWidth && Plotly.Plots.resize(plot));
  }

  function choose(readout) {
    chosen = readout;
    remember("readout", readout);
    showChosen();
    drawAll();
    for (const plot of plots) if (plot.clientWidth) Plotly.Plots.resize(plot);
  }

  // A link to a chart of another read-out chooses that one.
  function showTarget() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const hidden = target?.closest("[data-readout][hidden]");
    if (!hidden) return;
    choose(hidden.dataset.readout.split(" ")[0]);
    target.scrollIntoView();
  }

  // ---- every chart is somebody's figure: its data as CSV and as a table, its picture on white
  function rowsOf(figure) {
    const { xaxis, yaxis } = figure.layout, title = (axis, other) => axis?.title?.text || other;
    if (figure.data.some((trace) => trace.z)) {
      const { columns: classes, rows: names } = figure.layout.meta ?? {};
      const cells = (make) => figure.data.flatMap((trace) => trace.z.flatMap((row, t) => row.map((z, j) => z === null ? null : make(t, j, z)))).filter(Boolean);
      if (names) return [[title(yaxis, "y"), title(xaxis, "x"), "percent"], ...cells((t, j, z) => [names[t], classes[j], z])];
      const rows = cells((t, j, z) => [t, j, z, ...(classes ? [classes[j]] : [])]);
      return [[title(yaxis, "y"), title(xaxis, "x"), "value", ...(classes ? ["classes"] : [])], ...rows];
    }
    const texts = figure.data.some((trace) => Array.isArray(trace.text));
    const errors = figure.data.some((trace) => trace.error_y);
    const rows = figure.data.filter((trace) => trace.name).flatMap((trace) => trace.x.map((x, at) => [
      trace.name, x, trace.y[at] ?? null, ...(errors ? [trace.error_y?.array[at] ?? null] : []), ...(texts ? [trace.text?.[at] ?? null] : []),
    ]));
    return [["series", title(xaxis, "x"), title(yaxis, "y"), ...(errors ? ["error"] : []), ...(texts ? ["label"] : [])], ...rows];
  }

  function csvCell(value) { // a text that a spreadsheet would take for a formula is marked as text
    if (value === null || typeof value === "number") return value === null ? "" : String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  const asCsv = (figure) => rowsOf(figure).map((row) => `${row.map(csvCell).join(",")}\n`).join("");
  const page = document.title.replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 60);
  const fileName = (plot) => `${page}-${plot.closest("figure").id.replace("chart-", "")}`;

  function savePicture(plot, format) {
    root.setAttribute("data-printing", ""); // the light theme, for as long as colours are looked up
    const figure = themed(withColumns(specOf(plot)));
    const layout = { ...figure.layout, template: template(), paper_bgcolor: "#fff", plot_bgcolor: "#fff" };
    root.removeAttribute("data-printing");
    const size = { width: Math.max(640, plot.clientWidth), height: figure.layout.height, scale: 3 };
    return Plotly.downloadImage({ data: ofChosen(figure.data).map(plain), layout }, { format, filename: fileName(plot), ...size });
  }

  function saveCsv(plot) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([asCsv(specOf(plot))], { type: "text/csv" }));
    link.download = `${fileName(plot)}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function showData(plot, button) {
    const figure = plot.closest("figure"), found = figure.querySelector(".data");
    button.setAttribute("aria-expanded", String(!found));
    if (found) return found.remove();
    const [head, ...rows] = rowsOf(specOf(plot)), table = document.createElement("table");
    const fill = (row, cells, tag) => cells.forEach((value) => row.append(Object.assign(document.createElement(tag), { textContent: value ?? "–" })));
    fill(table.createTHead().insertRow(), head, "th");
    const body = table.createTBody();
    for (const cells of rows) fill(body.insertRow(), cells, "td");
    const box = Object.assign(document.createElement("div"), { className: "data", tabIndex: 0 });
    box.append(table);
    figure.append(box);
  }

  for (const plot of curves ? [...plots, curves] : plots) {
    const tools = Object.assign(document.createElement("div"), { className: "figtools" });
    const name = plot.getAttribute("aria-label");
    const button = (text, what, act) => {
      const one = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      one.setAttribute("aria-label", `${what}: ${name}`);
      one.addEventListener("click", () => act(one));
      tools.append(one);
    };
    tools.append(Object.assign(document.createElement("a"), { href: `#${plot.closest("figure").id}`, textContent: "link" }));
    button("data", "Show the data", (one) => showData(plot, one));
    button("CSV", "Save the data as CSV", () => saveCsv(plot));
    if (window.Plotly) for (const format of ["png", "svg"]) button(format.toUpperCase(), `Save the picture as ${format}`, () => savePicture(plot, format));
    plot.closest("figure").append(tools);
  }

  if (choices.length) showChosen();
  for (const number of address.get("classes")?.split(",") ?? []) {
    const row = document.getElementById(`class-${number}`);
    if (row) pick(row);
  }
  // a link lands below the bar, however many lines it has
  const bar = document.querySelector("nav");
  const measure = () => root.style.setProperty("--bar", `${bar?.offsetHeight ?? 0}px`);
  measure();
  addEventListener("resize", measure);
  if (window.Plotly) {
    drawAll();
    for (const button of choices) {
      button.addEventListener("click", () => choose(button.dataset.choose));
    }
    addEventListener("hashchange", showTarget);
    showTarget();
    for (const row of document.querySelectorAll("#class-table tbody tr")) {
      row.tabIndex = 0;
      row.addEventListener("click", () => pickAnew(row));
      row.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pickAnew(row); } });
    }
    dark.addEventListener("change", drawAll);
    addEventListener("beforeprint", () => whenPrinting(true));
    addEventListener("afterprint", () => whenPrinting(false));
  }

  // ---- tables: click a heading to sort, undefined values last; type to filter
  function key(cell) {
    const text = cell.textContent.trim().replaceAll("−", "-").replaceAll(",", "");
    if (text === "" || text === "–") return null;
    const value = parseFloat(text);
    return Number.isNaN(value) || cell.classList.contains("text") ? text.toLowerCase() : value;
  }

  function order(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  }

  function sort(heading) {
    const sign = heading.getAttribute("aria-sort") === "descending" ? 1
      : heading.hasAttribute("aria-sort") || !heading.classList.contains("text") ? -1 : 1;
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = heading.closest("table").tBodies[0], column = heading.cellIndex;
    const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => order(a, b, sign));
    body.append(...rows.map(([, row]) => row));
  }

  for (const heading of document.querySelectorAll(".sortable th:not([data-fixed])")) {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sort(heading));
    heading.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(heading); }
    });
  }

  for (const input of document.querySelectorAll("[data-filter]")) {
    const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
    const filter = () => {
      let wanted = input.value.trim().toLowerCase(); // "experience 3 few" is a place and a word
      const place = wanted.match(/\bexperience (\d+)/);
      if (place) wanted = wanted.replace(place[0], "").trim();
      for (const row of rows) {
        const here = !place || row.dataset.experience === place[1];
        row.hidden = !here || !row.textContent.toLowerCase().includes(wanted);
      }
    };
    input.addEventListener("input", () => { filter(); remember("find", input.value || null); });
    input.value = address.get("find") ?? "";
    if (input.value) filter();
  }
})();
