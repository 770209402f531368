/* How a panel of `analysis.Raster.to_data()` is drawn. Spikes of +1 stand above the line of their neuron and those of -1
   below it; where places are too small for that, a panel is a map, whose shade is the share of places that fire and whose
   colour lies between those of +1 and -1, by their shares. raster.js fills a page with panels and answers the pointer. */
class RasterPicture {
  /* Pixels: margins, heights beside the main field; and of a place from which on single spikes are drawn. */
  static LEFT = 72; static RIGHT = 78; static LABELS = 62; static SUMS = 36; static GAP = 5; static AXIS = 34;
  static POTENTIAL = 74; static HIGH = 9; static WIDE = 1;

  constructor(raster, panel) {
    Object.assign(this, { raster, panel });
    this.rows = panel.neurons.length;
    this.columns = panel.num_tokens * panel.num_timesteps;
    this.weights = panel.weights.flat();
    this.timesteps = panel.timesteps.flat();
    this.spikes = new Int8Array(this.rows * this.columns);
    this.unpack(panel.spikes.plus, 1);
    if (panel.spikes.minus) this.unpack(panel.spikes.minus, -1);
    this.place = null; // [row, column] that is read out
    this.sheet = document.createElement("canvas"); // the picture without that place
    this.view = this.whole;
  }

  /* Base64 of eight places a byte, row by row, the first in its highest bit. */
  unpack(bits, sign) {
    const { spikes } = this, bytes = atob(bits);
    for (let i = 0; i < bytes.length; i++) {
      for (let byte = bytes.charCodeAt(i), at = 8 * i; byte; byte = (byte << 1) & 255, at++) {
        if (byte & 128) spikes[at] = sign;
      }
    }
  }

  static number(value) {
    return value.toLocaleString("en").replace("-", "−");
  }

  get whole() {
    return { row: [0, this.rows], column: [0, this.columns] };
  }

  /* Sizes, in CSS pixels. */
  measure(width) {
    this.labels = this.raster.tokens ? RasterPicture.LABELS : RasterPicture.GAP;
    const top = this.labels + RasterPicture.SUMS + RasterPicture.GAP;
    const height = this.rows <= 66 ? Math.max(64, 11 * this.rows) : 460;
    const below = this.panel.potential ? RasterPicture.POTENTIAL + RasterPicture.GAP : 0;
    this.main = { x: RasterPicture.LEFT, y: top, width: Math.max(1, width - RasterPicture.LEFT - RasterPicture.RIGHT), height };
    this.size = { width, height: top + height + below + RasterPicture.AXIS };
    const { row, column } = this.view;
    this.high = height / (row[1] - row[0]); // of a row
    this.wide = this.main.width / (column[1] - column[0]);
    this.isMap = this.high < RasterPicture.HIGH || this.wide < RasterPicture.WIDE;
  }

  x(column) {
    return this.main.x + (column - this.view.column[0]) * this.wide;
  }

  draw(context) {
    this.context = context;
    this.ink = colour("--ink");
    this.color = { "1": colour("--spikes"), "-1": colour("--other") };
    this.sheet.width = context.canvas.width;
    this.sheet.height = context.canvas.height;
    const pen = this.sheet.getContext("2d");
    this.pen = pen;
    pen.setTransform(context.getTransform());
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    this.drawPadding();
    if (this.isMap) this.drawMap();
    else this.drawSpikes();
    this.drawSums();
    this.drawRates();
    if (this.panel.potential) this.drawPotential();
    this.drawAxes();
    this.drawPlace();
  }

  inMain(paint, pen = this.pen) {
    const { main } = this;
    pen.save();
    pen.beginPath();
    pen.rect(main.x, main.y, main.width, main.height);
    pen.clip();
    paint();
    pen.restore();
  }

  drawPadding() {
    const { pen, main } = this;
    this.inMain(() => {
      pen.strokeStyle = this.ink;
      pen.globalAlpha = 0.25;
      for (let c = Math.floor(this.view.column[0]); c < this.view.column[1]; c++) {
        if (this.timesteps[c] >= 0) continue;
        let end = c;
        while (end < this.columns && this.timesteps[end] < 0) end++;
        pen.save();
        pen.beginPath();
        pen.rect(this.x(c), main.y, (end - c) * this.wide, main.height);
        pen.clip();
        pen.beginPath();
        for (let x = this.x(c) - main.height; x < this.x(end); x += 7) {
          pen.moveTo(x, main.y + main.height);
          pen.lineTo(x + main.height, main.y);
        }
        pen.stroke();
        pen.restore();
        c = end;
      }
    });
  }

