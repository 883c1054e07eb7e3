"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const unit = data.unit ? ` (${data.unit})` : "";
  const withUnit = (value, digits = 3) =>
    value === null || value === undefined || Number.isNaN(value) ? "not observed" : `${Number(value.toPrecision(digits))}${data.unit ? " " + data.unit : ""}`;
  // Plotly reads a subset of HTML: text of the data must not be taken for it.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const looks = new Map(data.series.map((one) => [one.name, one]));

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const print = matchMedia("print");
  const coarse = matchMedia("(pointer: coarse)");
  let printing = print.matches;
  const night = () => dark.matches && !printing;
  const ink = () => (night() ? "#e6e9ed" : "#1b1f24");
  const grid = () => (night() ? "#333b45" : "#dfe3e8");
  const colour = (look) => {
    if (look.colour === "#000000") return ink();
    if (look.colour === "#808080") return night() ? "#9aa4af" : "#6b747d";
    if (look.colour === "#0072B2" && night()) return "#3fa0dd"; // the same hue, light enough for a dark page
    return look.colour;
  };
  const faint = (hex, alpha) => {
    const part = (from) => parseInt(hex.slice(from, from + 2), 16);
    return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
  };

  // --- what all pictures share ------------------------------------------------------------------------------------

  const pictures = new Map(); // id -> function that returns [traces, layout]
  const axis = (title, more = {}) => ({
    title: { text: plain(title), standoff: 8 }, gridcolor: grid(), linecolor: grid(), zerolinecolor: grid(),
    automargin: true, fixedrange: coarse.matches, ...more,
  });
  const base = (more = {}) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { color: ink(), size: 13, family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif" },
    hoverlabel: { bgcolor: night() ? "#242a31" : "#ffffff", bordercolor: grid(), font: { color: ink() }, align: "left" },
    margin: { l: 56, r: 14, t: 12, b: 48 }, dragmode: coarse.matches ? false : "zoom", ...more,
  });
  const draw = (id) => {
    const place = find(`plot-${id}`);
    const [traces, layout] = pictures.get(id)();
    // On paper, a picture is as wide as an A4 page between its margins, and no higher than half of one.
    const size = printing
      ? { autosize: false, width: 670, height: { map: 470, conflict: 400 }[id] || 255 }
      : { autosize: true, width: undefined, height: undefined };
    return Plotly.react(place, traces, { ...layout, ...size }, { displayModeBar: false, responsive: !printing });
  };
  const drawAll = () => pictures.forEach((_, id) => draw(id));
  const onPaper = (now) => {
    if (printing === now) return;
    printing = now;
    drawAll();
    document.querySelectorAll("fieldset.legend").forEach((one) => one.refresh && one.refresh());
  };
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(print.matches));
  print.addEventListener("change", (event) => onPaper(event.matches));
  dark.addEventListener("change", () => {
    drawAll();
    document.querySelectorAll("fieldset.legend").forEach((one) => one.refresh && one.refresh());
  });

  // --- legends: check boxes, so that they can be used with the keyboard and read on a phone -----------------------

  const shapes = {
    circle: "M17 7m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", square: "M13.5 3.5h7v7h-7z", diamond: "M17 2l5 5-5 5-5-5z",
    "triangle-up": "M17 2.5l4.5 8h-9z", "triangle-down": "M17 11.5l4.5-8h-9z",
    cross: "M15 2.5h4v2.6h2.6v3.8H19v2.6h-4V8.9h-2.6V5.1H15z", star: "M17 1.5l1.6 3.9 4.1.3-3.2 2.6 1 4-3.5-2.2-3.5 2.2 1-4-3.2-2.6 4.1-.3z",
  };
  const dashes = { solid: "", dot: "2 3", dash: "7 4", dashdot: "7 3 2 3", longdash: "12 4", "1px,5px": "1 5", longdashdot: "11 3 2 3" };
  const element = (name, attributes, space) => {
    const made = space ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    return made;
  };
  const swatch = (look) => {
    const svg = element("svg", { viewBox: "0 0 34 14", "aria-hidden": "true" }, true);
    svg.append(element("line", { x1: 0, x2: 34, y1: 7, y2: 7, stroke: colour(look), "stroke-width": 2.2, "stroke-dasharray": dashes[look.dash] }, true));
    if (look.marker) svg.append(element("path", { d: shapes[look.marker], fill: colour(look) }, true));
    return svg;
  };
  const legend = (id, names, shown, title, drawn) => {
    const box = find(`legend-${id}`);
    box.refresh = () => {
      box.replaceChildren();
      const head = element("legend", {});
      head.textContent = title;
      box.append(head);
      names.forEach((name) => {
        const label = element("label", shown.has(name) ? {} : { class: "off" });
        const tick = element("input", { type: "checkbox", "data-name": name });
        tick.checked = shown.has(name);
        tick.addEventListener("change", () => {
          if (tick.checked) shown.add(name); else shown.delete(name);
          label.classList.toggle("off", !tick.checked);
          drawn();
        });
        const text = element("span", {});
        text.textContent = name;
        label.append(tick, swatch(looks.get(name)), text);
        box.append(label);
      });
    };
    box.refresh();
  };

  // --- errors by horizon, hour and weekday ------------------------------------------------------------------------

  Object.entries(data.lines || {}).forEach(([id, picture]) => {
    const names = Object.keys(picture.lines);
    const shown = new Set(names.filter((name) => !picture.hidden.includes(name)));
    pictures.set(id, () => {
      const traces = [];
      names.filter((name) => shown.has(name)).forEach((name) => {
        const look = looks.get(name), line = picture.lines[name];
        if (line.low) {
          // A band for each stretch without a gap.
          const stretches = [];
          line.low.forEach((value, place) => {
            if (value === null) return;
            if (place && line.low[place - 1] !== null) stretches[stretches.length - 1].push(place); else stretches.push([place]);
          });
          const around = (places, over, back) => [...places.map((place) => over[place]), ...places.map((place) => back[place]).reverse()];
          stretches.forEach((places) => traces.push({
            x: around(places, picture.x, picture.x), y: around(places, line.low, line.high),
            fill: "toself", fillcolor: faint(colour(look), night() ? 0.2 : 0.13), line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter",
          }));
        }
        traces.push({
          x: picture.x, y: line.mean, type: "scatter", mode: look.marker || id === "weekday" ? "lines+markers" : "lines", name: plain(name),
          line: { color: colour(look), dash: look.dash, width: look.marker ? 2.2 : 1.8 },
          marker: { symbol: look.marker || "circle-open", size: 7, color: colour(look) },
          text: line.mean.map((value, place) => `<b>${plain(name)}</b><br>${plain(picture.x[place])}: ${plain(withUnit(value, 4))}` +
            (line.low && value !== null ? `<br>seeds: ${Number(line.low[place].toPrecision(4))} to ${Number(line.high[place].toPrecision(4))}` : "")),
          hovertemplate: "%{text}<extra></extra>",
        });
      });
      const wide = find(`plot-${id}`).clientWidth > 560 || printing;
      const ticks = id === "hour" ? { dtick: wide ? 2 : 4 } : id === "horizon" && picture.x.length > 16 ? { nticks: 12 } : {};
      return [traces, base({
        xaxis: axis(picture.title, { type: "category", categoryorder: "array", categoryarray: picture.x, tickangle: 0, ...ticks }),
        yaxis: axis(`MAE${unit}`),
      })];
    });
    legend(id, names, shown, "Shown", () => draw(id));
  });

  // --- the map ----------------------------------------------------------------------------------------------------

  if (data.map) {
    const map = data.map, names = Object.keys(map.mae);
    const select = find("map-name"), radios = [...document.querySelectorAll("input[name=map-what]")];
    const what = () => radios.find((radio) => radio.checked).value;
    const fillNames = () => {
      const before = select.value || data.first[data.first.length - 1];
      select.replaceChildren();
      Object.keys(map[what()]).forEach((name) => {
        const option = element("option", { value: name });
        option.textContent = name;
        select.append(option);
      });
      select.value = Object.keys(map[what()]).includes(before) ? before : select.options[0].value;
    };
    const scaleOfGain = [[0, "#D55E00"], [0.25, "#f0b48a"], [0.5, "#f5f5f5"], [0.75, "#7fb8dc"], [1, "#0072B2"]];
    pictures.set("map", () => {
      const mode = what(), name = select.value, values = map[mode][name];
      const high = map[`${mode}_range`][1];
      const range = mode === "gain" ? [-high, high] : map.mae_range;
      const place = find("plot-map");
      const text = map.ids.map((id, node) => `<b>${plain(id)}</b><br>MAE of ${plain(name)}: ${plain(withUnit(map.mae[name][node]))}` +
        (map.gain && map.gain[name] ? `<br>gain over ${plain(data.reference)}: ${map.gain[name][node] === null ? "not observed" : `${map.gain[name][node]} %`}` : ""));
      const title = mode === "gain" ? `gain over ${data.reference} (% of MAE; blue is better)` : `MAE${unit}`;
      const size = map.ids.length > 1500 ? 5 : map.ids.length > 500 ? 7 : place.clientWidth < 560 ? 8 : 10;
      const marker = {
        size, color: values, colorscale: mode === "gain" ? scaleOfGain : "Viridis", reversescale: mode === "mae" && !night(),
        cmin: range[0], cmax: range[1], line: { width: 0.8, color: ink() },
        colorbar: {
          orientation: "h", thickness: 12, len: 0.9, x: 0.5, xanchor: "center", y: map.latitude ? -0.02 : -0.2, yanchor: "top", outlinewidth: 0,
          title: { text: plain(title), side: "bottom" }, ticksuffix: mode === "gain" ? " %" : "",
        },
      };
      const dots = { type: "scatter", mode: "markers", marker, text, hovertemplate: "%{text}<extra></extra>" };
      if (!map.latitude) {
        const order = map.ids.map((_, node) => node).sort((a, b) => values[a] - values[b]);
        const by = (list) => order.map((node) => list[node]);
        dots.text = by(text);
        marker.color = by(values);
        return [[{ ...dots, x: order.map((_, rank) => rank + 1), y: by(values) }],
          base({ xaxis: axis("nodes, from the smallest value to the largest"), yaxis: axis(mode === "gain" ? "gain (%)" : `MAE${unit}`), margin: { l: 56, r: 14, t: 12, b: 120 } })];
      }
      const hidden = { visible: false, fixedrange: coarse.matches };
      const roads = { type: "scatter", mode: "lines", x: map.roads_longitude, y: map.roads_latitude, line: { color: night() ? "#56606b" : "#b4bcc4", width: 1 }, hoverinfo: "skip" };
      return [[roads, { ...dots, x: map.longitude, y: map.latitude }], base({
        xaxis: hidden, yaxis: { ...hidden, scaleanchor: "x", scaleratio: map.aspect }, margin: { l: 4, r: 4, t: 4, b: 70 },
        dragmode: coarse.matches ? false : "pan",
      })];
    });
    const say = () => {
      find("map-printed").textContent = `Shown: ${what() === "gain" ? `gain over ${data.reference} of` : "MAE of"} ${select.value}.`;
    };
    fillNames();
    say();
    radios.forEach((radio) => radio.addEventListener("change", () => { fillNames(); say(); draw("map"); }));
    select.addEventListener("change", () => { say(); draw("map"); });
  }

  // --- forecasts against readings ---------------------------------------------------------------------------------

  if (data.forecasts) {
    const part = data.forecasts, names = Object.keys(part.tables).filter((name) => name);
    const shown = new Set(names.filter((name) => !part.hidden.includes(name)));
    const unpacked = new Map();
    const table = (name) => {
      if (!unpacked.has(name)) {
        const bytes = Uint8Array.from(atob(part.tables[name]), (letter) => letter.charCodeAt(0));
        const view = new DataView(bytes.buffer), numbers = new Array(bytes.length / 2);
        for (let place = 0; place < numbers.length; place += 1) {
          const stored = view.getInt16(2 * place, true);
          numbers[place] = stored === -32768 ? null : Number((part.low + (stored + 32500) * part.scale).toPrecision(5));
        }
        unpacked.set(name, numbers);
      }
      return unpacked.get(name);
    };
    const steps = table("").length / part.ids.length;
    const start = Date.parse(`${part.start}Z`);
    const times = Array.from({ length: steps }, (_, step) => new Date(start + step * part.minutes * 60000).toISOString().slice(0, 19).replace("T", " "));
    const select = find("sensor"), typed = find("sensor-id"), said = find("sensor-said");
    const list = find("sensor-list");
    part.ids.forEach((id, place) => {
      const option = element("option", { value: String(place) });
      option.textContent = id;
      select.append(option);
      list.append(element("option", { value: id }));
    });
    const row = (name) => table(name).slice(Number(select.value) * steps, (Number(select.value) + 1) * steps);
    pictures.set("forecasts", () => {
      const traces = [{
        x: times, y: row(""), type: "scatter", mode: "lines", name: "reading", line: { color: ink(), width: 1.3 }, connectgaps: false,
        hovertemplate: "%{x|%a %d %b %H:%M}<br>reading %{y}<extra></extra>",
      }];
      names.filter((name) => shown.has(name)).forEach((name) => {
        const look = looks.get(name), many = look.dash === "solid" && look.colour === "#000000";
        traces.push({
          x: times, y: row(name), type: "scatter", mode: look.marker ? "lines+markers" : "lines", name: plain(name),
          line: { color: colour(look), dash: many ? "dash" : look.dash, width: 1.8 },
          marker: { symbol: look.marker || "circle", size: 7, color: colour(look), maxdisplayed: 26 },
          text: times.map(() => plain(name)), hovertemplate: "%{x|%a %d %b %H:%M}<br>%{text}: %{y}<extra></extra>",
        });
      });
      return [traces, base({
        xaxis: axis("", { type: "date", tickformatstops: [
          { dtickrange: [null, 86399999], value: "%H:%M\n%a %d %b" }, { dtickrange: [86400000, null], value: "%a %d %b" }] }),
        yaxis: axis(`${part.channel}${unit}`),
      })];
    });
    const pick = (place) => {
      select.value = String((place + part.ids.length) % part.ids.length);
      const number = Number(select.value);
      typed.value = "";
      const errors = names.filter((name) => shown.has(name)).map((name) => `${name} ${withUnit(part.mae[name][number])}`);
      said.textContent = `Node ${part.ids[number]}` + (errors.length ? `; MAE over the whole test period: ${errors.join(", ")}.` : ".");
      return draw("forecasts");
    };
    // Reading and forecasts have no colour of their own to share: the reading's line is the thin one.
    legend("forecasts", names, shown, "Shown beside the readings (thin line)", () => pick(Number(select.value)));
    const order = part.ids.map((_, place) => place).sort((a, b) => (part.mae[data.first[0]] || [])[a] - (part.mae[data.first[0]] || [])[b]);
    select.value = String(order[Math.floor(order.length / 2)]);
    select.addEventListener("change", () => pick(Number(select.value)));
    find("sensor-before").addEventListener("click", () => pick(Number(select.value) - 1));
    find("sensor-after").addEventListener("click", () => pick(Number(select.value) + 1));
    const go = () => {
      const place = part.ids.indexOf(typed.value.trim());
      if (place >= 0) pick(place);
      else if (typed.value.trim()) said.textContent = `There are no forecasts of a node ${typed.value.trim()} in this page; it holds those of ${part.ids.length} nodes, which the list offers.`;
    };
    typed.addEventListener("change", go);
    typed.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); go(); } });
    pick(Number(select.value));
  }

  // --- gradient conflict ------------------------------------------------------------------------------------------

  if (data.conflict) {
    const select = find("conflict-name");
    const ways = [["#0072B2", "circle", "solid"], ["#D55E00", "square", "dash"], ["#009E73", "diamond", "dot"], ["#CC79A7", "triangle-up", "dashdot"],
      ["#56B4E9", "triangle-down", "longdash"], ["#E69F00", "cross", "longdashdot"]];
    const panels = [["cosine", "cosine"], ["conflict", "in conflict (%)"], ["kappa", "kappa"]];
    pictures.set("conflict", () => {
      const found = data.conflict[select.value], traces = [];
      const many = Object.keys(found.sources);
      many.forEach((source, number) => {
        const [hex, symbol, dash] = ways[number % ways.length], line = found.sources[source];
        panels.forEach(([what], panel) => traces.push({
          x: line.step, y: line[what], type: "scatter", mode: "lines+markers", name: plain(source), legendgroup: plain(source), showlegend: panel === 0,
          xaxis: "x", yaxis: `y${panel ? panel + 1 : ""}`, line: { color: colour({ colour: hex }), width: 2, dash }, marker: { symbol, size: 6, color: colour({ colour: hex }) },
          text: line.step.map(() => plain(source)), hovertemplate: `step %{x:.0f}<br>%{text}: ${what} %{y}<extra></extra>`,
        }));
      });
      const low = Math.min(0, ...many.flatMap((source) => found.sources[source].cosine));
      return [traces, base({
        showlegend: many.length > 1, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: ink() }, itemclick: false, itemdoubleclick: false },
        margin: { l: 62, r: 14, t: 30, b: 48 },
        xaxis: axis("optimizer step", { anchor: "y3", rangemode: "tozero" }),
        yaxis: axis(panels[0][1], { domain: [0.62, 1], zerolinecolor: ink(), range: low < 0 ? undefined : [-0.05, 1] }),
        yaxis2: axis(panels[1][1], { domain: [0.31, 0.56], range: [-4, 104] }),
        yaxis3: axis(panels[2][1], { domain: [0, 0.25], rangemode: "tozero" }),
      })];
    });
    if (select.tagName === "SELECT") select.addEventListener("change", () => draw("conflict"));
  }

  // --- prompt sharing ---------------------------------------------------------------------------------------------

  if (data.prompts) {
    const part = data.prompts;
    const ways = [["#0072B2", ""], ["#D55E00", "/"], ["#009E73", "x"], ["#CC79A7", "."], ["#56B4E9", "-"], ["#E69F00", "+"]];
    pictures.set("prompts", () => [
      part.cities.map((city, number) => {
        const [hex, shape] = ways[number % ways.length];
        return {
          type: "bar", name: plain(number ? city : `${city} (target)`), x: part.share[number].map((_, slot) => String(slot)), y: part.share[number],
          marker: { color: colour({ colour: hex }), pattern: { shape, fgcolor: night() ? "#14171b" : "#ffffff", fillmode: "overlay", size: 6 } },
          text: part.share[number].map(() => plain(city)), textposition: "none", hovertemplate: "slot %{x}<br>%{text}: %{y} %<extra></extra>",
        };
      }),
      base({
        barmode: "group", showlegend: true, margin: { l: 56, r: 14, t: 34, b: 48 },
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: ink() }, itemclick: false, itemdoubleclick: false },
        xaxis: axis("slot of the prompt bank", { type: "category" }), yaxis: axis("share of the prompts (%)"),
      }),
    ]);
  }

  drawAll();
  document.documentElement.dataset.drawn = "true";
})();
