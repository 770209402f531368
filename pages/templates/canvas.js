// Rasters and meshes: too many marks for SVG, so they are drawn on a canvas.

function colour(name) {
  const probe = document.body.appendChild(make("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// Viridis: as light as it is large, also without colour vision.
const RAMP = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"]
  .map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
function ramp(share) {
  const at = Math.max(0, Math.min(1, share)) * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
  return `rgb(${RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (at - low)))})`;
}

const exact = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

// A canvas as wide as its place; `draw(context, width, height)` and `cell(dx, dy)` for the keyboard, `at(x, y)` for mice.
function surface(figure, height, draw) {
  const canvas = make("canvas", { tabindex: 0, role: "img", "aria-label": "Arrow keys move the cell that is read out below." });
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  figure.querySelector(".drawing").append(canvas, readout);
  const paint = () => {
    const width = canvas.parentElement.clientWidth, tall = height(width), scale = devicePixelRatio || 1;
    if (!width) return;
    canvas.style.height = `${tall}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(tall * scale);
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    draw(context, width, tall);
  };
  new ResizeObserver(paint).observe(canvas.parentElement);
  listeners.push(paint);
  return { canvas, readout, paint };
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function follow(canvas, locate, move) {
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    locate(event.clientX - box.left, event.clientY - box.top, event);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    move(...step);
  });
}

function choice(label, options, chosen) {
  const select = make("select", {}, ...options.map((text, i) => make("option", { value: i }, text)));
  select.addEventListener("change", () => chosen(Number(select.value)));
  return make("label", {}, label, select);
}

// Spikes of a few layers: time runs through the timesteps of the first token, then of the second, and so on.
painters.raster = (figure, rasters) => {
  const LEFT = 52, TOP = 46;
  let raster, columns, cell, left = 0, top = 0, at = null;
  const controls = figure.querySelector(".controls");
  const button = (text, label, act) => {
    const made = make("button", { type: "button", "aria-label": label, title: label }, text);
    made.addEventListener("click", act);
    return made;
  };
  const { canvas, readout, paint } = surface(figure, () => 460, draw);
  controls.append(
    choice("Input of ", rasters.map((one) => one.label), load),
    button("−", "Zoom out", () => zoom(1 / 1.5)),
    button("+", "Zoom in", () => zoom(1.5)),
    button("All", "Show all neurons", () => { cell = 0; paint(); }),
    make("span", { class: "key" }, make("i", { class: "plus" }), "spike +1"),
    make("span", { class: "key" }, make("i"), "spike −1"),
  );
  load(0);

  function load(i) {
    raster = rasters[i];
    columns = raster.tokens.length * raster.num_timesteps;
    cell = null;
    left = top = 0;
    at = null;
    readout.textContent = `${raster.neurons.length.toLocaleString("en")} of ${raster.num_neurons.toLocaleString("en")} neurons, ${raster.tokens.length} tokens of ${raster.num_timesteps} timesteps, which weigh ${raster.timestep_weight.join(", ")}.`;
    paint();
  }
  function zoom(factor) {
    cell = Math.max(2, Math.min(24, (cell || 1) * factor));
    paint();
  }
  function draw(context, width, height) {
    if (!raster) return;
    const neurons = raster.neurons.length, wide = width - LEFT, tall = height - TOP;
    if (cell === null) cell = Math.max(4, Math.min(14, wide / columns));
    const w = cell || wide / columns, h = cell || tall / neurons;
    left = Math.max(0, Math.min(left, columns - wide / w));
    top = Math.max(0, Math.min(top, neurons - tall / h));
    const [plus, minus, ink, muted, line] = ["--spikes", "--other", "--ink", "--muted", "--line"].map(colour);
    context.clearRect(0, 0, width, height);
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.save();
    context.beginPath();
    context.rect(LEFT, TOP, wide, tall);
    context.clip();
    const T = raster.num_timesteps, gap = h > 5 ? 1 : 0;
    for (let c = Math.floor(left); c < Math.min(columns, left + wide / w + 1); c++) {
      const spikes = raster.spikes[Math.floor(c / T)][c % T], x = LEFT + (c - left) * w;
      for (let n = Math.floor(top); n < Math.min(neurons, top + tall / h + 1); n++) {
        if (spikes[n] === ".") continue;
        const y = TOP + (n - top) * h, bw = Math.max(w - gap, 0.8), bh = Math.max(h - gap, 0.8);
        if (spikes[n] === "+" || h < 4) {
          context.fillStyle = spikes[n] === "+" ? plus : minus;
          context.fillRect(x, y, bw, bh);
        } else {
          context.strokeStyle = minus;
          context.lineWidth = Math.max(1, h / 6);
          context.strokeRect(x + context.lineWidth / 2, y + context.lineWidth / 2, bw - context.lineWidth, bh - context.lineWidth);
        }
      }
    }
    context.lineWidth = 1;
    context.strokeStyle = line;
    for (let k = 0; k <= raster.tokens.length; k++) {
      const x = Math.round(LEFT + (k * T - left) * w) - 0.5;
      context.beginPath();
      context.moveTo(x, TOP);
      context.lineTo(x, height);
      context.stroke();
    }
    if (at) {
      context.strokeStyle = ink;
      context.lineWidth = 2;
      context.strokeRect(LEFT + (at[0] - left) * w - 1, TOP + (at[1] - top) * h - 1, w + 2, h + 2);
    }
    context.restore();
    context.fillStyle = muted;
    context.fillText("neuron", 0, TOP - 8);
    context.textAlign = "right";
    for (let y = TOP + 12; y < height; y += 56) {
      const n = Math.floor(top + (y - TOP - 4) / h);
      if (n < neurons) context.fillText(raster.neurons[n], LEFT - 8, y);
    }
    context.textAlign = "left";
    for (let k = 0; k < raster.tokens.length; k++) {
      const x = LEFT + (k * T - left) * w, room = T * w;
      if (x + room < LEFT || x > width) continue;
      context.save();
      context.beginPath();
      context.rect(Math.max(x, LEFT - 4), 0, Math.min(room, x + room - LEFT) - 4, TOP);
      context.clip();
      context.fillStyle = muted;
      context.fillText(`${k + 1}`, x + 2, TOP - 26);
      context.fillStyle = ink;
      context.fillText(visible(raster.tokens[k]), x + 2, TOP - 8);
      context.restore();
    }
  }
  function scale() {
    const width = canvas.clientWidth - LEFT, tall = canvas.clientHeight - TOP;
    return [cell || width / columns, cell || tall / raster.neurons.length];
  }
  function say() {
    const [c, n] = at, T = raster.num_timesteps, token = Math.floor(c / T), t = c % T;
    const spike = { "+": "spike +1", "-": "spike −1", ".": "no spike" }[raster.spikes[token][t][n]];
    const weight = raster.timestep_weight[t];
    readout.textContent = `${raster.label} · neuron ${raster.neurons[n]} · token ${token + 1} “${visible(raster.tokens[token])}” · timestep ${t + 1} of ${T} (weighs ${weight}) · ${spike} · count ${raster.counts[token][n]}`.replaceAll("-", (mark, i, text) => (/[( ]/.test(text[i - 1] ?? "") && /\d/.test(text[i + 1] ?? "") ? "−" : mark));
    paint();
  }
  let drag = null;
  follow(canvas, (x, y, event) => {
    const [w, h] = scale();
    if (drag && event.buttons) {
      left = drag.left - (event.clientX - drag.x) / w;
      top = drag.top - (event.clientY - drag.y) / h;
      paint();
      return;
    }
    const c = Math.floor(left + (x - LEFT) / w), n = Math.floor(top + (y - TOP) / h);
    if (x < LEFT || y < TOP || c < 0 || n < 0 || c >= columns || n >= raster.neurons.length) return;
    at = [c, n];
    say();
  }, (dx, dy) => {
    const [w, h] = scale();
    at = at ?? [Math.ceil(left), Math.ceil(top)];
    at = [Math.max(0, Math.min(columns - 1, at[0] + dx)), Math.max(0, Math.min(raster.neurons.length - 1, at[1] + dy))];
    const across = (canvas.clientWidth - LEFT) / w, down = (canvas.clientHeight - TOP) / h;
    left = Math.max(at[0] + 1 - across, Math.min(left, at[0]));
    top = Math.max(at[1] + 1 - down, Math.min(top, at[1]));
    say();
  });
  canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, left, top }; });
  addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey) return; // the browser's own zoom
    const [w, h] = scale(), before = [left, top];
    left += event.deltaX / w;
    top += event.deltaY / h;
    paint();
    if (before[0] !== left || before[1] !== top) event.preventDefault(); // at an end the page scrolls on
  }, { passive: false });
};

function visible(text) {
  const shown = text.replaceAll("\n", "⏎").replaceAll("\t", "→").replace(/^ | $/g, "␣");
  return shown || "␣";
}

// Tiles of a chip, coloured by a figure. `borders` are rectangles of layers.
function tiles(figure, mesh, value, most, say) {
  let at = null;
  const sizeIn = (width) => Math.min(width / mesh.columns, Math.max(640 / mesh.columns, 12), 64);
  const view = surface(figure, (width) => sizeIn(width) * mesh.rows + 24, draw);
  const size = () => sizeIn(view.canvas.clientWidth);
  function draw(context, width, height) {
    const s = size(), [line, muted, ink, surfaceColour] = ["--line", "--muted", "--ink", "--surface"].map(colour);
    context.clearRect(0, 0, width, height);
    for (let y = 0; y < mesh.rows; y++) {
      for (let x = 0; x < mesh.columns; x++) {
        const found = value(x, y);
        context.fillStyle = found == null ? line : ramp(found / (most() || 1));
        context.fillRect(x * s, y * s, s - (s > 6 ? 1 : 0), s - (s > 6 ? 1 : 0));
        if (found == null || s < 40) continue;
        context.font = `600 13px ${getComputedStyle(document.body).fontFamily}`;
        context.textAlign = "center";
        context.fillStyle = found / (most() || 1) > 0.6 ? "#000" : "#fff";
        context.fillText(exact.format(Number(found.toPrecision(2))), (x + 0.5) * s, (y + 0.5) * s + 4);
        context.textAlign = "left";
      }
    }
    context.lineWidth = 1.5;
    context.strokeStyle = surfaceColour;
    for (const b of mesh.borders) context.strokeRect(b.x * s - 0.5, b.y * s - 0.5, b.columns * s, b.rows * s);
    if (at) {
      context.strokeStyle = ink;
      context.lineWidth = 2;
      context.strokeRect(at[0] * s, at[1] * s, s, s);
    }
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.fillStyle = muted;
    context.fillText(`${mesh.columns} columns × ${mesh.rows} rows of tiles`, 0, height - 6);
  }
  const tell = () => {
    const border = mesh.borders.find((b) => at[0] >= b.x && at[0] < b.x + b.columns && at[1] >= b.y && at[1] < b.y + b.rows);
    view.readout.textContent = `tile ${at[0] + mesh.x},${at[1] + mesh.y} · ${border ? border.name : "no layer"} · ${say(...at)}`;
    view.paint();
  };
  follow(view.canvas, (x, y) => {
    const found = [Math.floor(x / size()), Math.floor(y / size())];
    if (found[0] >= mesh.columns || found[1] >= mesh.rows) return;
    at = found;
    tell();
  }, (dx, dy) => {
    at = at ? [at[0] + dx, at[1] + dy] : [0, 0];
    at = [Math.max(0, Math.min(mesh.columns - 1, at[0])), Math.max(0, Math.min(mesh.rows - 1, at[1]))];
    tell();
  });
  return { repaint: () => (at ? tell() : view.paint()) };
}

function legend(text) {
  const bar = make("i");
  bar.style.background = `linear-gradient(90deg, ${RAMP.map((_, i) => ramp(i / (RAMP.length - 1)))})`;
  const most = make("span");
  return { element: make("span", { class: "ramp" }, "0", bar, most), show: (value, unit) => { most.textContent = `${exact.format(value)} ${unit}${text}`; } };
}

painters.mesh = (figure, mesh) => {
  let shown = mesh.metrics[0];
  const scale = legend("");
  const figureOf = (metric, x, y) => metric.values[y * mesh.columns + x];
  const say = (x, y) => mesh.metrics
    .filter((metric) => figureOf(metric, x, y) != null)
    .map((metric) => `${metric.label}: ${exact.format(figureOf(metric, x, y))} ${metric.unit}`).join(" · ");
  const drawn = tiles(figure, mesh, (x, y) => figureOf(shown, x, y), () => shown.most, say);
  const update = (i) => {
    shown = mesh.metrics[i];
    scale.show(shown.most, shown.unit);
    drawn.repaint();
  };
  figure.querySelector(".controls").append(choice("Colour: ", mesh.metrics.map((one) => one.label), update), scale.element);
  update(0);
};

// The queues of one layer, step by step through time.
painters.steps = (figure, steps) => {
  let step = 0, timer = null;
  const place = new Map(steps.tiles.map(([x, y], i) => [`${x},${y}`, i]));
  const find = (x, y) => steps.waiting[step][place.get(`${x},${y}`)];
  const drawn = tiles(figure, steps, find, () => steps.most, (x, y) => {
    const found = find(x, y);
    return found == null ? "no station" : `${exact.format(found)} packets wait`;
  });
  const slider = make("input", { type: "range", min: 0, max: steps.waiting.length - 1, value: 0, "aria-label": "Step in time" });
  const now = make("output");
  const play = make("button", { type: "button" }, "Play");
  const scale = legend(" in a tile");
  const show = () => {
    now.textContent = `${exact.format(steps.begin_us[step])} µs, token ${steps.token[step] + 1}`;
    slider.setAttribute("aria-valuetext", now.textContent);
    drawn.repaint();
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  slider.addEventListener("input", () => { step = Number(slider.value); show(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Pause";
    timer = setInterval(() => {
      step = (step + 1) % steps.waiting.length;
      slider.value = step;
      show();
    }, 120);
  });
  scale.show(steps.most, "packets");
  figure.querySelector(".controls").append(play, make("label", {}, "Time ", slider), now, scale.element);
  show();
};
