// Which neurons are chosen: a byte for each, in order, with undo and redo. `counts` tells how many in each layer.

const MANY = 10_000;

export class Selection {
  constructor(sizes) {
    this.sizes = sizes;
    this.starts = [];
    this.total = 0;
    for (const size of sizes) {
      this.starts.push(this.total);
      this.total += size;
    }
    this.now(new Uint8Array(this.total));
    this.past = [];
    this.future = [];
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

  // For the server: pairs, or, where there are many, the bits of each layer in base 64.
  sent() {
    if (this.count < MANY) return this.pairs();
    return this.sizes.map((size, layer) => {
      const bits = new Uint8Array(Math.ceil(size / 8));
      for (let neuron = 0; neuron < size; neuron++) bits[neuron >> 3] |= this.chosen[this.starts[layer] + neuron] << (neuron & 7);
      let text = '';
      for (const byte of bits) text += String.fromCharCode(byte);
      return btoa(text);
    });
  }

  // `change` gets a copy to write into.
  edit(change) {
    const next = this.chosen.slice();
    change(next);
    let at = 0;
    while (at < next.length && next[at] === this.chosen[at]) at += 1;
    if (at === next.length) return;
    this.past.push(this.chosen);
    if (this.past.length > Math.max(5, Math.min(100, 64e6 / this.total))) this.past.shift();
    this.future = [];
    this.now(next);
  }

  now(chosen) {
    this.chosen = chosen;
    this.counts = this.sizes.map((size, layer) => {
      let count = 0;
      for (let at = this.starts[layer]; at < this.starts[layer] + size; at++) count += chosen[at];
      return count;
    });
    this.count = this.counts.reduce((one, other) => one + other, 0);
  }

  undo() {
    if (!this.past.length) return;
    this.future.push(this.chosen);
    this.now(this.past.pop());
  }

  redo() {
    if (!this.future.length) return;
    this.past.push(this.chosen);
    this.now(this.future.pop());
  }

  put(pairs) {
    this.edit(next => {
      next.fill(0);
      for (const [layer, neuron] of pairs) next[this.starts[layer] + neuron] = 1;
    });
  }

  // The given share of every layer with the lowest values, or of all layers together (`whole`); of equal ones the
  // first. `sorted` is what in_order.js gives.
  lowest(values, sorted, share, whole) {
    this.edit(next => {
      next.fill(0);
      const parts = whole ? [[0, this.total]] : this.sizes.map((size, layer) => [this.starts[layer], size]);
      const inOrder = whole ? sorted.whole : sorted.byLayer;
      for (const [start, size] of parts) {
        const wanted = Math.floor(size * share + 1e-9);
        if (!wanted) continue;
        const limit = inOrder[start + wanted - 1];
        let left = wanted;
        for (let at = start; at < start + size; at++) {
          if (values[at] < limit) { next[at] = 1; left -= 1; }
        }
        for (let at = start; at < start + size && left > 0; at++) {
          if (values[at] === limit) { next[at] = 1; left -= 1; }
        }
      }
    });
  }

  // All neurons of any layer with values below the limit.
  below(values, limit) {
    this.edit(next => {
      for (let at = 0; at < next.length; at++) next[at] = values[at] < limit ? 1 : 0;
    });
  }
}
