// Too many marks for SVG are drawn on a canvas: what all canvases share, and the tiles of a chip.

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

// A canvas as wide as `parent`, on which `draw(context, width, height)` draws, and a line that tells what is pointed at.
function surface(parent, height, draw) {
  const canvas = make("canvas", { tabindex: 0, role: "img", "aria-label": "Arrow keys move the cell that is read out below." });
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  parent.append(canvas, readout);
  const paint = () => {
    const width = parent.clientWidth, tall = height(width), scale = devicePixelRatio || 1;
    if (!width) return;
    canvas.style.height = `${tall}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(tall * scale);
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    draw(context, width, tall);
  };
  new ResizeObserver(paint).observe(parent);
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

// Tiles of a chip, coloured by a figure. `borders` are rectangles of layers.
function tiles(figure, mesh, value, most, say) {
  let at = null;
  const sizeIn = (width) => Math.min(width / mesh.columns, Math.max(640 / mesh.columns, 12), 64);
  const view = surface(figure.querySelector(".drawing"), (width) => sizeIn(width) * mesh.rows + 24, draw);
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
