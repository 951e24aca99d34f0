// Asks the worker that sorts; see sorting.js.

const waiting = new Map();
let worker = null;
let last = 0;

function asked(what, transfer) {
  if (!worker) {
    worker = new Worker('/sorting.js', { type: 'module' });
    worker.addEventListener('message', ({ data }) => {
      waiting.get(data.id)(data);
      waiting.delete(data.id);
    });
  }
  const id = ++last;
  return new Promise(resolve => {
    waiting.set(id, resolve);
    worker.postMessage({ id, ...what }, transfer);
  });
}

// The values of each layer in order, one layer after the other, and of all layers together.
export function sortedValues(values, sizes) {
  const copy = values.slice();
  return asked({ values: copy, sizes }, [copy.buffer]);
}

// Indices by their values, 'lowest' or 'highest' first.
export async function sortedRows(rows, values, order) {
  return (await asked({ rows, values, order }, [rows.buffer])).rows;
}
