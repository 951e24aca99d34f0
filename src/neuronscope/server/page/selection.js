// Which neurons are chosen: a byte for each, in order, with undo and redo.

export class Selection {
  constructor(sizes) {
    this.sizes = sizes;
    this.starts = sizes.map((_, layer) => sizes.slice(0, layer).reduce((a, b) => a + b, 0));
    this.total = sizes.reduce((a, b) => a + b, 0);
    this.chosen = new Uint8Array(this.total);
    this.past = [];
    this.future = [];
  }

  get count() {
    let count = 0;
    for (const one of this.chosen) count += one;
    return count;
  }

  pairs() {
    const found = [];
    this.sizes.forEach((size, layer) => {
      for (let neuron = 0; neuron < size; neuron++) {
        if (this.chosen[this.starts[layer] + neuron]) found.push([layer, neuron]);
      }
    });
    return found;
  }

  // `change` gets a copy to write into.
  edit(change) {
    const next = this.chosen.slice();
    change(next);
    if (next.every((one, index) => one === this.chosen[index])) return;
    this.past.push(this.chosen);
    if (this.past.length > 100) this.past.shift();
    this.future = [];
    this.chosen = next;
  }

  undo() {
    if (!this.past.length) return;
    this.future.push(this.chosen);
    this.chosen = this.past.pop();
  }

  redo() {
    if (!this.future.length) return;
    this.past.push(this.chosen);
    this.chosen = this.future.pop();
  }

  put(pairs) {
    this.edit(next => {
      next.fill(0);
      for (const [layer, neuron] of pairs) next[this.starts[layer] + neuron] = 1;
    });
  }

  // The given share of every layer with the lowest values.
  lowest(values, share) {
    this.edit(next => {
      next.fill(0);
      this.sizes.forEach((size, layer) => {
        const start = this.starts[layer];
        const order = Uint32Array.from({ length: size }, (_, neuron) => neuron);
        order.sort((a, b) => values[start + a] - values[start + b]);
        for (const neuron of order.subarray(0, Math.floor(size * share + 1e-9))) next[start + neuron] = 1;
      });
    });
  }
}
