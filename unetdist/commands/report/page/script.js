"use strict";
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (selector, from = document) => from.querySelector(selector);
  const read = (id) => JSON.parse(one(`#${id}`).textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // A custom property is only text: what light-dark() comes to is known of an element that has it.
  const color = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${name})`;
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };

  function layout(chart) {
    const axis = {
      gridcolor: color("--rule"), zeroline: false, linecolor: color("--rule"), automargin: true, fixedrange: false,
      tickfont: { color: color("--pale"), size: 12 },
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, color: color("--ink"), size: 13 },
      hoverlabel: { bgcolor: color("--raised"), bordercolor: color("--rule"), font: { color: color("--ink") }, namelength: -1 },
      margin: { l: 8, r: 8, t: 8, b: 8 }, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: { ...axis, showgrid: false, title: { text: "step", font: { color: color("--pale"), size: 12 }, standoff: 4 } },
      yaxis: { ...axis, rangemode: chart.id === "loss" ? "normal" : "tozero", tickformat: chart.unit === "percent" ? ".0%" : "", exponentformat: "power", nticks: 6 },
    };
  }

  function styled(trace, chart) {
    const own = dark.matches ? trace.meta.dark : trace.meta.light;
    const value = chart.unit === "percent" ? "%{y:.1%}" : "%{y:.4~g}";
    return {
      ...trace,
      line: { ...trace.line, color: own },
      marker: { size: 6, ...trace.marker, color: own, line: { color: own, width: 1.5 } },
      fillcolor: own.replace(/^#(..)(..)(..)$/, (_, r, g, b) => `rgba(${[r, g, b].map((part) => parseInt(part, 16))},0.16)`),
      hovertemplate: `${value} at step %{x:,}<extra>%{fullData.name}</extra>`,
    };
  }

  const config = { displaylogo: false, responsive: true, displayModeBar: false };
  const draw = (id, chart, traces) =>
    window.Plotly.react(id, traces.map((trace) => styled(trace, chart)), layout(chart), config);

  const curves = read("curves-data"), classCharts = read("classes-data");
  const hiddenClasses = new Set();
  function drawClasses() {
    if (!classCharts.length) return;
    const chosen = one("#class-run")?.value;
    const chart = classCharts.find((each) => each.id === chosen) ?? classCharts[0];
    draw("chart-classes", chart, chart.traces.map((trace) => ({ ...trace, visible: !hiddenClasses.has(trace.name) })));
  }
  function drawAll() {
    for (const chart of curves) draw(`chart-${chart.id}`, chart, chart.traces);
    drawClasses();
  }
  dark.addEventListener("change", drawAll);
  one("#class-run")?.addEventListener("change", drawClasses);
  all("#class-toggles button").forEach((button) => button.addEventListener("click", () => {
    const toggles = all("#class-toggles button[data-class]");
    const chosen = button.dataset.all ? toggles : [button];
    for (const each of chosen) {
      const shown = button.dataset.all ? button.dataset.all === "true" : each.getAttribute("aria-pressed") !== "true";
      each.setAttribute("aria-pressed", shown);
      hiddenClasses[shown ? "delete" : "add"](each.dataset.class);
    }
    drawClasses();
  }));

  one("#confusion-run")?.addEventListener("change", (event) => {
    for (const each of all(".confusion")) each.hidden = each.dataset.run !== event.target.value;
  });
  for (const matrix of all(".confusion")) {
    const rows = all("tbody tr", matrix).map((row) => all("td", row));
    const tell = (event) => {
      const cell = event.target.closest("td[tabindex]");
      if (cell) one(".readout", matrix).textContent = cell.title;
    };
    for (const kind of ["mouseover", "focusin", "click"]) matrix.addEventListener(kind, tell);
    matrix.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      const row = rows.findIndex((cells) => cells.includes(event.target));
      if (!move || row < 0) return;
      const next = rows[row + move[0]]?.[rows[row].indexOf(event.target) + move[1]];
      event.preventDefault();
      if (!next) return;
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  function dress() {
    for (const side of ["left", "right"]) {
      const select = one(`#${side}`), name = select.value;
      const told = select.selectedOptions[0].textContent;
      for (const stage of all(".stage")) {
        const layer = one(`.layer.${side}`, stage);
        const url = name && one(`template[data-layer="${name}"]`, stage).content.textContent;
        if (url) layer.src = url; else layer.removeAttribute("src");
        one(`.tag.${side}`, stage).textContent = told;
      }
    }
    const mix = Number(one("#mix").value) / 100;
    one("#pictures").style.setProperty("--mix", mix);
    // The image's own colours are gone at half: a blue class on a yellow wall would look green.
    one("#pictures").style.setProperty("--gray", Math.min(1, 2 * mix));
  }
  if (one("#pictures")) {
    for (const each of all(".controls select, #mix")) each.addEventListener("input", dress);
    for (const divider of all(".divider")) {
      divider.addEventListener("input", () => divider.parentElement.style.setProperty("--at", `${divider.value}%`));
    }
    dress();
  }
  drawAll();
  document.documentElement.dataset.ready = "true";
})();
