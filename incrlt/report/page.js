(() => {
  "use strict";
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // ---- charts: figures name their colours ("@many"); the theme's CSS variables say what they are today
  const variable = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  function between(share) {
    const low = channels(variable("seq-low")), high = channels(variable("seq-high"));
    return `rgb(${low.map((value, i) => Math.round(value + (high[i] - value) * share)).join(",")})`;
  }

  function themed(value, isColour = false) { // a class may be called "@many": only what is a colour by its key is one
    if (typeof value === "string") {
      if (!isColour || !value.startsWith("@")) return value;
      return value.startsWith("@seq:") ? between(parseFloat(value.slice(5))) : variable(value.slice(1));
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
    if (Array.isArray(shown.text)) shown.text = shown.text.map(escaped);
    return shown;
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
  let chosen = choices.length ? choices[0].dataset.choose : "";

  function ofChosen(traces) {
    if (!chosen || !traces.some((trace) => trace.meta === chosen)) return traces;
    return traces.filter((trace) => !trace.meta || trace.meta === chosen)
      .map((trace) => ({ ...trace, name: trace.name.replace(`${chosen} · `, "") }));
  }

  function showChosen() {
    root.toggleAttribute("data-one", chosen !== "");
    for (const button of choices) button.setAttribute("aria-pressed", String(button.dataset.choose === chosen));
    for (const figure of document.querySelectorAll("figure[data-readout]")) {
      figure.hidden = chosen !== "" && figure.dataset.readout !== chosen;
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
      const figure = themed(JSON.parse(document.getElementById(plot.dataset.figure).textContent));
      const layout = { ...figure.layout, ...onPaper(plot, figure.layout.height), template: shared };
      const traces = ofChosen(figure.data).map(plain);
      Plotly.react(plot, traces, layout, CONFIG);
      const more = printing() ? 0 : roomFor(plot.querySelector(".legend .bg"));
      if (more > 0) Plotly.react(plot, traces, { ...layout, height: layout.height + more }, CONFIG);
    }
    drawPicked();
  }

  // On a narrow screen a legend has a line per name: the chart grows by what the legend takes beyond two.
  const roomFor = (legend) => legend ? Math.round(legend.getBoundingClientRect().height - 44) : 0;

  // ---- classes: a click on a row draws the class's curve, read from the small one in the row
  const curves = document.getElementById("class-curves"), picked = new Set();
  const DASHES = ["solid", "dash", "dot", "dashdot"];

  function curveOf(row, index) {
    const points = [...row.querySelector("title").textContent.matchAll(/after (\d+): (\d+)/g)];
    const group = row.querySelector(".dot").className.split(" ").pop();
    return {
      type: "scatter", mode: "lines+markers", name: row.cells[0].textContent, hovertemplate: "%{y} %",
      x: points.map((point) => +point[1]), y: points.map((point) => +point[2]), cliponaxis: false,
      line: { color: `@${group}`, dash: DASHES[index % DASHES.length], width: 2 }, marker: { size: 6 },
    };
  }

  function drawPicked() {
    if (!curves) return;
    curves.hidden = !picked.size;
    if (!picked.size) return;
    const plot = curves.firstElementChild;
    const layout = {
      height: 320, ...onPaper(plot, 320), hovermode: "x unified", showlegend: true, template: template(),
      xaxis: { title: { text: "experience" }, tickformat: "d" },
      yaxis: { title: { text: "accuracy, %" }, range: [0, 100] },
    };
    Plotly.react(plot, themed([...picked].map(curveOf)).map(plain), layout, CONFIG);
  }

  function pick(row) {
    if (!row.querySelector("title")) return; // one value is no curve
    if (!picked.delete(row)) picked.add(row);
    row.classList.toggle("same", picked.has(row));
    drawPicked();
  }

  function whenPrinting(on) {
    root.toggleAttribute("data-printing", on); // paper is white whatever the screen's theme
    drawAll();
    if (on) return;
    const drawn = picked.size ? [...plots, curves.firstElementChild] : plots;
    drawn.forEach((plot) => plot.clientWidth && Plotly.Plots.resize(plot));
  }

  if (choices.length) showChosen();
  if (window.Plotly) {
    drawAll();
    for (const button of choices) {
      button.addEventListener("click", () => {
        chosen = button.dataset.choose;
        showChosen();
        drawAll();
        for (const plot of plots) if (plot.clientWidth) Plotly.Plots.resize(plot);
      });
    }
    for (const row of document.querySelectorAll("#class-table tbody tr")) {
      row.tabIndex = 0;
      row.addEventListener("click", () => pick(row));
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(row); });
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
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }
})();
