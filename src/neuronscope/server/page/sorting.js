// A worker: puts numbers in order beside the page, which stays at hand meanwhile.

addEventListener('message', ({ data: { id, values, sizes, rows, order } }) => {
  if (rows) {
    rows.sort(order === 'lowest' ? (a, b) => values[a] - values[b] || a - b : (a, b) => values[b] - values[a] || a - b);
    postMessage({ id, rows }, [rows.buffer]);
    return;
  }
  const byLayer = values.slice();
  let start = 0;
  for (const size of sizes) {
    byLayer.subarray(start, start + size).sort();
    start += size;
  }
  postMessage({ id, byLayer, whole: values.sort() }, [byLayer.buffer, values.buffer]);
});