  /* A box for each spike: filled and above the neuron's line for +1, hollow or thin and below it for -1. */
  drawSpikes() {
    const { pen, main, high, wide, view } = this;
    const margin = wide >= 4 ? 0.1 * wide : 0, isRoomy = wide >= 5;
    this.inMain(() => {
      for (let r = Math.floor(view.row[0]); r < view.row[1]; r++) {
        const middle = main.y + main.height - (r + 0.5 - view.row[0]) * high;
        pen.fillStyle = this.ink;
        pen.globalAlpha = 0.15;
        pen.fillRect(main.x, middle - 0.25, main.width, 0.5);
        pen.globalAlpha = 1;
        for (let c = Math.floor(view.column[0]); c < view.column[1]; c++) {
          const spike = this.spikes[r * this.columns + c];
          if (!spike) continue;
          const x = this.x(c) + margin, width = Math.max(wide - 2 * margin, 0.7);
          pen.fillStyle = pen.strokeStyle = this.color[spike];
          if (spike > 0) pen.fillRect(x, middle - 0.42 * high, width, 0.39 * high);
          else if (isRoomy) pen.strokeRect(x + 0.5, middle + 0.03 * high + 0.5, width - 1, 0.39 * high - 1);
          else pen.fillRect(x, middle + 0.12 * high, width, 0.2 * high);
        }
      }
    });
  }

