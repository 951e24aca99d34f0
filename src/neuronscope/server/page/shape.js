// Which neurons lie in a shape that was drawn on the map. Points are shares of the canvas, from 0 to 1.

const LINES = 5; // looked at in every row: a shape need not cover a whole row

// Calls `inside(from, to)` for places in the order of the selection, `to` not included; some may come twice.
export function within(points, selection, view, inside) {
  const rows = selection.sizes.length;
  selection.sizes.forEach((size, layer) => {
    for (let line = 0; line < LINES; line++) {
      const crossed = crossings(points, (layer + (line + 0.5) / LINES) / rows);
      for (let index = 0; index + 1 < crossed.length; index += 2) {
        const [from, to] = [crossed[index], crossed[index + 1]].map(x => {
          const place = (view.from + x * (view.to - view.from)) * size - 0.5; // the middle of a neuron counts
          return Math.max(0, Math.min(size, Math.ceil(place)));
        });
        if (from < to) inside(selection.starts[layer] + from, selection.starts[layer] + to);
      }
    }
  });
}

function crossings(points, y) {
  const found = [];
  points.forEach(([x, own], index) => {
    const [nextX, next] = points[(index + 1) % points.length];
    if ((own <= y) !== (next <= y)) found.push(x + (y - own) / (next - own) * (nextX - x));
  });
  return found.sort((a, b) => a - b);
}
