/* A spike raster on canvases, one for each panel of `analysis.Raster.to_data()`.

   spikebrainRaster(figure, data) fills an element. Spikes of +1 stand above the line of their neuron and those of -1
   below it; where places are too small for that, a panel has two maps, +1 above -1, whose shade is the share of places
   that fire. Colours: the element's own for text, --raster-plus and --raster-minus for spikes.

   Mouse: hover names a place, a dragged box is zoomed into, a double click shows all. Keys: arrows move from place to
   place, + and - zoom, 0 shows all. */
"use strict";

(() => {
  const { number } = RasterPicture;

  async function unpack(text, Type) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Type(await new Response(stream).arrayBuffer());
  }

  class Panel extends RasterPicture {
    build(parent) {
      const { panel } = this;
      const box = document.createElement("div");
      const title = document.createElement("h4");
      title.textContent = [panel.layer, panel.code].filter(Boolean).join(" · ");
      this.canvas.tabIndex = 0;
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute("aria-label", `${title.textContent}: ${number(panel.num_spikes[0])} spikes of +1 and ` +
        `${number(panel.num_spikes[1])} of −1. Arrow keys move from place to place.`);
      this.said = document.createElement("output");
      this.say();
      box.append(title, this.canvas, this.said);
      parent.append(box);
      this.listen();
      let width = 0;
      new ResizeObserver(() => {
        if (box.clientWidth !== width) requestAnimationFrame(() => this.draw());
        width = box.clientWidth;
      }).observe(box);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    }

    say() {
      if (!this.place) {
        this.said.textContent = "Point at a place: layer, neuron, token, timestep and count stand here.";
        return;
      }
      const { panel, raster } = this;
      const [row, column] = this.place;
      const token = Math.floor(column / panel.num_timesteps), spike = this.spikes[row * this.columns + column];
      const name = raster.tokens ? ` “${raster.tokens[token]}”` : "";
      const calls = raster.calls[raster.calls.length - 1] > 0 ? ` (call ${raster.calls[token]})` : "";
      const time = this.timesteps[column] < 0 ? "no timestep: this call's train is shorter"
        : `timestep ${number(this.timesteps[column])}, weighing ${number(this.weights[column])}`;
      const what = spike > 0 ? "spike +1" : spike < 0 ? "spike −1" : "no spike";
      const count = number(this.counts[row * panel.num_tokens + token]);
      this.said.textContent = [panel.layer, `neuron ${number(panel.neurons[row])}`, `token ${number(token)}${name}${calls}`,
        time, what, `count ${count}`].filter(Boolean).join(" · ");
    }

    listen() {
      const { canvas } = this;
      const at = (event) => {
        const box = canvas.getBoundingClientRect();
        return [event.clientX - box.left, event.clientY - box.top];
      };
      canvas.addEventListener("pointerdown", (event) => { this.start = at(event); });
      canvas.addEventListener("pointermove", (event) => {
        const [x, y] = at(event);
        if (this.start && Math.hypot(x - this.start[0], y - this.start[1]) > 6) this.box = [...this.start, x, y];
        this.point(x, y);
      });
      canvas.addEventListener("pointerup", () => {
        if (this.box) this.zoomTo(this.box);
        this.start = this.box = null;
        this.draw();
      });
      canvas.addEventListener("pointerleave", () => { this.start = this.box = null; this.moveTo(null); });
      canvas.addEventListener("dblclick", () => { this.showAll(); this.draw(); });
      canvas.addEventListener("keydown", (event) => this.press(event));
    }

    point(x, y) {
      const { main, view } = this;
      const isInside = x >= main.x && x < main.x + main.width && y >= main.y && y < main.y + main.height;
      if (!isInside) return this.moveTo(null);
      const height = main.height / this.signs.length;
      this.placeMap = Math.floor((y - main.y) / height);
      const fromBottom = 1 - ((y - main.y) - this.placeMap * height) / height;
      const row = Math.floor(view.row[0] + fromBottom * (view.row[1] - view.row[0]));
      const column = Math.floor(view.column[0] + (x - main.x) / this.wide);
      this.moveTo([Math.min(row, this.rows - 1), Math.min(column, this.columns - 1)]);
    }

    moveTo(place) {
      this.place = place;
      this.say();
      this.drawPlace();
    }

    zoomTo([x1, y1, x2, y2]) {
      const { main, view } = this;
      const between = (value, low, high) => Math.min(high, Math.max(low, value));
      const columns = [Math.min(x1, x2), Math.max(x1, x2)].map((x) => view.column[0] + (x - main.x) / this.wide);
      const height = main.height / this.signs.length, rows = view.row[1] - view.row[0];
      const map = between(Math.floor((Math.min(y1, y2) - main.y) / height), 0, this.signs.length - 1);
      const ys = [Math.max(y1, y2), Math.min(y1, y2)].map((y) => between(y - main.y - map * height, 0, height));
      const row = ys.map((y) => view.row[0] + (1 - y / height) * rows);
      this.look(row, columns);
    }

    look(row, column) {
      const whole = ([first, last], size) => {
        const low = Math.max(0, Math.min(size - 1, Math.floor(first)));
        return [low, Math.max(low + 1, Math.min(size, Math.ceil(last)))];
      };
      this.view = { row: whole(row, this.rows), column: whole(column, this.columns) };
    }

    press(event) {
      const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
      const { view } = this;
      if (event.key in steps) {
        const [row, column] = this.place || [view.row[0], view.column[0] - 1];
        const [dr, dc] = steps[event.key];
        this.moveTo([Math.min(Math.max(row + dr, view.row[0]), view.row[1] - 1),
          Math.min(Math.max(column + dc, view.column[0]), view.column[1] - 1)]);
      } else if ("+-0".includes(event.key)) {
        const factor = event.key === "+" ? 0.25 : 1;
        const around = ([low, high], at) => [at - factor * (high - low), at + factor * (high - low) + 1];
        const [row, column] = this.place || [(view.row[0] + view.row[1]) / 2, (view.column[0] + view.column[1]) / 2];
        if (event.key === "0") this.showAll();
        else this.look(around(view.row, row), around(view.column, column));
        this.draw();
      } else {
        return;
      }
      event.preventDefault();
    }
  }

  window.spikebrainRaster = async (figure, data) => {
    const grid = document.createElement("div");
    grid.className = "raster-panels";
    grid.style.cssText = `display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, ${
      data.columns > 1 ? 340 : 600}px), 1fr))`;
    figure.prepend(grid);
    for (const panel of data.panels) {
      const spikes = await unpack(panel.spikes, Int8Array), counts = await unpack(panel.counts, Int32Array);
      new Panel(figure, data, panel, spikes, counts).build(grid);
    }
  };
})();
