// The neuron map: a row for every layer, its neurons from left to right; where several share a pixel, the largest shows.

// Nuñez, Anderton and Renslow's cividis, which looks much the same to people with any of the common colour vision
// deficiencies.
const STOPS = ['00224e', '123570', '3b496c', '575d6d', '707173', '8a8678', 'a59c74', 'c3b369', 'e1cc55', 'fee838'];
const CHOSEN = [213, 94, 0];
const NOTHING = [128, 128, 128]; // where no value is known, the page shows through

const COLOURS = (() => {
  const stops = STOPS.map(hex => [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, value) => {
    const at = value / 255 * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((channel, index) => channel + (stops[low + 1][index] - channel) * (at - low));
  });
})();

const SAMPLE = 65536;

// Where colours begin and end: quantiles, of a sample where there are very many. NaN counts as nothing.
export function scaleOf(values) {
  let least = Infinity;
  let most = -Infinity;
  for (let index = 0; index < values.length; index++) {
    if (values[index] < least) least = values[index];
    if (values[index] > most) most = values[index];
  }
  if (least > most) return { low: 0, high: 0, least: 0, most: 0, none: true };
  const step = Math.max(1, Math.floor(values.length / SAMPLE));
  const some = [];
  for (let index = 0; index < values.length; index += step) if (!Number.isNaN(values[index])) some.push(values[index]);
  const sorted = Float32Array.from(some).sort();
  const at = share => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? least;
  return { low: at(0.005), high: at(0.995), least, most };
}

const packed = ([r, g, b], alpha = 255) => (alpha << 24 | b << 16 | g << 8 | r) >>> 0;
const RAMP = Uint32Array.from(COLOURS, colour => packed(colour));
const UNKNOWN = packed(NOTHING, 0);
const MARKED = packed(CHOSEN);

// Draws on one canvas. What does not change with the selection is kept: the colour of each pixel of each row.
export class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.known = {};
  }

  // `view` is the part of every row that is shown, from 0 to 1.
  draw(selection, values, scale, cursor, view) {
    const box = this.canvas.getBoundingClientRect();
    const width = Math.max(1, Math.round(box.width * devicePixelRatio));
    const height = Math.max(1, Math.round(box.height * devicePixelRatio));
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    this.context ??= this.canvas.getContext('2d');
    this.colour(selection, values, scale, view, width, height);
    const { pixels, image, ends, colours } = this.known;
    const { chosen } = selection;
    const line = new Uint32Array(width);
    const rows = selection.sizes.length;
    selection.sizes.forEach((size, layer) => {
      const top = Math.round(layer * height / rows);
      const bottom = Math.round((layer + 1) * height / rows) - (height / rows > 6 ? 2 : height / rows > 3 ? 1 : 0);
      const start = selection.starts[layer];
      const from = layer * (width + 1);
      for (let x = 0; x < width; x++) {
        let marks = 0;
        const first = ends[from + x];
        const last = Math.max(first + 1, ends[from + x + 1]);
        for (let at = start + first; at < start + last; at++) marks |= chosen[at];
        line[x] = marks ? MARKED : colours[layer * width + x];
      }
      for (let y = top; y < bottom; y++) pixels.set(line, y * width);
    });
    this.context.putImageData(image, 0, 0);
    if (cursor) this.cursor(selection, cursor, view, width, height);
  }

  // Which neurons share a pixel (the first of each in `ends`), and the colour of the largest of them.
  colour(selection, values, scale, view, width, height) {
    const { known } = this;
    if (known.values === values && known.view === view && known.scale === scale && known.width === width && known.height === height) return;
    const image = known.width === width && known.height === height ? known.image : this.context.createImageData(width, height);
    const rows = selection.sizes.length;
    const ends = new Uint32Array(rows * (width + 1));
    const colours = new Uint32Array(rows * width);
    const span = scale.high - scale.low || 1;
    const wide = view.to - view.from;
    selection.sizes.forEach((size, layer) => {
      const start = selection.starts[layer];
      const from = layer * (width + 1);
      for (let x = 0; x <= width; x++) ends[from + x] = Math.min(x < width ? size - 1 : size, Math.floor((view.from + x * wide / width) * size));
      for (let x = 0; x < width; x++) {
        let most = -Infinity;
        const last = Math.max(ends[from + x] + 1, ends[from + x + 1]);
        for (let at = start + ends[from + x]; at < start + last; at++) if (values[at] > most) most = values[at];
        const level = Math.max(0, Math.min(255, Math.round((most - scale.low) / span * 255)));
        colours[layer * width + x] = most === -Infinity ? UNKNOWN : RAMP[level];
      }
    });
    this.known = { values, view, scale, width, height, image, ends, colours, pixels: new Uint32Array(image.data.buffer) };
  }

  cursor(selection, [layer, neuron], view, width, height) {
    const { context } = this;
    const wide = view.to - view.from;
    const rows = selection.sizes.length;
    const cell = width / selection.sizes[layer] / wide;
    const x = (neuron / selection.sizes[layer] - view.from) / wide * width;
    const y = layer * height / rows;
    for (const [thick, colour] of [[3, '#fff'], [1.5, '#000']]) {
      context.lineWidth = thick;
      context.strokeStyle = colour;
      context.strokeRect(x - 3, y - 1, Math.max(6, cell + 4), height / rows);
    }
  }
}

// The (layer, neuron) at a place of the canvas, in CSS pixels.
export function at(canvas, selection, x, y, view) {
  const box = canvas.getBoundingClientRect();
  const layer = Math.max(0, Math.min(selection.sizes.length - 1, Math.floor((y - box.top) / box.height * selection.sizes.length)));
  const size = selection.sizes[layer];
  return [layer, Math.max(0, Math.min(size - 1, Math.floor((view.from + (x - box.left) / box.width * (view.to - view.from)) * size)))];
}

// A view narrower or wider by a factor, around a share of the row that stays where it is.
export function zoomed(view, factor, around) {
  const wide = Math.min(1, Math.max(1e-4, (view.to - view.from) * factor));
  const from = around - (around - view.from) / (view.to - view.from) * wide;
  return moved({ from, to: from + wide }, 0);
}

// The view shifted by a share of itself, as far as the row goes.
export function moved(view, by) {
  const wide = view.to - view.from;
  const from = Math.max(0, Math.min(1 - wide, view.from + by * wide));
  return { from, to: from + wide };
}