  drawMap() {
    const { pen, main, view } = this;
    const width = Math.max(1, Math.floor(main.width)), height = Math.max(1, Math.floor(main.height));
    const rows = view.row[1] - view.row[0], columns = view.column[1] - view.column[0];
    const pixel = (i, first, size, length) => Math.max(0, Math.min(size - 1, Math.floor((i - first) * size / length)));
    const maps = [new Float32Array(width * height), new Float32Array(width * height)]; // shares of +1 and of -1
    const ofRow = new Float32Array(height), ofColumn = new Float32Array(width);
    const first = Math.floor(view.column[0]), last = Math.min(this.columns, Math.ceil(view.column[1]));
    const at = Int32Array.from({ length: last - first }, (_, i) => pixel(first + i, view.column[0], width, columns));
    for (const x of at) ofColumn[x]++;
    for (let r = Math.floor(view.row[0]); r < view.row[1]; r++) {
      const y = height - 1 - pixel(r, view.row[0], height, rows);
      ofRow[y]++;
      for (let c = first; c < last; c++) {
        const spike = this.spikes[r * this.columns + c];
        if (spike) maps[spike > 0 ? 0 : 1][y * width + at[c - first]]++;
      }
    }
    // A place that is wider than a pixel covers all of them.
    for (const map of maps) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const places = ofRow[y] * ofColumn[x];
          if (places) map[y * width + x] /= places;
        }
        for (let x = 1; x < width; x++) if (!ofColumn[x]) map[y * width + x] = map[y * width + x - 1];
      }
      for (let y = height - 2; y >= 0; y--) {
        if (!ofRow[y]) map.copyWithin(y * width, (y + 1) * width, (y + 2) * width);
      }
    }
    const [plus, minus] = maps;
    this.darkest = plus.reduce((most, share, i) => Math.max(most, share + minus[i]), 1e-9);
    const sheet = document.createElement("canvas");
    sheet.width = width;
    sheet.height = height;
    const brush = sheet.getContext("2d", { willReadFrequently: true });
    const [ofPlus, ofMinus] = [1, -1].map((sign) => {
      brush.fillStyle = this.color[sign];
      brush.fillRect(0, 0, 1, 1);
      return brush.getImageData(0, 0, 1, 1).data;
    });
    const image = brush.createImageData(width, height);
    plus.forEach((share, i) => {
      const total = share + minus[i];
      if (!total) return;
      for (let k = 0; k < 3; k++) image.data[4 * i + k] = (share * ofPlus[k] + minus[i] * ofMinus[k]) / total;
      image.data[4 * i + 3] = 255 * Math.sqrt(total / this.darkest);
    });
    brush.putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(sheet, main.x, main.y, main.width, main.height);
  }

  /* Spikes of the visible rows in each timestep: +1 upwards, -1 downwards. */
  drawSums() {
    const { view, pen, main } = this;
    const first = Math.floor(view.column[0]), last = Math.ceil(view.column[1]);
    const sums = [new Int32Array(last - first), new Int32Array(last - first)];
    for (let r = Math.floor(view.row[0]); r < view.row[1]; r++) {
      for (let c = first; c < last; c++) {
        const spike = this.spikes[r * this.columns + c];
        if (spike) sums[spike > 0 ? 0 : 1][c - first]++;
      }
    }
    const most = sums.map((sum) => sum.reduce((a, b) => Math.max(a, b), 0));
    const y = this.labels, each = RasterPicture.SUMS / Math.max(most[0] + most[1], 1), zero = y + most[0] * each;
    sums.forEach((sum, i) => {
      pen.fillStyle = this.color[i ? -1 : 1];
      sum.forEach((n, j) => {
        const x = Math.max(this.x(first + j), main.x), width = Math.min(this.x(first + j + 1), main.x + main.width) - x;
        if (n) pen.fillRect(x, i ? zero : zero - n * each, Math.max(width, 0.5), n * each);
      });
    });
    this.text(RasterPicture.number(most[0]), RasterPicture.LEFT - 4, y + 8, "right");
    if (most[1]) this.text(`−1: ${RasterPicture.number(most[1])}`, RasterPicture.LEFT - 4, y + RasterPicture.SUMS, "right");
  }

  /* Spikes of each visible row / its visible places: +1 to the right, -1 to the left. */
  drawRates() {
    const { view, pen, main } = this;
    const rates = [[], []];
    const first = Math.floor(view.column[0]), last = Math.ceil(view.column[1]);
    let places = 0;
    for (let c = first; c < last; c++) places += this.timesteps[c] >= 0;
    for (let r = Math.floor(view.row[0]); r < view.row[1]; r++) {
      const sums = [0, 0];
      for (let c = first; c < last; c++) {
        const spike = this.spikes[r * this.columns + c];
        if (spike) sums[spike > 0 ? 0 : 1]++;
      }
      sums.forEach((sum, i) => rates[i].push(sum / Math.max(places, 1)));
    }
    const most = rates.map((rate) => rate.reduce((a, b) => Math.max(a, b), 0));
    const x = main.x + main.width + RasterPicture.GAP, each = (RasterPicture.RIGHT - RasterPicture.GAP - 6) / Math.max(most[0] + most[1], 1e-9);
    const zero = x + most[1] * each;
    rates.forEach((rate, i) => {
      pen.fillStyle = this.color[i ? -1 : 1];
      rate.forEach((share, j) => {
        const bottom = main.y + main.height - (Math.floor(view.row[0]) + j - view.row[0]) * this.high;
        const top = Math.max(bottom - this.high, main.y), high = Math.min(bottom, main.y + main.height) - top;
        pen.fillRect(i ? zero - share * each : zero, top, share * each, Math.max(high - 0.5, 0.5));
      });
    });
    this.text("rate", x, main.y + main.height + 13, "left");
    const shown = most.map((rate) => rate.toPrecision(2));
    this.text(most[1] ? `${shown[1]} | ${shown[0]}` : `to ${shown[0]}`, x, main.y + main.height + 26, "left");
  }

  drawPotential() {
    const { pen, main, view } = this;
    const { neuron, v } = this.panel.potential;
    const top = main.y + main.height + RasterPicture.GAP, row = this.panel.neurons.indexOf(neuron);
    const first = Math.floor(view.column[0]), last = Math.ceil(view.column[1]);
    const seen = v.slice(first, last).filter((value) => value !== null);
    const low = seen.reduce((a, b) => Math.min(a, b), -0.2), high = seen.reduce((a, b) => Math.max(a, b), 1.2);
    const y = (value) => top + RasterPicture.POTENTIAL - 6 - (value - low) * (RasterPicture.POTENTIAL - 12) / (high - low);
    pen.strokeStyle = this.ink;
    for (const level of [0, 1]) {
      pen.globalAlpha = 0.4;
      pen.setLineDash(level ? [4, 3] : []);
      pen.beginPath();
      pen.moveTo(main.x, y(level));
      pen.lineTo(main.x + main.width, y(level));
      pen.stroke();
    }
    pen.globalAlpha = 1;
    pen.setLineDash([]);
    pen.beginPath();
    let isDrawing = false;
    for (let c = first; c < last; c++) {
      if (v[c] === null) { isDrawing = false; continue; }
      const left = Math.max(this.x(c), main.x), right = Math.min(this.x(c + 1), main.x + main.width);
      if (isDrawing) pen.lineTo(left, y(v[c]));
      else pen.moveTo(left, y(v[c]));
      pen.lineTo(right, y(v[c]));
      isDrawing = true;
    }
    pen.stroke();
    for (let c = first; c < last && this.wide >= 2; c++) {
      const spike = this.spikes[row * this.columns + c];
      if (!spike) continue;
      pen.fillStyle = this.color[spike];
      pen.beginPath();
      const x = this.x(c + 0.5), tip = y(v[c]) - 3 * spike;
      pen.moveTo(x, tip);
      pen.lineTo(x - 3, tip + 6 * spike);
      pen.lineTo(x + 3, tip + 6 * spike);
      pen.fill();
    }
    this.text(`neuron ${RasterPicture.number(neuron)}`, RasterPicture.LEFT - 4, top + RasterPicture.POTENTIAL / 2 - 10, "right");
    this.text("potential /", RasterPicture.LEFT - 4, top + RasterPicture.POTENTIAL / 2 + 3, "right");
    this.text("threshold", RasterPicture.LEFT - 4, top + RasterPicture.POTENTIAL / 2 + 16, "right");
  }

  drawAxes() {
    const { pen, main, view, panel, raster } = this;
    const bottom = main.y + main.height + (panel.potential ? RasterPicture.POTENTIAL + RasterPicture.GAP : 0);
    pen.strokeStyle = this.ink;
    pen.strokeRect(main.x - 0.5, main.y - 0.5, main.width + 1, main.height + 1);
    const step = panel.num_timesteps, oneToken = panel.num_tokens === 1;
    const ends = [Math.floor(view.column[0] / step), Math.ceil(view.column[1] / step)];
    let free = -Infinity, named = -Infinity;
    for (let token = ends[0]; token < ends[1]; token++) {
      const x = this.x(token * step), isCall = token > 0 && raster.calls[token] !== raster.calls[token - 1];
      if (x >= main.x - 0.5) {
        pen.globalAlpha = isCall ? 0.9 : 0.3;
        if (token && (isCall || step * this.wide > 5)) {
          pen.fillStyle = this.ink;
          pen.fillRect(x - (isCall ? 0.75 : 0.25), this.labels, isCall ? 1.5 : 0.5, bottom - this.labels);
        }
        pen.globalAlpha = 1;
        if (!oneToken && x >= free) {
          this.text(RasterPicture.number(token + 1), x, bottom + 13, "left");
          free = x + 40;
        }
      }
      const middle = (Math.max(x, main.x) + Math.min(x + step * this.wide, main.x + main.width)) / 2;
      if (raster.tokens && middle >= named) {
        pen.save();
        pen.translate(middle + 3, this.labels - 4);
        pen.rotate(-Math.PI / 4);
        this.text(raster.tokens[token], 0, 0, "left");
        pen.restore();
        named = middle + 13;
      }
    }
    if (oneToken) {
      const step = this.roundStep(view.column[1] - view.column[0], main.width / 70);
      for (let n = Math.ceil((view.column[0] + 1) / step) * step; n <= view.column[1]; n += step) {
        this.text(RasterPicture.number(n), this.x(n - 1), bottom + 13, "left");
      }
    }
    this.text(oneToken ? "timestep" : `token, ${RasterPicture.number(step)} timesteps each`, main.x + main.width / 2, bottom + 27, "center");
    const rows = view.row[1] - view.row[0], tick = this.roundStep(rows, main.height / 24);
    for (let row = Math.ceil(view.row[0] / tick) * tick; row < view.row[1]; row += tick) {
      const y = main.y + main.height - (row + 0.5 - view.row[0]) * this.high;
      this.text(RasterPicture.number(panel.neurons[row]), RasterPicture.LEFT - 4, y + 4, "right");
    }
    if (this.isMap) {
      const says = `darkest where ${(100 * this.darkest).toFixed(0)} % of the places fire`;
      pen.clearRect(main.x + 1, main.y + 1, pen.measureText(says).width + 8, 15);
      this.text(says, main.x + 4, main.y + 12, "left");
    }
  }

  /* The smallest round number of places between ticks, of which there is room for `most`. */
  roundStep(places, most) {
    for (let power = 1; ; power *= 10) {
      for (const digit of [1, 2, 5]) if (places / (digit * power) <= most) return digit * power;
    }
  }

  text(text, x, y, align) {
    this.pen.fillStyle = this.ink;
    this.pen.textAlign = align;
    this.pen.fillText(text, x, y);
  }

  /* The picture, and on it the place that is read out and the box that is dragged. */
  drawPlace() {
    const { context, main, size, sheet } = this;
    context.clearRect(0, 0, size.width, size.height);
    context.drawImage(sheet, 0, 0, size.width, size.height);
    context.strokeStyle = this.ink;
    this.inMain(() => {
      if (this.box) {
        const [x1, y1, x2, y2] = this.box;
        context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      }
      if (!this.place) return;
      const [row, column] = this.place;
      const y = main.y + main.height - (row + 1 - this.view.row[0]) * this.high;
      context.lineWidth = 1.5;
      context.strokeRect(this.x(column) - 1, y - 1, Math.max(this.wide, 1) + 2, Math.max(this.high, 1) + 2);
    }, context);
  }
}
