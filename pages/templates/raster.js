/* Rasters with what answers the pointer and the keys; raster_draw.js draws them.

   Mouse: hover reads out a place, a dragged box is zoomed into, the wheel moves, a double click shows all. Keys: arrows
   move from place to place, + and - zoom, 0 shows all. */
class RasterPanel extends RasterPicture {
  static STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
  static ZOOMS = { "+": 0.5, "=": 0.5, "-": 2, "0": Infinity };

  build(parent) {
    const { panel } = this, { number } = RasterPicture;
    const title = [panel.layer, panel.code].filter(Boolean).join(" · ");
    const box = parent.appendChild(make("div", {}, ...(title ? [make("h3", {}, title)] : [])));
    const height = (width) => { this.measure(width); return this.size.height; };
    Object.assign(this, surface(box, height, (context) => this.draw(context)));
    this.canvas.setAttribute("aria-label", `${title || this.raster.name}: ${number(panel.num_spikes[0])} spikes of +1 ` +
      `and ${number(panel.num_spikes[1])} of −1. Arrow keys move the place that is read out below.`);
    this.readout.textContent = `${number(this.rows)} of ${number(panel.num_neurons)} neurons, ` +
      `${number(panel.num_tokens)} token${panel.num_tokens === 1 ? "" : "s"} of ${number(panel.num_timesteps)} timesteps.`;
    this.listen();
    this.paint();
  }

  listen() {
    const { canvas } = this;
    let start = null;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const end = () => { start = this.box = null; };
    canvas.addEventListener("pointerdown", (event) => {
      start = at(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (start && Math.hypot(x - start[0], y - start[1]) > 6) this.box = [...start, x, y];
      this.point(x, y);
    });
    canvas.addEventListener("pointerup", (event) => {
      const { box } = this;
      end();
      if (!box) return;
      this.zoomTo(box);
      this.point(...at(event));
    });
    canvas.addEventListener("pointercancel", () => { end(); this.drawPlace(); });
    canvas.addEventListener("dblclick", () => this.zoom(Infinity));
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return; // the browser's own zoom
      if (this.shift(-event.deltaY / this.high, event.deltaX / this.wide)) event.preventDefault(); // at an end the page scrolls on
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in RasterPanel.STEPS) this.step(...RasterPanel.STEPS[event.key]);
      else if (event.key in RasterPanel.ZOOMS) this.zoom(RasterPanel.ZOOMS[event.key]);
      else return;
      event.preventDefault();
    });
  }

  point(x, y) {
    const { main, view } = this;
    const isInside = x >= main.x && x < main.x + main.width && y >= main.y && y < main.y + main.height;
    if (isInside) {
      const row = Math.floor(view.row[0] + (main.y + main.height - y) / this.high);
      const column = Math.floor(view.column[0] + (x - main.x) / this.wide);
      this.place = [Math.min(row, this.rows - 1), Math.min(column, this.columns - 1)];
      this.say();
    }
    this.drawPlace();
  }

  say() {
    const { panel, raster } = this, { number } = RasterPicture;
    const [row, column] = this.place, token = Math.floor(column / panel.num_timesteps);
    const text = raster.tokens ? ` “${raster.tokens[token]}”` : "";
    const call = raster.calls.at(-1) > 0 ? ` (call ${number(raster.calls[token] + 1)})` : "";
    const length = panel.timesteps[token].filter((timestep) => timestep >= 0).length;
    const time = this.timesteps[column] < 0 ? "no timestep: this call's train is shorter"
      : `timestep ${number(this.timesteps[column] + 1)} of ${number(length)} shown (weighs ${number(this.weights[column])})`;
    const spike = ["spike −1", "no spike", "spike +1"][this.spikes[row * this.columns + column] + 1];
    this.readout.textContent = [panel.layer || raster.name, `neuron ${number(panel.neurons[row])}`,
      `token ${number(token + 1)}${text}${call}`, time, spike, `count ${number(panel.counts[row][token])}`].filter(Boolean).join(" · ");
  }

  step(rows, columns) {
    const { view } = this;
    const within = (value, size) => Math.max(0, Math.min(size - 1, value));
    const [row, column] = this.place ? [this.place[0] + rows, this.place[1] + columns] : [view.row[0], view.column[0]].map(Math.ceil);
    this.place = [within(row, this.rows), within(column, this.columns)];
    const beyond = (at, [low, high]) => Math.min(0, at - low) + Math.max(0, at + 1 - high);
    this.shift(beyond(this.place[0], view.row), beyond(this.place[1], view.column));
    this.say();
    this.drawPlace();
  }

  /* Move what is in view; return whether there was anything to move to. */
  shift(rows, columns) {
    const { view } = this;
    const moved = ([low, high], by, size) => {
      const first = Math.max(0, Math.min(size - (high - low), low + by));
      return [first, first + high - low];
    };
    this.view = { row: moved(view.row, rows, this.rows), column: moved(view.column, columns, this.columns) };
    const hasMoved = this.view.row[0] !== view.row[0] || this.view.column[0] !== view.column[0];
    if (hasMoved) this.paint();
    return hasMoved;
  }

  /* Show `factor` times as many rows and columns, around the place that is read out. */
  zoom(factor) {
    const around = ([low, high], i) => {
      const middle = this.place ? this.place[i] + 0.5 : (low + high) / 2, half = factor * (high - low) / 2;
      return [middle - half, middle + half];
    };
    this.look(around(this.view.row, 0), around(this.view.column, 1));
  }

  /* Zoom into a box; one as flat or narrow as a stroke leaves the other axis as it is. */
  zoomTo([x1, y1, x2, y2]) {
    const { main, view } = this;
    const row = (y) => view.row[0] + Math.max(0, Math.min(main.height, main.y + main.height - y)) / this.high;
    const column = (x) => view.column[0] + Math.max(0, Math.min(main.width, x - main.x)) / this.wide;
    const rows = Math.abs(y2 - y1) < 6 ? view.row : [row(Math.max(y1, y2)), row(Math.min(y1, y2))];
    const columns = Math.abs(x2 - x1) < 6 ? view.column : [column(Math.min(x1, x2)), column(Math.max(x1, x2))];
    this.look(rows, columns);
  }

  look(row, column) {
    const whole = ([first, last], size) => {
      const low = Math.max(0, Math.min(size - 1, Math.floor(first)));
      return [low, Math.max(low + 1, Math.min(size, Math.ceil(last)))];
    };
    this.view = { row: whole(row, this.rows), column: whole(column, this.columns) };
    this.paint();
  }
}

