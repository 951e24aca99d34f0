// The neuron map: a row for every layer, its neurons from left to right; where several share a pixel, the largest shows.

// Nuñez, Anderton and Renslow's cividis, which looks much the same to people with any of the common colour vision
// deficiencies.
const STOPS = ['00224e', '123570', '3b496c', '575d6d', '707173', '8a8678', 'a59c74', 'c3b369', 'e1cc55', 'fee838'];
const CHOSEN = [213, 94, 0];
const NOTHING = [128, 128, 128, 0]; // where no value is known, the page shows through

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
  if (least > most) return { low: 0, high: 0, least: 0, most: 0 };
  const step = Math.max(1, Math.floor(values.length / SAMPLE));
  const some = [];
  for (let index = 0; index < values.length; index += step) if (!Number.isNaN(values[index])) some.push(values[index]);
  const sorted = Float32Array.from(some).sort();
  const at = share => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? least;
  return { low: at(0.005), high: at(0.995), least, most };
}

// `view` is the part of every row that is shown, from 0 to 1.
export function draw(canvas, selection, values, scale, cursor, view) {
  const { width, height } = canvas;
  const context = canvas.getContext('2d');
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const packed = COLOURS.map(([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0);
  const nothing = (NOTHING[3] << 24 | NOTHING[2] << 16 | NOTHING[1] << 8 | NOTHING[0]) >>> 0;
  const marked = (255 << 24 | CHOSEN[2] << 16 | CHOSEN[1] << 8 | CHOSEN[0]) >>> 0;
  const span = scale.high - scale.low || 1;
  const rows = selection.sizes.length;
  const wide = view.to - view.from;
  const { chosen } = selection;
  selection.sizes.forEach((size, layer) => {
    const top = Math.round(layer * height / rows);
    const bottom = Math.round((layer + 1) * height / rows) - (height / rows > 6 ? 2 : height / rows > 3 ? 1 : 0);
    const line = new Uint32Array(width);
    const start = selection.starts[layer];
    for (let x = 0; x < width; x++) {
      const first = Math.floor((view.from + x * wide / width) * size);
      const last = Math.max(first + 1, Math.floor((view.from + (x + 1) * wide / width) * size));
      let most = -Infinity;
      let marks = 0;
      for (let neuron = first; neuron < last && neuron < size; neuron++) {
        if (values[start + neuron] > most) most = values[start + neuron];
        marks |= chosen[start + neuron];
      }
      const level = Math.max(0, Math.min(255, Math.round((most - scale.low) / span * 255)));
      line[x] = marks ? marked : most === -Infinity ? nothing : packed[level];
    }
    for (let y = top; y < bottom; y++) pixels.set(line, y * width);
  });
  context.putImageData(image, 0, 0);
  if (cursor) {
    const [layer, neuron] = cursor;
    const cell = width / selection.sizes[layer] / wide;
    const x = (neuron / selection.sizes[layer] - view.from) / wide * width;
    const y = layer * height / rows;
    context.lineWidth = 3;
    context.strokeStyle = '#fff';
    context.strokeRect(x - 3, y - 1, Math.max(6, cell + 4), height / rows);
    context.lineWidth = 1.5;
    context.strokeStyle = '#000';
    context.strokeRect(x - 3, y - 1, Math.max(6, cell + 4), height / rows);
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