// One raster at a time: a row of panels for each layer, in which its codes stand side by side.
painters.raster = (figure, { names }) => {
  const figures = JSON.parse(document.getElementById("data").textContent);
  const rasters = figures.rasters.map((raster, i) => ({ name: names[i], ...raster }));
  const drawing = figure.querySelector(".drawing"), controls = figure.querySelector(".controls");
  const built = new Map();
  let shown;
  const build = (raster) => {
    const place = drawing.appendChild(make("div")), panels = raster.panels.map((panel) => new RasterPanel(raster, panel));
    panels.forEach((panel, i) => {
      if (i % raster.columns === 0) place.append(make("div", { class: "row" }));
      panel.build(place.lastChild);
    });
    return { place, panels };
  };
  const show = (i) => {
    if (!built.has(i)) built.set(i, build(rasters[i]));
    shown = built.get(i);
    for (const one of built.values()) one.place.hidden = one !== shown;
  };
  const button = (text, label, factor) => {
    const made = make("button", { type: "button", "aria-label": label, title: label }, text);
    made.addEventListener("click", () => shown.panels.forEach((panel) => panel.zoom(factor)));
    return made;
  };
  if (rasters.length > 1) controls.append(choice("Input of ", rasters.map((one) => one.name), show));
  controls.append(
    button("−", "Zoom out", 2),
    button("+", "Zoom in", 0.5),
    button("All", "Show all", Infinity),
    make("span", { class: "key" }, make("i", { class: "plus" }), "spike +1"),
    make("span", { class: "key" }, make("i"), "spike −1"),
  );
  show(0);
};
